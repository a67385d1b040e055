"""The page about a run: all of its parts, rendered to one HTML file.

The page refers to nothing outside itself. The run may be under way, and may
be a stock run: the page says what it lacks, and why.
"""

import math
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

import infobatch_mm

from ..host.packages import versions
from ..records import SCORE_EDGES
from . import figures, results, runs
from .figures import Curve, Picture
from .gallery import Card, Shower
from .results import Run
from .runs import Line
from .samples import last_checkpoint, load_state

SHOWN = 8  # samples in a row of the gallery
# What mmengine writes into the log at a start.
ENVIRONMENT = re.compile(
    r'^ {4}(Python|PyTorch|TorchVision|OpenCV|MMEngine|GPU \S+|seed'
    r'|GPU number): (.+)$',
    re.MULTILINE,
)

NO_ROUNDS = (
    'Left out: no round is recorded in infobatch.jsonl. This is a stock run, '
    'or one that has not finished its first round.'
)
NO_SUMMARY = (
    'Left out: there is no infobatch_summary.json. This is a stock run, or '
    'one that has not finished.'
)
NO_VALIDATIONS = (
    'Left out: no validation is logged. The run has not come to its first '
    'one, or its config has none.'
)
NO_TIMES = 'Left out: the log has no times of training before a validation.'
NO_PRUNED = 'Left out: no sample was kept less often than another.'
OLD_ROUNDS = (
    'Left out: this run was recorded without {}, by an earlier version of '
    'infobatch_mm.'
)


class Gallery(NamedTuple):
    """Samples of the training data, or why there are none."""

    hardest: list[Card]
    pruned_most: list[Card] | str
    rounds: int


def metric_pictures(shown: Sequence[Run]) -> list[Picture | str]:
    """Draw the metric over the samples trained on and the training time."""
    metric = shown[0].metric
    by_samples = figures.metric_chart(
        metric,
        'samples trained on',
        [Curve(run.label, run.images, run.values) for run in shown],
        'At each validation, over the samples trained on before it.',
    )
    times = [time for run in shown for time in run.seconds]
    if not all(map(math.isfinite, times)):
        return [by_samples, NO_TIMES]
    scale, unit = results.time_unit(max(times))
    by_time = figures.metric_chart(
        metric,
        f'training time ({unit})',
        [
            Curve(
                run.label, [time / scale for time in run.seconds], run.values
            )
            for run in shown
        ],
        'Over the training time without validations, estimated from the '
        'logged seconds an iteration. Times of two runs compare only if they '
        'had the machine to themselves.',
    )
    return [by_samples, by_time]


def round_pictures(rounds: Sequence[Line]) -> list[Picture | str]:
    """Draw what the rounds of a pruned run recorded."""
    pictures: list[Picture | str] = [
        figures.kept_chart(rounds),
        figures.weight_chart(rounds),
    ]
    # The first rounds of a resumed run may be of an earlier version.
    scored = [line for line in rounds if 'score_histogram' in line]
    varied = [line for line in rounds if 'variance_ratio' in line]
    pictures.append(
        figures.score_chart(scored, SCORE_EDGES)
        if scored
        else OLD_ROUNDS.format('the histogram of the scores in each round')
    )
    pictures.append(
        figures.variance_chart(varied)
        if varied
        else OLD_ROUNDS.format('the variance that each round added')
    )
    return pictures


def gallery(work_dir: Path) -> Gallery | str:
    """Show the samples that are hardest and those that were pruned most."""
    if not (work_dir / 'last_checkpoint').exists():
        return 'Left out: the run has not saved a checkpoint.'
    try:
        path = last_checkpoint(work_dir)
        state = load_state(path)
        if state is None:
            return (
                'Left out: the checkpoint is of a stock run, with no scores.'
            )
        show = Shower(runs.config(work_dir), state)
        hardest = show.cards(state.hardest[:SHOWN])
        pruned_most = show.cards(state.pruned_most[:SHOWN])
    except Exception as error:
        # The files may be gone, and the data set may be anybody's code. The
        # rest of the page needs neither.
        return (
            'Left out: the checkpoint or the training data could not be read '
            f'here ({type(error).__name__}: {error}).'
        )
    if state.times_kept is None:
        reason = OLD_ROUNDS.format('how often each sample was kept')
        return Gallery(hardest, reason, state.rounds)
    return Gallery(hardest, pruned_most or NO_PRUNED, state.rounds)


def logged_environment(work_dir: Path) -> dict[str, str]:
    """Return what the last start wrote into its log of its environment."""
    log = runs.log_text(runs.last_start(work_dir))
    return dict(ENVIRONMENT.findall(log))


def installed() -> dict[str, str]:
    """Return the packages that are here as the page is made."""
    return {'infobatch_mm': infobatch_mm.__version__, **versions()}


def render(work_dir: Path, baseline_dir: Path | None = None) -> str:
    """Return the page about a run, beside a baseline if one is given."""
    start = runs.last_start(work_dir)
    shown = results.read_both(work_dir, baseline_dir)
    rounds = runs.rounds(work_dir)
    templates = Environment(
        loader=PackageLoader(__package__, '.'),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        duration=results.duration, number=results.number_text
    )
    return templates.get_template('page.html.j2').render(
        nan=math.nan,
        name=work_dir.name,
        baseline=baseline_dir.name if baseline_dir else None,
        start=datetime.strptime(start.name, '%Y%m%d_%H%M%S'),
        runs=shown,
        comparison=results.comparison(shown) if shown else NO_VALIDATIONS,
        metric_pictures=metric_pictures(shown) if shown else [],
        summary=runs.summary(work_dir) or NO_SUMMARY,
        round_pictures=round_pictures(rounds) if rounds else NO_ROUNDS,
        gallery=gallery(work_dir),
        classes=results.class_rows(shown),
        environment=logged_environment(work_dir),
        installed=installed(),
        config=(start / 'vis_data/config.py').read_text(),
    )
