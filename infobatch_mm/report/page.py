"""The page about runs: all of its parts, rendered to one HTML file.

The page refers to nothing outside itself. A run may be under way, and may be
a stock run: the page says what it lacks, and why.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

import infobatch_mm

from ..compare.statistics import LEVEL
from ..host.packages import versions
from ..records import SCORE_EDGES
from . import curves, round_figures, runs, sources, tables
from .arms import Comparison, class_table, pace_warning
from .figures import ARM_COLORS, Picture
from .gallery import OLD_ROUNDS, gallery, last_state
from .results import Run
from .runs import Line
from .samples import State, class_names

PAGE_FILE = 'report.html'
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
GONE = 'Left out: the work directory of the run is not there.'


def round_pictures(rounds: Sequence[Line]) -> list[Picture | str]:
    """Draw what the rounds of a pruned run recorded."""
    pictures: list[Picture | str] = [
        round_figures.kept_chart(rounds),
        round_figures.weight_chart(rounds),
    ]
    # The first rounds of a resumed run may be of an earlier version.
    scored = [line for line in rounds if 'score_histogram' in line]
    varied = [line for line in rounds if 'variance_ratio' in line]
    pictures.append(
        round_figures.score_chart(scored, SCORE_EDGES)
        if scored
        else OLD_ROUNDS.format('the histogram of the scores in each round')
    )
    pictures.append(
        round_figures.variance_chart(varied)
        if varied
        else OLD_ROUNDS.format('the variance that each round added')
    )
    return pictures


def last_scores(state: State | str, rounds: Sequence[Line]) -> list[Picture]:
    """Draw the scores in the last checkpoint, if there are any."""
    if isinstance(state, str) or not state.scores.isfinite().any():
        return []
    thresholds = [line['threshold'] for line in rounds if line['threshold']]
    threshold = thresholds[-1] if thresholds else None
    chart = round_figures.last_scores_chart
    return [chart(state.scores.numpy(), threshold)]


def logged_environment(work_dir: Path) -> dict[str, str]:
    """Return what the last start wrote into its log of its environment."""
    log = runs.log_text(runs.last_start(work_dir))
    return dict(ENVIRONMENT.findall(log))


def installed() -> dict[str, str]:
    """Return the packages that are here as the page is made."""
    return {'infobatch_mm': infobatch_mm.__version__, **versions()}


def render(*folders: Path | sources.Named) -> str:
    """Return the page about runs.

    Args:
        *folders: Their work directories, or pairs of an arm's name and one;
            or the folder of a comparison.
    """
    named = [(None, f) if isinstance(f, Path) else f for f in folders]
    return page_of(sources.read(named))


def write_comparison(work_dir: Path) -> Path:
    """Write the page about a comparison, from its ``compare.json``.

    Returns:
        Path: The page, in the folder of the comparison.
    """
    page = work_dir / PAGE_FILE
    text = page_of(sources.from_comparison(work_dir))
    page.write_text(text, encoding='utf-8')
    return page


def page_of(shown: Comparison) -> str:
    """Return the page about some arms, as HTML."""
    run = _main_run(shown)
    templates = Environment(
        loader=PackageLoader(__package__, '.'),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(number=tables.number_text)
    templates.globals.update(gain=tables.gain)
    warning = pace_warning(shown.arms)
    rows = tables.arm_rows(shown, is_fair=warning is None)
    return templates.get_template('page.html.j2').render(
        shown=shown,
        title=_title(shown),
        about=_about(shown),
        arm_colors=ARM_COLORS,
        headline=tables.headline(shown),
        warning=warning,
        arms=rows or NO_VALIDATIONS,
        columns=tables.columns(rows),
        percent=f'{2 * LEVEL - 1:.0%}',
        metric_pictures=curves.metric_pictures(shown),
        training_pictures=curves.training_pictures(shown),
        pruned=tables.pruned_rows(shown.arms) or NO_SUMMARY,
        classes=class_table(shown, class_names(run.work_dir) if run else ()),
        installed=installed(),
        of_run=_of_run(shown, run),
        **_main_parts(run),
    )


def _title(shown: Comparison) -> str:
    """Return the names of the config and of the policy."""
    return ' · '.join(filter(None, (shown.config, shown.policy)))


def _about(shown: Comparison) -> str:
    """Say which runs the page shows."""
    runs_ = [c.run for arm in shown.arms for c in arm.cells if c.run]
    starts = sorted(map(_start, runs_))
    if len(runs_) == 1:
        return f'{runs_[0].work_dir.name}, last started {starts[0]}.'
    names = ', '.join(arm.name for arm in shown.arms)
    text = f'{len(runs_)} runs: {names}.'
    if starts:
        text += f' Started between {starts[0]} and {starts[-1]}.'
    return text


def _of_run(shown: Comparison, run: Run | None) -> str:
    """Name the run that a part is about, if there are several."""
    if run is None or sum(len(arm.cells) for arm in shown.arms) < 2:
        return ''
    seed = '' if run.seed is None else f', seed {run.seed}'
    return f' of {shown.subject.name}{seed}'


def _main_run(shown: Comparison) -> Run | None:
    """Return the run whose rounds and samples are shown."""
    found = [cell.run for cell in shown.subject.cells if cell.run]
    return found[0] if found else None


def _main_parts(run: Run | None) -> dict[str, object]:
    """Return the parts of the page that are about one run."""
    if run is None:
        parts = ('round_pictures', 'gallery', 'config')
        return dict.fromkeys(parts, GONE) | dict(environment={})
    folder = run.work_dir
    rounds, state = runs.rounds(folder), last_state(folder)
    config = runs.last_start(folder) / 'vis_data/config.py'
    return dict(
        round_pictures=(
            round_pictures(rounds) + last_scores(state, rounds)
            if rounds
            else NO_ROUNDS
        ),
        gallery=gallery(folder, state),
        environment=logged_environment(folder),
        config=config.read_text(),
    )


def _start(run: Run) -> datetime:
    name = runs.last_start(run.work_dir).name
    return datetime.strptime(name, '%Y%m%d_%H%M%S')
