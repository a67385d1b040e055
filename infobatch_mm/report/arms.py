"""The arms of a page, how far they are apart, and what that proves.

An arm is runs that differ by their seed alone: what belongs to two of them is
never averaged.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..compare.statistics import LEVEL, Paired, is_constant, paired
from ..host.packages import MissingExtraError
from .results import Metric, Run
from .runs import ClassTable

ONE_SEED = 'one seed: no verdict'
NO_PAIRS = 'no seed in common that is done: no verdict'
DIVERGED = 'a run that diverged: no verdict'
ALIKE = 'the same difference with each seed: no verdict'
NO_SCIPY = 'no interval without scipy: pip install "infobatch_mm[compare]"'
# Runs of our own suites that shared a core differed by at most 5 % in the
# seconds of an iteration, pruned or not; beside other work it was up to 78 %.
# A tenth lies well above the first, and below what pruning saves.
PACE_LIMIT = 0.1


# The first of these that there is compares runs, else the first of all.
COMPARED = ('IoU', 'f1-score', 'AP')
NO_CLASSES = (
    'Left out: the log has no results by class. In mmseg IoUMetric prints '
    'them; in mmpretrain SingleLabelMetric with average=None, beside Accuracy '
    'in val_evaluator. Both do at log_level INFO only.'
)


class Cell(NamedTuple):
    """What a run of an arm reached and cost."""

    seed: int | None
    value: float
    samples: float  # trained on; in a comparison the share of all
    seconds: float  # of training
    run: Run | None  # None where the work directory is gone

    @property
    def is_done(self) -> bool:
        """bool: Whether it has come to the end of its schedule."""
        return self.run is None or self.run.is_done


class Arm(NamedTuple):
    """Runs that differ by their seed alone."""

    name: str
    cells: list[Cell]
    at_cost_of: str | None = None

    @property
    def runs(self) -> list[Run]:
        """list[Run]: Those with a validation, for the curves."""
        return [c.run for c in self.cells if c.run and c.run.values]

    @property
    def prunes(self) -> bool:
        """bool: Whether its runs leave samples out round by round."""
        return any(cell.run and cell.run.prunes for cell in self.cells)


class Comparison(NamedTuple):
    """All that a page shows of its arms."""

    config: str
    policy: str | None  # of the subject
    metric: Metric | None  # None before the first validation
    arms: list[Arm]
    subject: Arm  # the page is about it
    reference: Arm | None  # what all others are compared with
    gaps: dict[tuple[str, str], Paired]  # one arm less another
    verdict: str | None = None  # in the words of `infobatch compare`
    notes: Sequence[str] = ()
    shares: bool = False  # whether samples are shares

    def gap(self, arm: Arm, other: Arm | None) -> Paired | None:
        """Return how far an arm lies above another, None if unknown."""
        return self.gaps.get((arm.name, other.name)) if other else None


class ClassRow(NamedTuple):
    """The results of a class."""

    name: str
    values: list[float]  # of each metric; of several arms, of the reference
    gaps: list[Paired]  # of each other arm


class Classes(NamedTuple):
    """The results by class of all arms."""

    base: str  # the arm whose values are shown
    metrics: list[str]  # in which it is measured
    others: list[str]  # the arms whose differences to it are shown
    rows: list[ClassRow]
    caption: str


def pair(
    arm: Arm, other: Arm, value: Callable[[Cell], float]
) -> Paired | None:
    """Return how far an arm lies above another, by the seeds of both.

    Returns:
        Paired | None: None if no seed is common to the two. Without scipy
        there is no interval.
    """
    ours, theirs = (
        {
            c.seed: found
            for c in each.cells
            if math.isfinite(found := value(c)) and c.is_done
        }
        for each in (arm, other)
    )
    common = [seed for seed in ours if seed in theirs and seed is not None]
    pairs = [(ours[seed], theirs[seed]) for seed in common]
    if not pairs and len(ours) == len(theirs) == 1:
        pairs = list(zip(ours.values(), theirs.values(), strict=True))
    if not pairs:
        return None
    differences = [a - b for a, b in pairs]
    try:
        return paired(differences)
    except MissingExtraError:
        mean = sum(differences) / len(differences)
        return Paired(len(pairs), mean, math.nan, -math.inf, math.inf)


def gaps_between(
    arms: Sequence[Arm], subject: Arm, reference: Arm | None
) -> dict[tuple[str, str], Paired]:
    """Compare all arms with the reference, and the subject with all arms."""
    if reference is None:
        return {}
    pairs = [(arm, reference) for arm in arms if arm is not reference]
    pairs += [(subject, arm) for arm, _ in pairs if arm is not subject]
    found = ((a, b, pair(a, b, lambda cell: cell.value)) for a, b in pairs)
    return {(a.name, b.name): gap for a, b, gap in found if gap}


def verdict(gap: Paired | None, metric: Metric) -> str:
    """Say what a difference over seeds proves, or why nothing."""
    if gap is None:
        return NO_PAIRS
    if gap.seeds < 2:
        return ONE_SEED
    if not math.isfinite(gap.mean):
        return DIVERGED
    if not math.isfinite(gap.low):
        return NO_SCIPY
    if is_constant(gap):
        return ALIKE
    ends = sorted((metric.sign * gap.low, metric.sign * gap.high))
    if ends[0] > 0:
        return 'better'
    return 'worse' if ends[1] < 0 else 'indistinguishable'


def pace_warning(arms: Sequence[Arm]) -> str | None:
    """Say so if iterations of like runs took different times.

    Runs are alike if their batches are.
    """
    by_batch: dict[tuple[int, bool], list[tuple[float, str]]] = {}
    for arm in arms:
        for run in arm.runs:
            if math.isfinite(run.pace):
                seed = '' if run.seed is None else f', seed {run.seed}'
                name = f'{arm.name}{seed}'
                by_batch.setdefault(run.batch, []).append((run.pace, name))
    ends = [(min(paces), max(paces)) for paces in by_batch.values()]
    ends = [(low, high) for low, high in ends if low[0] > 0]
    if not ends:
        return None
    low, high = max(ends, key=lambda end: end[1][0] / end[0][0])
    above = high[0] / low[0] - 1
    if above <= PACE_LIMIT:
        return None
    return (
        f'Iterations of equal batches took different times: {low[0]:.3g} s '
        f'({low[1]}) to {high[0]:.3g} s ({high[1]}), {above:.0%} more. If '
        'the runs had other work beside them, or other machines, do not take '
        'the difference in training time for what pruning saves: samples and '
        'iterations tell that.'
    )


def class_table(shown: Comparison, names: Sequence[str]) -> Classes | str:
    """Return the results by class, and how far the arms are apart in them.

    Args:
        shown (Comparison): The arms.
        names (Sequence): The classes, for metrics that only number them.
    """
    ranked = (shown.reference, shown.subject)
    base = next((arm for arm in ranked if arm and _has_classes(arm)), None)
    if base is None:
        return NO_CLASSES
    others = [a for a in shown.arms if a is not base and _has_classes(a)]
    # First what the page is about: a narrow screen shows that without
    # scrolling.
    others.sort(key=lambda arm: arm is not shown.subject)
    tables = [_named(run, names) for run in base.runs if run.tables]
    main = compared_metric(tables[0])
    known = list(next(iter(tables[0].values())))
    metrics = [main] if others else known
    rows = []
    for name in tables[0]:
        values = [_mean(tables, name, metric) for metric in metrics]
        gaps = [_class_gap(arm, base, names, name, main) for arm in others]
        rows.append(ClassRow(name, values, gaps))
    names_of = [arm.name for arm in others]
    return Classes(base.name, metrics, names_of, rows, _caption(shown, rows))


def _has_classes(arm: Arm) -> bool:
    return any(run.tables for run in arm.runs)


def _named(run: Run, names: Sequence[str]) -> ClassTable:
    return named(run.classes(), names)


def _mean(tables: Sequence[ClassTable], name: str, metric: str) -> float:
    known = [table.get(name, {}).get(metric, math.nan) for table in tables]
    return statistics.mean(known)


def _class_gap(
    arm: Arm, base: Arm, names: Sequence[str], name: str, metric: str
) -> Paired:
    def value(cell: Cell) -> float:
        table = _named(cell.run, names) if cell.run else {}
        return table.get(name, {}).get(metric, math.nan)

    unknown = Paired(0, math.nan, math.nan, -math.inf, math.inf)
    return pair(arm, base, value) or unknown


def _caption(shown: Comparison, rows: Sequence[ClassRow]) -> str:
    text = 'At the last validation, in percent.'
    if any(gap.seeds > 1 for row in rows for gap in row.gaps):
        chance = 2 - 2 * LEVEL
        text += (
            ' Mean over the seeds in common. Of classes that do not differ '
            f'{chance:.0%} are marked ▲ or ▼ by chance.'
        )
    silent = [a.name for a in shown.arms if a.runs and not _has_classes(a)]
    if silent:
        text += f' The log of {", ".join(silent)} has no results by class.'
    return text


def named(table: ClassTable, names: Sequence[str]) -> ClassTable:
    """Give the classes of a table their names, if it only numbers them."""
    numbers = [str(index) for index in range(len(table))]
    if list(table) != numbers or len(names) != len(table):
        return table
    return dict(zip(names, table.values(), strict=True))


def compared_metric(table: ClassTable) -> str:
    """Return the metric by which the classes of two runs are compared."""
    metrics = next(iter(table.values()))
    return next((m for m in COMPARED if m in metrics), next(iter(metrics)))
