"""Tables and pictures of the benchmark, from its cells."""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmark import (
    ARMS,
    CELLS,
    CORE,
    LENGTHS,
    MAP,
    NEAR,
    ROOT,
    SUITES,
    near_suite,
)
from benchmark_statistics import (
    MARGIN,
    paired,
    power,
    rank_test,
    seeds_needed,
    verdict,
)

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = ROOT / 'benchmarks/RESULTS.md'
PICTURES = ROOT / 'benchmarks/pictures'
COLORS = {arm: f'C{index}' for index, arm in enumerate(CORE)}
SWEEP = {0.1: 'infobatch-r0.1', 0.3: 'infobatch-r0.3', 0.5: 'infobatch'}
SWEEP[0.7] = 'infobatch-r0.7'

# Whose effect on single classes is tabled: the core arms but for `full`, what
# is to spare rare classes, and other prune ratios.
CLASS_ARMS = ('infobatch', 'random', 'short', 'class-balanced')
CLASS_ARMS += tuple(arm for arm in SWEEP.values() if arm not in CLASS_ARMS)

# What `infobatch` is compared with on the map; the last one is exploratory.
MAP_CONTROLS = ('full', 'random', 'short', 'short-lr')

Cell = dict[str, Any]
Cells = dict[str, dict[int, Cell]]  # by arm and seed


def read_cells(suite: str) -> Cells:
    """Read the finished cells of a suite, in the order of the arms."""
    files = (CELLS / suite).glob('*.json')
    cells: Cells = {arm: {} for arm in ARMS}
    for cell in sorted(
        (json.loads(file.read_text()) for file in files),
        key=lambda cell: cell['seed'],
    ):
        cells[cell['arm']][cell['seed']] = cell
    return {arm: found for arm, found in cells.items() if found}


def differences(cells: Cells, arm: str, to: str, key: str) -> list[float]:
    """Return one arm less another for each seed that both have."""
    seeds = cells[arm].keys() & cells.get(to, {}).keys()
    return [cells[arm][s][key] - cells[to][s][key] for s in sorted(seeds)]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of which is the head, as a Markdown table."""
    head, *body = (f'| {" | ".join(row)} |' for row in rows)
    return '\n'.join([head, '|' + '---|' * len(rows[0]), *body])


def spread(values: Iterable[float]) -> str:
    """Return mean and standard deviation."""
    values = list(values)
    if len(values) < 2:
        return f'{values[0]:.2f}'
    return f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}'


# Parts of a suite


def arms_table(cells: Cells) -> str:
    """Return accuracy, cost and verdict of each arm."""
    head = 'arm, seeds, metric, difference to `full`, samples, verdict'
    rows = [head.split(', ')]
    for arm, found in cells.items():
        values = [cell['value'] for cell in found.values()]
        shares = [
            cell['samples_seen'] / cell['samples_budget']
            for cell in found.values()
        ]
        row = [f'`{arm}`' + ('' if arm in CORE else ' (exploratory)')]
        row += [str(len(found)), spread(values)]
        against = differences(cells, arm, 'full', 'value')
        if arm == 'full' or not against:
            row += ['', f'{statistics.mean(shares):.1%}', '']
        else:
            gap = paired(against)
            row += [
                interval(gap),
                f'{statistics.mean(shares):.1%}',
                verdict(gap),
            ]
        rows.append(row)
    return table(rows)


def interval(gap: Any, form: str = '+.2f') -> str:
    """Return a mean over seeds with its 90 % interval."""
    if gap.count < 2:
        return f'{gap.mean:{form}}'
    return f'{gap.mean:{form}} [{gap.low:{form}}, {gap.high:{form}}]'


def power_text(cells: Cells) -> str:
    """Say how many seeds the spread asks for."""
    gap = paired(differences(cells, 'infobatch', 'full', 'value'))
    if gap.count < 2:
        return 'One seed says nothing about accuracy.'
    return (
        f'The paired differences of `infobatch` to `full` have a standard '
        f'deviation of {gap.deviation:.2f}: with {gap.count} seeds an arm '
        f'that loses nothing is called lossless (margin {MARGIN}) with a '
        f'power of {power(gap.deviation, gap.count):.0%}; 80 % would take '
        f'{seeds_needed(gap.deviation)} seeds.'
    )


def controls_table(cells: Cells) -> str:
    """Return InfoBatch against all other arms, by the seeds they share."""
    rows = [['`infobatch` against', 'seeds', 'difference']]
    for arm in [arm for arm in cells if arm not in ('full', 'infobatch')]:
        against = differences(cells, 'infobatch', arm, 'value')
        if against:
            gap = paired(against)
            rows.append([f'`{arm}`', str(gap.count), interval(gap)])
    if len(rows) == 1:
        return 'The controls at equal cost, `random` and `short`: not run.'
    return table(rows)


def efficiency_table(cells_of: Mapping[str, Cells]) -> str:
    """Return which part of the samples saved is time saved.

    From pairs that shared a core, so that what else the machine did fell on
    both alike; in CPU time, which is what each had of the core, and in
    wall-clock.
    """
    head = 'suite, pairs, samples saved'
    for time in ('CPU time', 'wall-clock'):
        head += f', {time} saved, efficiency'
    rows = [head.split(', ')]
    for suite, cells in cells_of.items():
        samples = saved_shares(cells, 'samples_seen')
        row = [f'`{suite}`', str(len(samples))]
        row += [f'{statistics.mean(samples):.1%}']
        for key in ('cpu_seconds', 'train_seconds'):
            seconds = saved_shares(cells, key)
            gains = [a / b for a, b in zip(seconds, samples, strict=True)]
            row.append(f'{statistics.mean(seconds):.1%}')
            row.append(interval(paired(gains), '.2f'))
        rows.append(row)
    return table(rows)


def saved_shares(cells: Cells, key: str) -> list[float]:
    """Return the share of a cost that pruning saves, seed by seed."""
    return [
        1 - cell[key] / cells['full'][seed][key]
        for seed, cell in cells['infobatch'].items()
        if seed in cells['full']
    ]


def class_names(cells: Cells) -> list[str]:
    """Return the classes whose IoU a suite measures."""
    last = next(iter(cells['full'].values()))['validations'][-1]
    return [k.removeprefix('IoU/') for k in last if k.startswith('IoU/')]


def class_gap(cells: Cells, arm: str, name: str) -> Any:
    """Return the paired difference of the IoU of a class to full data."""
    key = f'IoU/{name}'
    seeds = sorted(cells[arm].keys() & cells['full'].keys())
    return paired(
        [
            cells[arm][seed]['validations'][-1][key]
            - cells['full'][seed]['validations'][-1][key]
            for seed in seeds
        ]
    )


def class_table(cells: Cells, arms: Sequence[str]) -> str:
    """Return the mean difference of each class to full data."""
    rows = [['class (seeds)']]
    rows[0] += [f'`{arm}` ({len(cells[arm])})' for arm in ('full', *arms)]
    for name in class_names(cells):
        last = (run['validations'][-1] for run in cells['full'].values())
        row = [name, spread(each[f'IoU/{name}'] for each in last)]
        row += [interval(class_gap(cells, arm, name)) for arm in arms]
        rows.append(row)
    return table(rows)


def sweep_text(cells: Cells) -> str:
    """Test prune ratios in ascending order, to the first failure."""
    largest = None
    for prune_ratio, arm in SWEEP.items():
        if arm not in cells:
            return f'Prune ratio {prune_ratio}: not run.'
        gap = paired(differences(cells, arm, 'full', 'value'))
        if verdict(gap) != 'lossless':
            break
        largest = prune_ratio
    else:
        return f'Lossless at every prune ratio up to {largest}.'
    tested = f'stopped at {prune_ratio} ({verdict(gap)}: {interval(gap)})'
    if largest is None:
        return f'No prune ratio was shown to be lossless: {tested}.'
    return f'The largest lossless prune ratio is {largest}: {tested}.'


# Pictures


def draw(suite: str, cells: Cells) -> Path:
    """Draw a suite: metric over samples and time, kept share, classes."""
    classes = class_names(cells) if 'full' in cells else []
    figure, grid = plt.subplots(2, 2, figsize=(10, 7.5))
    axes = grid.ravel()
    draw_curves(axes, cells)
    draw_kept(axes[2], cells)
    if classes:
        draw_classes(axes[3], cells, classes)
    else:
        axes[3].remove()
    figure.suptitle(suite)
    figure.tight_layout()
    return save(figure, suite)


def draw_curves(axes: Sequence[Axes], cells: Cells) -> None:
    """Draw the mean metric of each arm over samples and wall-clock."""
    for arm in [arm for arm in CORE if arm in cells]:
        runs = list(cells[arm].values())
        metric = runs[0]['metric']
        style = dict(marker='.', color=COLORS[arm])
        values = mean_curve(runs, metric)
        samples = mean_curve(runs, 'samples_seen')
        seconds = mean_curve(runs, 'train_seconds')
        axes[0].plot(samples, values, label=f'{arm} ({len(runs)})', **style)
        axes[1].plot(seconds, values, **style)
    axes[0].set(xlabel='samples seen', ylabel=metric)
    axes[1].set(xlabel='seconds of training, wall-clock')
    axes[0].legend(title='arm (seeds)')


def draw_kept(axis: Axes, cells: Cells) -> None:
    """Draw the share kept in each round of the first seed."""
    for arm in ('infobatch', 'random'):
        if arm in cells:
            rounds = next(iter(cells[arm].values()))['rounds']
            kept = [100 * line['kept'] / line['total'] for line in rounds]
            axis.plot(kept, drawstyle='steps-mid', color=COLORS[arm])
    axis.set(xlabel='round', ylabel='kept (%)', ylim=(0, 105))


def draw_classes(axis: Axes, cells: Cells, classes: Sequence[str]) -> None:
    """Draw which classes gain or lose, with their 90 % intervals."""
    arms = [arm for arm in CORE if arm in cells and arm != 'full']
    for shift, arm in enumerate(arms):
        gaps = [class_gap(cells, arm, name) for name in classes]
        axis.errorbar(
            [gap.mean for gap in gaps],
            [row + 0.25 * (shift - 1) for row in range(len(classes))],
            xerr=[
                [gap.mean - gap.low for gap in gaps],
                [gap.high - gap.mean for gap in gaps],
            ],
            fmt='.',
            color=COLORS[arm],
        )
    axis.axvline(0, color='grey', linewidth=0.8)
    axis.set(xlabel='IoU less that of full', yticks=range(len(classes)))
    axis.set_yticklabels(classes)
    axis.invert_yaxis()


def mean_curve(runs: Sequence[Cell], key: str) -> list[float]:
    """Return the mean over runs of what stood at each validation."""
    values = ([val[key] for val in run['validations']] for run in runs)
    return [statistics.mean(at) for at in zip(*values, strict=True)]


# Where pruning pays


def map_table(cells_of: Mapping[str, Cells]) -> str:
    """Return the gain at equal cost by redundancy and length."""
    rows = [['suite', 'seeds', '`full`', 'saved', 'variance ratio']]
    rows[0] += [f'over `{control}`' for control in MAP_CONTROLS]
    for suite, cells in cells_of.items():
        runs = list(cells['infobatch'].values())
        row = [f'`{suite}`', str(len(runs))]
        row.append(spread(c['value'] for c in cells['full'].values()))
        saved = statistics.mean(saved_shares(cells, 'samples_seen'))
        row += [f'{saved:.1%}', f'{mean_variance_ratio(runs):.2f}']
        for control in MAP_CONTROLS:
            gains = differences(cells, 'infobatch', control, 'value')
            row.append(interval(paired(gains)) if gains else '')
        rows.append(row)
    return table(rows)


def draw_map(cells_of: Mapping[str, Cells]) -> Path:
    """Draw the gain at equal cost over redundancy and length."""
    controls = MAP_CONTROLS[1:]
    gains = np.full((len(controls), len(NEAR), len(LENGTHS)), np.nan)
    figure, axes = plt.subplots(1, len(controls), figsize=(15, 3.4))
    for place in np.ndindex(gains.shape):
        control, y, x = place
        cells = cells_of.get(near_suite(NEAR[y], list(LENGTHS)[x]))
        if not cells:
            continue
        values = differences(cells, 'infobatch', controls[control], 'value')
        if values:
            gap = paired(values)
            gains[place] = gap.mean
            text = interval(gap).replace(' ', '\n', 1)
            axes[control].text(x, y, text, ha='center', va='center')
    # One scale, and light colours under the text.
    limit = 1.5 * np.nanmax(np.abs(gains))
    for axis, control, shown in zip(axes, controls, gains, strict=True):
        image = axis.imshow(
            shown, cmap='PiYG', vmin=-limit, vmax=limit, aspect='auto'
        )
        figure.colorbar(image, ax=axis, label='points of mIoU')
        axis.set(
            title=f'infobatch over {control}',
            xlabel='length of training',
            ylabel='near duplicates (%)',
            xticks=range(len(LENGTHS)),
            xticklabels=list(LENGTHS),
            yticks=range(len(NEAR)),
            yticklabels=NEAR,
        )
    figure.tight_layout()
    return save(figure, 'map')


def save(figure: Figure, name: str) -> Path:
    """Write a picture and close it."""
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / f'{name}.png'
    figure.savefig(path, dpi=80, metadata=dict(Software=None))
    plt.close(figure)
    return path


def mean_variance_ratio(runs: Sequence[Cell]) -> float:
    """Return the mean variance ratio of the rounds that were pruned."""
    return statistics.mean(
        line['variance_ratio']
        for run in runs
        for line in run['rounds']
        if line['variance_ratio'] > 0
    )


def prediction_table(cells_of: Mapping[str, Cells]) -> str:
    """Return how well the variance ratio ranks the suites by their gain.

    Over all suites, and among those of equal length, since everything
    depends on the length and that is known without any score.
    """
    ratios = {
        suite: mean_variance_ratio(list(cells['infobatch'].values()))
        for suite, cells in cells_of.items()
    }
    by_length = [
        [name for p in NEAR if (name := near_suite(p, length)) in cells_of]
        for length in LENGTHS
    ]
    of_equal_length = [group for group in by_length if len(group) > 1]
    head = 'variance ratio against the gain over, rank correlation, p, '
    head += 'at equal length, p'
    rows = [head.split(', ')]
    for control in MAP_CONTROLS:
        against = {
            suite: differences(cells, 'infobatch', control, 'value')
            for suite, cells in cells_of.items()
        }
        if not all(against.values()):
            continue
        gains = {s: statistics.mean(values) for s, values in against.items()}
        row = [f'`{control}`']
        for groups in ([list(cells_of)], of_equal_length):
            if not groups:
                row += ['', '']
                continue
            rank, p = rank_test(
                [
                    ([ratios[s] for s in group], [gains[s] for s in group])
                    for group in groups
                ]
            )
            row += [f'{rank:+.2f}', f'{p:.3f}']
        rows.append(row)
    return table(rows)


# The file


def suite_text(suite: str, cells: Cells) -> str:
    """Return all that is said of a suite."""
    parts = [arms_table(cells)]
    if {'full', 'infobatch'} <= cells.keys():
        parts += [power_text(cells), controls_table(cells)]
        if suite == 'digits':
            parts.append(sweep_text(cells))
        if SUITES[suite].metric == 'mIoU':
            arms = [arm for arm in CLASS_ARMS if arm in cells]
            parts.append(class_table(cells, arms))
        parts.append(picture(f'Curves of {suite}', draw(suite, cells)))
    return '\n\n'.join(parts)


def picture(text: str, path: Path) -> str:
    """Return a link to a picture."""
    return f'![{text}]({path.parent.name}/{path.name})'


def replace_block(text: str, name: str, content: str) -> str:
    """Put a generated block between its marks, or at the end."""
    begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
    block = f'{begin}\n{content}\n{end}'
    pattern = re.compile(f'{re.escape(begin)}.*?{re.escape(end)}', re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text)
    return f'{text.rstrip()}\n\n## {name}\n\n{block}\n'


def main() -> None:
    """Write the generated blocks of RESULTS.md."""
    text = RESULTS.read_text()
    cells_of = {suite: read_cells(suite) for suite in SUITES}
    cells_of = {suite: cells for suite, cells in cells_of.items() if cells}
    on_map, in_pairs = {}, {}
    for suite, cells in cells_of.items():
        if suite.endswith('-paired'):
            in_pairs[suite.removesuffix('-paired')] = cells
            continue
        if suite in MAP and CORE.keys() <= cells.keys():
            on_map[suite] = cells
        if suite not in MAP or suite == 'digits':
            text = replace_block(text, suite, suite_text(suite, cells))
    if in_pairs:
        text = replace_block(text, 'efficiency', efficiency_table(in_pairs))
    if len(on_map) > 1:
        link = picture('Gain at equal cost', draw_map(on_map))
        parts = [map_table(on_map), prediction_table(on_map), link]
        text = replace_block(text, 'map', '\n\n'.join(parts))
    RESULTS.write_text(text)


if __name__ == '__main__':
    main()
