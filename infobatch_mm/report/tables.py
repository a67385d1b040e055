"""The tables of the page: numbers as text, and which of them are gains."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..compare.statistics import LEVEL, Paired
from ..compare.tables import decimals
from ..records import Line
from .arms import Arm, Cell, Comparison, verdict
from .results import Metric
from .runs import summary


class Change(NamedTuple):
    """A difference, and whether it is a gain."""

    text: str
    is_gain: bool | None = None  # None: neither
    is_sure: bool = True  # more than chance may be


class Entry(NamedTuple):
    """What stands in the table of the arms, under a label."""

    label: str
    text: str = ''
    change: Change | None = None
    note: str = ''


class Row(NamedTuple):
    """An arm in its table, or a pruned run."""

    name: str
    note: str
    entries: list[Entry]


def number_text(number: float, style: str = '.2f') -> str:
    """Format a number, with a minus as wide as a plus; a dash for NaN."""
    if math.isnan(number):
        return '\N{EN DASH}'
    return format(number, style).replace('-', '\N{MINUS SIGN}')


def time_unit(longest: float) -> tuple[int, str]:
    """Return the unit for times up to one: its seconds, and its name."""
    if longest < 300:
        return 1, 's'
    return (60, 'min') if longest < 3 * 3600 else (3600, 'h')


def duration(seconds: float) -> str:
    """Format a time in the unit that suits it."""
    scale, unit = time_unit(seconds)
    return f'{number_text(seconds / scale, ",.1f")} {unit}'


def spread(values: Sequence[float], style: str) -> str:
    """Format values of several seeds as their mean and deviation."""
    mean = number_text(statistics.mean(values), style)
    if len(values) < 2:
        return mean
    return f'{mean} ± {number_text(statistics.stdev(values), style)}'


def gain(gap: Paired, sign: int, style: str) -> Change:
    """Format a difference; a positive one is a gain if the sign is."""
    is_known = math.isfinite(gap.mean) and gap.mean != 0
    is_gain = sign * gap.mean > 0 if is_known else None
    is_sure = gap.low > 0 or gap.high < 0
    return Change(number_text(gap.mean, f'+{style}'), is_gain, is_sure)


def cost_change(ratio: float, *, is_fair: bool = True) -> Change:
    """Format a cost relative to another; to spend less is a gain."""
    percent = 100 * (ratio - 1)
    is_gain = percent < 0 if is_fair and abs(percent) >= 0.05 else None
    return Change(f'{number_text(percent, "+.1f")} %', is_gain)


def interval(gap: Paired, style: str) -> str:
    """Format the interval of a difference, empty for one seed."""
    if not math.isfinite(gap.low):
        return ''
    ends = (number_text(end, f'+{style}') for end in (gap.low, gap.high))
    return f'[{", ".join(ends)}]'


def headline(shown: Comparison) -> str | None:
    """Say in a sentence what came out; None where nothing is compared."""
    metric, other = shown.metric, shown.reference
    if shown.verdict:
        return shown.verdict
    if metric is None or other is None:
        return None
    gap = shown.gap(shown.subject, other)
    words = verdict(gap, metric)
    names = f'{shown.subject.name} against {other.name}'
    if gap is None or gap.seeds < 2 or not math.isfinite(gap.mean):
        return f'{names}, {words}.'
    style = decimals([cell.value for cell in other.cells])
    text = number_text(gap.mean, f'+{style}')
    range_ = interval(gap, style)
    range_ = range_ and f', {2 * LEVEL - 1:.0%} interval {range_}'
    return (
        f'{names}: {text} {metric.name} over {gap.seeds} seeds{range_}: '
        f'{words}.'
    )


def arm_rows(shown: Comparison, *, is_fair: bool) -> list[Row]:
    """Return what each arm reached and cost.

    Args:
        shown (Comparison): The arms.
        is_fair (bool): Whether the times of the runs can be compared.
    """
    known = [arm for arm in shown.arms if _values(arm)]
    values = [value for arm in known for value in _values(arm)]
    style = decimals(values)
    return [_arm_row(shown, arm, style, is_fair) for arm in known]


def columns(rows: Sequence[Row]) -> list[str]:
    """Return the labels of all rows, in the order of the fullest."""
    fullest = max((row.entries for row in rows), key=len, default=[])
    labels = [entry.label for row in rows for entry in row.entries]
    return list(dict.fromkeys([*(e.label for e in fullest), *labels]))


def _counted(arm: Arm) -> list[Cell]:
    """Return the runs whose means are shown: while none is done, all."""
    done = [cell for cell in arm.cells if cell.is_done]
    return done or arm.cells


def _values(arm: Arm) -> list[float]:
    return [c.value for c in _counted(arm) if math.isfinite(c.value)]


def _arm_row(shown: Comparison, arm: Arm, style: str, is_fair: bool) -> Row:
    metric, reference = shown.metric, shown.reference
    assert metric is not None
    seeds = [str(cell.seed) for cell in arm.cells if cell.seed is not None]
    entries = [Entry(f'{metric.name}, last', spread(_values(arm), style))]
    others = []
    if reference and arm is not reference:
        others.append((f'difference to {reference.name}', arm, reference))
    if len(shown.arms) > 2 and arm not in (shown.subject, reference):
        label = f'{shown.subject.name} against it'
        others.append((label, shown.subject, arm))
    entries += [
        _difference(label, shown.gap(a, b), metric, style)
        for label, a, b in others
    ]
    best = [run.best for run in arm._replace(cells=_counted(arm)).runs]
    if best := [value for value in best if math.isfinite(value)]:
        entries.append(Entry(f'{metric.name}, best', spread(best, style)))
    entries += _costs(shown, arm, is_fair)
    note = f'{len(seeds)} seeds: ' if len(seeds) > 1 else 'seed '
    note = note + ', '.join(seeds) if seeds else f'{len(arm.cells)} runs'
    if arm.at_cost_of:
        note += f'\nat the cost of {arm.at_cost_of}'
    return Row(arm.name, note, entries)


def _difference(
    label: str, gap: Paired | None, metric: Metric, style: str
) -> Entry:
    words = verdict(gap, metric)
    if gap is None:
        return Entry(label, note=words)
    note = '\n'.join(filter(None, (interval(gap, style), words)))
    return Entry(label, change=gain(gap, metric.sign, style), note=note)


def _costs(shown: Comparison, arm: Arm, is_fair: bool) -> list[Entry]:
    samples = '{:.1%}'.format if shown.shares else '{:,.0f}'.format
    kinds: list[tuple[str, Callable, Callable[[Cell], float], bool]] = [
        ('samples trained on', samples, lambda cell: cell.samples, True),
        ('training time', duration, lambda cell: cell.seconds, is_fair),
    ]
    entries = []
    for label, style, value, fair in kinds:
        costs = [value(cell) for cell in _counted(arm)]
        text = style(statistics.mean(costs))
        change = _cost_change(shown, arm, value, fair)
        entries.append(Entry(label, text, change))
    runs = arm._replace(cells=_counted(arm)).runs
    if done := [run.iterations[-1] for run in runs]:
        text = f'{statistics.mean(done):,.0f}'
        entries.insert(1, Entry('iterations', text))
    return entries


def _cost_change(
    shown: Comparison, arm: Arm, value: Callable[[Cell], float], fair: bool
) -> Change | None:
    """Return the cost of an arm relative to the reference's, seed by seed.

    Of runs that are done: None where an arm has none.
    """
    reference = shown.reference
    if reference is None or arm is reference:
        return None
    theirs, ours = (
        {cell.seed: value(cell) for cell in each.cells if cell.is_done}
        for each in (reference, arm)
    )
    if not ours or not theirs:
        return None
    common = ours.keys() & theirs.keys() or None
    sums = [
        statistics.mean(c for seed, c in costs.items() if _is_in(seed, common))
        for costs in (ours, theirs)
    ]
    ratio = sums[0] / sums[1] if sums[1] else math.nan
    return cost_change(ratio, is_fair=fair)


def _is_in(seed: int | None, seeds: object) -> bool:
    return seeds is None or seed in seeds  # type: ignore[operator]


def pruned_rows(arms: Sequence[Arm]) -> list[Row]:
    """Return what each pruned arm has saved, of the runs that have ended."""
    rows = []
    for arm in arms:
        folders = [cell.run.work_dir for cell in arm.cells if cell.run]
        ended = list(filter(None, map(summary, folders)))
        if ended:
            rows.append(_pruned_row(arm, ended))
    return rows


def _pruned_row(arm: Arm, ended: Sequence[Line]) -> Row:
    def mean(key: str, per: str | None = None) -> float:
        return statistics.mean(s[key] / (s[per] if per else 1) for s in ended)

    texts = {
        'policy': '; '.join(dict.fromkeys(s['policy'] for s in ended)),
        'rounds': f'{mean("rounds"):,.0f}, of {ended[0]["total"]:,} samples',
        'trained on': (
            f'{mean("samples_seen"):,.0f} of {mean("samples_budget"):,.0f}'
        ),
        'samples saved': f'{mean("saved_ratio"):.1%}',
        # Not a second number for the training time, but a share of it.
        'time spent on pruning': (
            f'{mean("overhead_seconds", "train_seconds"):.1%}'
        ),
    }
    runs = len(ended)
    note = f'mean of {runs} runs' if runs > 1 else ''
    return Row(arm.name, note, [Entry(*item) for item in texts.items()])
