"""Which curves of the arms the page draws, and over what."""

import math
from collections.abc import Callable, Sequence

from . import figures, tables
from .arms import Arm, Comparison
from .figures import Curve, Picture
from .progress import clock_at
from .results import Run, training_lines

NO_TIMES = 'Left out: the log has no times of training before a validation.'
NO_CLOCK = (
    'Left out: a run was recorded without its clock, by an earlier version '
    'of infobatch_mm.'
)
CLOCK = 'clock (iterations of all data)'


def metric_pictures(shown: Comparison) -> list[Picture | str]:
    """Draw the metric over samples, training time and the clock."""
    if shown.metric is None or not any(arm.runs for arm in shown.arms):
        return []
    samples = metric_picture(
        shown,
        'samples trained on',
        lambda run: run.images,
        'At each validation, over the samples trained on before it.',
    )
    return [samples, _over_time(shown), _over_clock(shown)]


def metric_picture(
    shown: Comparison,
    cost: str,
    costs: Callable[[Run], Sequence[float]],
    caption: str,
) -> Picture:
    """Draw the metric over one of its costs."""
    assert shown.metric is not None
    many = any(len(arm.runs) > 1 for arm in shown.arms)
    seeds = ' Thin lines are the seeds, thick ones their means.' * many
    curves = [
        Curve(place, _label(arm), costs(run), run.values)
        for place, arm in enumerate(shown.arms)
        for run in arm.runs
    ]
    return figures.metric_chart(
        shown.metric.name, cost, curves, caption + seeds
    )


def _over_time(shown: Comparison) -> Picture | str:
    times = [t for arm in shown.arms for r in arm.runs for t in r.seconds]
    if not all(map(math.isfinite, times)):
        return NO_TIMES
    scale, unit = tables.time_unit(max(times))
    how = 'scaled to what was measured' if shown.shares else 'an estimate'
    return metric_picture(
        shown,
        f'training time ({unit})',
        lambda run: [time / scale for time in run.seconds],
        'Over the training time without validations: the sum of the logged '
        f'seconds an iteration, {how}. Times of two runs compare only if '
        'they had the machine to themselves.',
    )


def _over_clock(shown: Comparison) -> Picture | str:
    if any(run.clock is None for arm in shown.arms for run in arm.runs):
        return NO_CLOCK
    return metric_picture(
        shown,
        CLOCK,
        lambda run: run.clock or [],
        'Over the clock: where runs stand in the schedule. In a pruned round '
        'it moves as far as in a full one, and in a stock run with each '
        'iteration.',
    )


def training_pictures(shown: Comparison) -> list[Picture | str]:
    """Draw the learning rate and the loss over the clock."""
    pictures: list[Picture | str] = []
    for key, name, caption in (
        ('lr', 'learning rate', 'The learning rate over the clock.'),
        (
            'loss',
            'training loss',
            'The logged loss over the clock. Of a pruned run it is the loss '
            'of the samples that it kept: where these are the harder ones, '
            'it lies above that of an equally good stock run.',
        ),
    ):
        curves = [
            curve
            for place, arm in enumerate(shown.arms)
            for curve in _logged(place, arm, key)
        ]
        if curves:
            chart = figures.training_chart(name, CLOCK, curves, caption)
            pictures.append(chart)
    return pictures


def _logged(place: int, arm: Arm, key: str) -> list[Curve]:
    """Return what each run of an arm logged under a key."""
    curves = []
    for run in (cell.run for cell in arm.cells if cell.run):
        lines = [x for x in training_lines(run.work_dir) if key in x]
        clock = clock_at(run.work_dir, [line['iter'] for line in lines])
        if lines and clock is not None:
            values = [line[key] for line in lines]
            curves.append(Curve(place, arm.name, clock, values))
    return curves


def _label(arm: Arm) -> str:
    seeds = len(arm.runs)
    return f'{arm.name} ({seeds} seeds)' if seeds > 1 else arm.name
