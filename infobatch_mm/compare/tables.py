"""Tables and pictures of finished cells."""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..host.packages import require
from ..records import kept_percent
from .cells import Result, Results, is_pruned, share_of
from .statistics import (
    MARGIN,
    Paired,
    paired,
    power,
    seeds_needed,
    verdict,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of which is the head, as a Markdown table."""
    head, *body = (f'| {" | ".join(row)} |' for row in rows)
    return '\n'.join([head, '|' + '---|' * len(rows[0]), *body])


def decimals(values: Iterable[float]) -> str:
    """Return the format of a metric: percent, or something like a loss."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0)
    return '.2f' if largest >= 2 else '.4f'


def spread(values: Iterable[float], form: str = '.2f') -> str:
    """Return mean and standard deviation, of runs that did not diverge."""
    values = list(values)
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 'diverged'
    text = f'{statistics.mean(known):{form}}'
    if len(known) > 1:
        text += f' ± {statistics.stdev(known):{form}}'
    lost = len(values) - len(known)
    return f'{text} ({lost} diverged)' if lost else text


def interval(gap: Paired, form: str = '+.2f') -> str:
    """Return a mean over seeds with its 90 % interval."""
    if not math.isfinite(gap.mean):
        return 'diverged'
    if gap.seeds < 2:
        return f'{gap.mean:{form}}'
    return f'{gap.mean:{form}} [{gap.low:{form}}, {gap.high:{form}}]'


def differences(
    results: Results, arm: str, to: str, key: str = 'value'
) -> list[float]:
    """Return one arm less another for each seed that both have."""
    ours, theirs = results.get(arm, {}), results.get(to, {})
    seeds = sorted(ours.keys() & theirs.keys())
    return [ours[seed][key] - theirs[seed][key] for seed in seeds]


def saved_shares(results: Results, key: str) -> list[float]:
    """Return the share of a cost that pruning saves, seed by seed."""
    full = results.get('full', {})
    return [
        1 - run[key] / full[seed][key]
        for seed, run in results['infobatch'].items()
        if seed in full
    ]


def arms_table(results: Results, core: Collection[str]) -> str:
    """Return accuracy, cost and verdict of each arm.

    Args:
        results (Results): The finished cells.
        core (Collection): The arms that were planned; others are marked as
            exploratory.
    """
    head = 'arm, seeds, metric, difference to `full`, samples, verdict'
    rows = [head.split(', ')]
    for arm, runs in results.items():
        shares = [share_of(run) for run in runs.values()]
        name = f'`{arm}`' + ('' if arm in core else ' (exploratory)')
        values = spread(run['value'] for run in runs.values())
        against = [] if arm == 'full' else differences(results, arm, 'full')
        gap = paired(against) if against else None
        rows.append(
            [
                name,
                str(len(runs)),
                values,
                interval(gap) if gap else '',
                f'{statistics.mean(shares):.1%}',
                verdict(gap) if gap else '',
            ]
        )
    return table(rows)


def power_text(results: Results) -> str:
    """Say how many seeds the spread asks for."""
    gap = paired(differences(results, 'infobatch', 'full'))
    if gap.seeds < 2:
        return 'One seed says nothing about accuracy.'
    return (
        f'The paired differences of `infobatch` to `full` have a standard '
        f'deviation of {gap.deviation:.2f}: with {gap.seeds} seeds an arm '
        f'that loses nothing is called lossless (margin {MARGIN}) with a '
        f'power of {power(gap.deviation, gap.seeds):.0%}; 80 % would take '
        f'{seeds_needed(gap.deviation)} seeds.'
    )


def controls_table(results: Results) -> str:
    """Return InfoBatch against all other arms, by the seeds they share."""
    rows = [['`infobatch` against', 'seeds', 'difference']]
    for arm in [arm for arm in results if arm not in ('full', 'infobatch')]:
        against = differences(results, 'infobatch', arm)
        if against:
            gap = paired(against)
            rows.append([f'`{arm}`', str(gap.seeds), interval(gap)])
    if len(rows) == 1:
        return 'The controls at equal cost, `random` and `short`: not run.'
    return table(rows)


def efficiency_table(results_of: Mapping[str, Results]) -> str:
    """Return which part of the samples saved is time saved.

    From pairs that shared a core, so that what else the machine did fell on
    both alike; in CPU time, which is what each had of the core, and in
    wall-clock.
    """
    head = 'suite, pairs, samples saved'
    for time in ('CPU time', 'wall-clock'):
        head += f', {time} saved, efficiency'
    rows = [head.split(', ')]
    for suite, results in results_of.items():
        samples = saved_shares(results, 'samples_seen')
        row = [f'`{suite}`', str(len(samples))]
        row += [f'{statistics.mean(samples):.1%}']
        for key in ('cpu_seconds', 'train_seconds'):
            seconds = saved_shares(results, key)
            gains = [a / b for a, b in zip(seconds, samples, strict=True)]
            row.append(f'{statistics.mean(seconds):.1%}')
            row.append(interval(paired(gains), '.2f'))
        rows.append(row)
    return table(rows)


def class_names(results: Results) -> list[str]:
    """Return the classes whose IoU was measured, if it was."""
    if 'full' not in results:
        return []
    last = next(iter(results['full'].values()))['validations'][-1]
    return [k.removeprefix('IoU/') for k in last if k.startswith('IoU/')]


def class_gap(results: Results, arm: str, name: str) -> Paired:
    """Return the paired difference of the IoU of a class to full data."""
    last = {
        each: {seed: run['validations'][-1] for seed, run in runs.items()}
        for each, runs in results.items()
    }
    return paired(differences(last, arm, 'full', f'IoU/{name}'))


def class_table(results: Results, arms: Sequence[str]) -> str:
    """Return the mean difference of each class to full data."""
    rows = [['class (seeds)']]
    rows[0] += [f'`{arm}` ({len(results[arm])})' for arm in ('full', *arms)]
    for name in class_names(results):
        last = (run['validations'][-1] for run in results['full'].values())
        row = [name, spread(each[f'IoU/{name}'] for each in last)]
        row += [interval(class_gap(results, arm, name)) for arm in arms]
        rows.append(row)
    return table(rows)


def mean_variance_ratio(results: Results, arm: str = 'infobatch') -> float:
    """Return the mean variance ratio of the rounds that were pruned."""
    return statistics.mean(
        line['variance_ratio']
        for run in results[arm].values()
        for line in run['rounds']
        if is_pruned(line)
    )


# Pictures

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
    """Return the mean over runs of what stood at each validation.

    A schedule shortened to whole epochs may have one more with one seed than
    with another: validations are counted from the last.
    """
    values = [[val[key] for val in run['validations']] for run in runs]
    fewest = min(map(len, values))
    return [
        statistics.mean(at)
        for at in zip(*(each[-fewest:] for each in values), strict=True)
    ]
