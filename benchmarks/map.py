"""Where pruning pays: its gains by redundancy of the data and length."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infobatch_mm.compare.cells import Results
from infobatch_mm.compare.statistics import paired, rank_test
from infobatch_mm.compare.tables import (
    differences,
    interval,
    mean_variance_ratio,
    new_figure,
    save,
    saved_shares,
    spread,
    table,
)

from .suites import LENGTHS, NEAR, near_suite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What `infobatch` is compared with on the map; the last one is exploratory.
CONTROLS = ('full', 'random', 'short', 'short-lr')
# The controls at equal cost, as the picture names them.
TITLES = {
    'random': 'over pruning as much at random',
    'short': 'over a schedule as much shorter',
    'short-lr': 'over the shorter schedule\nwith a larger learning rate',
}
LENGTH_NAMES = {'third': 'a third', 'one': 'the usual', 'three': 'three times'}


def map_table(results_of: Mapping[str, Results]) -> str:
    """Return the gain at equal cost by redundancy and length."""
    rows = [['suite', 'seeds', '`full`', 'saved', 'variance ratio']]
    rows[0] += [f'over `{control}`' for control in CONTROLS]
    for suite, results in results_of.items():
        row = [f'`{suite}`', str(len(results['infobatch']))]
        row.append(spread(run['value'] for run in results['full'].values()))
        saved = statistics.mean(saved_shares(results, 'samples_seen'))
        row += [f'{saved:.1%}', f'{mean_variance_ratio(results):.2f}']
        for control in CONTROLS:
            gains = differences(results, 'infobatch', control)
            row.append(interval(paired(gains)) if gains else '')
        rows.append(row)
    return table(rows)


def prediction_table(results_of: Mapping[str, Results]) -> str:
    """Return how well the variance ratio ranks the suites by their gain.

    Over all suites, and among those of equal length, since everything
    depends on the length and that is known without any score.
    """
    ratios = {
        suite: mean_variance_ratio(results)
        for suite, results in results_of.items()
    }
    by_length = [
        [name for p in NEAR if (name := near_suite(p, length)) in results_of]
        for length in LENGTHS
    ]
    of_equal_length = [group for group in by_length if len(group) > 1]
    head = 'variance ratio against the gain over, rank correlation, p, '
    head += 'at equal length, p'
    rows = [head.split(', ')]
    for control in CONTROLS:
        against = {
            suite: differences(results, 'infobatch', control)
            for suite, results in results_of.items()
        }
        if not all(against.values()):
            continue
        gains = {s: statistics.mean(values) for s, values in against.items()}
        row = [f'`{control}`']
        for groups in ([list(results_of)], of_equal_length):
            row += _rank_cells(groups, ratios, gains)
        rows.append(row)
    return table(rows)


def _rank_cells(
    groups: list[list[str]],
    ratios: Mapping[str, float],
    gains: Mapping[str, float],
) -> list[str]:
    """Return the rank correlation within groups of suites, and its p."""
    if not groups:
        return ['', '']
    rank, p = rank_test(
        [
            ([ratios[s] for s in group], [gains[s] for s in group])
            for group in groups
        ]
    )
    return [f'{rank:+.2f}', f'{p:.3f}']


def draw_map(results_of: Mapping[str, Results], path: Path) -> Path:
    """Draw the gain at equal cost over redundancy and length."""
    figure = new_figure(15, 4.6)
    axes = figure.subplots(1, len(TITLES), sharey=True)
    gains = [_gains(results_of, control) for control in TITLES]
    # One scale, and light colours under the text.
    limit = 1.5 * np.nanmax(np.abs(gains))
    for axis, control, gain in zip(axes, TITLES, gains, strict=True):
        image = axis.imshow(
            gain, cmap='PiYG', vmin=-limit, vmax=limit, aspect='auto'
        )
        _write_gains(axis, results_of, control)
        axis.set(
            title=TITLES[control],
            xlabel='length of training, against the usual',
            xticks=range(len(LENGTHS)),
            xticklabels=[LENGTH_NAMES[length] for length in LENGTHS],
            yticks=range(len(NEAR)),
            yticklabels=[f'{percent} %' for percent in NEAR],
        )
    axes[0].set_ylabel('near duplicates\namong the training images')
    bar = figure.colorbar(image, ax=axes, aspect=15)
    bar.set_label('points of mIoU:\ngreen, InfoBatch is better; pink, worse')
    figure.suptitle(
        'What InfoBatch gains at the same number of training samples: mean '
        'over seeds, with its 90 % interval (bold where that excludes 0)\n'
    )
    return save(figure, path)


def _gain(
    results_of: Mapping[str, Results], control: str, y: int, x: int
) -> list[float]:
    """Return the gains over a control in a field of the map, by seed."""
    suite = near_suite(NEAR[y], list(LENGTHS)[x])
    return differences(results_of.get(suite, {}), 'infobatch', control)


def _gains(results_of: Mapping[str, Results], control: str) -> np.ndarray:
    """Return the mean gains over a control, NaN where it was not run."""
    gains = np.full((len(NEAR), len(LENGTHS)), np.nan)
    for y, x in np.ndindex(gains.shape):
        values = _gain(results_of, control, y, x)
        if values:
            gains[y, x] = statistics.mean(values)
    return gains


def _write_gains(
    axis: 'Axes', results_of: Mapping[str, Results], control: str
) -> None:
    """Write each gain into its field."""
    for y, x in np.ndindex(len(NEAR), len(LENGTHS)):
        values = _gain(results_of, control, y, x)
        if not values:
            axis.text(x, y, 'not run', ha='center', va='center', color='grey')
            continue
        gap = paired(values)
        excludes_0 = gap.low > 0 or gap.high < 0
        axis.text(
            x,
            y,
            f'{gap.mean:+.2f}\n{gap.low:+.2f} to {gap.high:+.2f}\n'
            f'({gap.seeds} seeds)',
            ha='center',
            va='center',
            weight='bold' if excludes_0 else 'normal',
        )
