"""What a run reached and spent, as the tables of the page show it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..records import METRICS, NO_METRICS
from . import runs as of_run
from .runs import ClassTable

NO_CLASSES = (
    'Left out: the log has no results by class. Only the IoUMetric of mmseg '
    'prints them, at log_level INFO.'
)


class Run(NamedTuple):
    """What the page needs of a run."""

    label: str
    metric: str
    values: list[float]  # of the metric, at each validation
    iterations: list[int]  # before each validation, as the next two
    images: list[int]
    seconds: list[float]
    tables: dict[int, ClassTable]


class Row(NamedTuple):
    """What a run reached or spent, and what its baseline did."""

    name: str
    values: list[str]
    difference: str


class ClassRows(NamedTuple):
    """The results by class, beside the first of them in the baseline."""

    metrics: list[str]
    table: ClassTable
    baseline: dict[str, float]
    caption: str


def read(work_dir: Path, label: str) -> Run | None:
    """Read a run; None if it has no validation yet."""
    lines = of_run.validations(work_dir)
    last = lines[-1] if lines else {}
    names = [name for name in last if name not in NO_METRICS]
    if not names:
        return None
    metric = next((name for name in METRICS if name in names), names[0])
    return Run(
        label,
        metric,
        [line.get(metric, math.nan) for line in lines],
        of_run.iterations(work_dir),
        of_run.images_seen(work_dir),
        of_run.train_seconds(work_dir),
        of_run.per_class(work_dir),
    )


def read_both(work_dir: Path, baseline_dir: Path | None) -> list[Run]:
    """Read a run and its baseline, as far as they have a metric in common."""
    runs = [read(work_dir, work_dir.name)]
    if baseline_dir:
        runs.append(read(baseline_dir, f'{baseline_dir.name} (baseline)'))
    if runs[0] is None:
        return []
    return [run for run in runs if run and run.metric == runs[0].metric]


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


def comparison(runs: Sequence[Run]) -> list[Row]:
    """Return what a run, and its baseline, reached and spent."""
    metric = runs[0].metric
    reached = {
        f'{metric}, last': [run.values[-1] for run in runs],
        f'{metric}, best': [max(run.values) for run in runs],
    }
    rows = [
        Row(name, list(map(number_text, values)), difference(values))
        for name, values in reached.items()
    ]
    spent: dict[str, tuple[list, Callable[[Any], str]]] = {
        'iterations': ([run.iterations[-1] for run in runs], '{:,}'.format),
        'samples trained on': (
            [run.images[-1] for run in runs],
            '{:,}'.format,
        ),
        'training time, estimated': (
            [run.seconds[-1] for run in runs],
            duration,
        ),
    }
    return rows + [
        Row(name, list(map(style, costs)), change(costs))
        for name, (costs, style) in spent.items()
    ]


def difference(values: Sequence[float]) -> str:
    """Format how far the first of two numbers lies from the last."""
    return number_text(values[0] - values[-1], '+.2f')


def change(costs: Sequence[float]) -> str:
    """Format how much the first of two costs is above the last."""
    ratio = costs[0] / costs[-1] if costs[-1] else math.nan
    return f'{number_text(100 * (ratio - 1), "+.1f")} %'


def class_rows(runs: Sequence[Run]) -> ClassRows | str:
    """Return a run's last results by class, beside the baseline's."""
    if not runs or not runs[0].tables:
        return NO_CLASSES
    last, table = max(runs[0].tables.items())
    metrics = list(next(iter(table.values())))
    caption = f'Validation {last + 1} of {len(runs[0].values)}, in percent.'
    baseline = {}
    for run in runs[1:]:
        _, other = max(run.tables.items(), default=(0, {}))
        baseline = {name: row[metrics[0]] for name, row in other.items()}
        caption += (
            f' Beside it the last {metrics[0]} of the baseline.'
            if baseline
            else ' The log of the baseline has no results by class.'
        )
    return ClassRows(metrics, table, baseline, caption)
