"""Pictures of a study: its curves, what was kept, and its classes."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..host.packages import require
from ..records import kept_percent
from .cells import Result, Results
from .tables import class_gap, class_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Every picture gives an arm the same colour.
COLORS = dict(infobatch='C0', full='C1', random='C2', short='C3')
COLORS |= {'small-batch': 'C4', 'infobatch-small-batch': 'C5'}


def new_figure(width: float, height: float) -> 'Figure':
    """Return an empty figure of a size in inches."""
    figures = require('matplotlib.figure', 'compare')
    return figures.Figure(figsize=(width, height), layout='constrained')


def save(figure: 'Figure', path: Path) -> Path:
    """Write a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata=dict(Software=None))
    return path


def draw(results: Results, title: str, path: Path) -> Path:
    """Draw the metric over samples, the share kept, and single classes.

    Seconds are not drawn: runs of different days cannot be compared in time.
    """
    results = {arm: results[arm] for arm in COLORS if arm in results}
    classes = class_names(results)
    panels = 3 if classes else 2
    figure = new_figure(4.6 * panels, 4)
    axes = figure.subplots(1, panels)
    draw_curves(axes[0], results)
    draw_kept(axes[1], results)
    if classes:
        draw_classes(axes[2], results, classes)
    figure.suptitle(title)
    return save(figure, path)


def draw_curves(axis: 'Axes', results: Results) -> None:
    """Draw the mean metric of each arm over the samples seen."""
    for arm, by_seed in results.items():
        runs = list(by_seed.values())
        axis.plot(
            mean_curve(runs, 'samples_seen'),
            mean_curve(runs, runs[0]['metric']),
            marker='.',
            color=COLORS[arm],
            label=f'{arm} ({len(runs)} seed{"s" * (len(runs) > 1)})',
        )
        axis.set_ylabel(f'{runs[0]["metric"]}, mean over seeds')
    axis.set(title='reached at what cost', xlabel='training samples seen')
    axis.legend()


def draw_kept(axis: 'Axes', results: Results) -> None:
    """Draw the share kept in each round of the first seed."""
    for arm in ('infobatch', 'random', 'infobatch-small-batch'):
        if arm in results:
            rounds = next(iter(results[arm].values()))['rounds']
            axis.plot(
                kept_percent(rounds),
                drawstyle='steps-mid',
                color=COLORS[arm],
                label=arm,
            )
    axis.set(
        title='kept in each round (first seed)',
        xlabel='round, a pass over what is kept',
        ylabel='training samples kept (%)',
        ylim=(0, 105),
    )
    axis.legend(loc='lower right')


def draw_classes(
    axis: 'Axes', results: Results, classes: Sequence[str]
) -> None:
    """Draw which classes gain or lose, with their 90 % intervals."""
    arms = [arm for arm in results if arm != 'full']
    for number, arm in enumerate(arms):
        offset = 0.75 * ((number + 0.5) / len(arms) - 0.5)
        gaps = [class_gap(results, arm, name) for name in classes]
        axis.errorbar(
            [gap.mean for gap in gaps],
            [row + offset for row in range(len(classes))],
            xerr=[
                [gap.mean - gap.low for gap in gaps],
                [gap.high - gap.mean for gap in gaps],
            ],
            fmt='.',
            color=COLORS[arm],
            label=arm,
        )
    axis.axvline(0, color='grey', linewidth=0.8)
    axis.set(
        title='difference to full, by class',
        xlabel='points of IoU, with 90 % intervals',
        yticks=range(len(classes)),
    )
    axis.set_yticklabels(classes)
    axis.invert_yaxis()


def mean_curve(runs: Sequence[Result], key: str) -> list[float]:
    """Return the mean over runs of what stood at each validation."""
    values = ([val[key] for val in run['validations']] for run in runs)
    return [statistics.mean(at) for at in zip(*values, strict=True)]
