"""The results by class, as the page shows them."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from ..compare.statistics import LEVEL, Paired
from .arms import Arm, Cell, Comparison, pair
from .class_logs import ClassTable
from .results import Run

# The first of these that there is compares runs, else the first of all.
COMPARED = ('IoU', 'f1-score', 'AP')
NO_CLASSES = (
    'Left out: the log has no results by class. In mmseg IoUMetric prints '
    'them; in mmpretrain SingleLabelMetric with average=None, beside Accuracy '
    'in val_evaluator. Both do at log_level INFO only.'
)


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
