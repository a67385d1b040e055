"""Make a page about a run, from what it left in its work directory.

tools/report.py WORK_DIR [BASELINE_WORK_DIR] [--out report.html]

The page is one HTML file that refers to nothing outside itself. The run may
be under way, and may be a stock run: the page says what it lacks, and why.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import infobatch_mm
import read_run
import report_figures as figures
import report_gallery
from infobatch_mm.records import SCORE_EDGES
from read_run import ClassTable, Line
from report_figures import Curve, Picture

# The metric of the page is the first of these that a run has, else its first.
METRICS = ('mIoU', 'accuracy/top1')
NO_METRICS = ('step', 'time', 'data_time')
SHOWN = 8  # samples in a row of the gallery
# What mmengine writes into the log at a start.
ENVIRONMENT = re.compile(
    r'^ {4}(Python|PyTorch|TorchVision|OpenCV|MMEngine|GPU \S+|seed'
    r'|GPU number): (.+)$',
    re.MULTILINE,
)
PACKAGES = re.compile(r'(onedl-)?mm(engine|cv|segmentation|pretrain|det)')

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
NO_CLASSES = (
    'Left out: the log has no results by class. Only the IoUMetric of mmseg '
    'prints them, at log_level INFO.'
)
NO_TIMES = 'Left out: the log has no times of training before a validation.'
NO_PRUNED = 'Left out: no sample was kept less often than another.'
OLD_ROUNDS = (
    'Left out: this run was recorded without {}, by an earlier version of '
    'infobatch_mm.'
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


class Gallery(NamedTuple):
    """Samples of the training data, or why there are none."""

    hardest: list[report_gallery.Card]
    pruned_most: list[report_gallery.Card] | str
    rounds: int


def read(work_dir: Path, label: str) -> Run | None:
    """Read a run; None if it has no validation yet."""
    lines = read_run.validations(work_dir)
    last = lines[-1] if lines else {}
    names = [name for name in last if name not in NO_METRICS]
    if not names:
        return None
    metric = next((name for name in METRICS if name in names), names[0])
    return Run(
        label,
        metric,
        [line.get(metric, math.nan) for line in lines],
        read_run.iterations(work_dir),
        read_run.images_seen(work_dir),
        read_run.train_seconds(work_dir),
        read_run.per_class(work_dir),
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


def metric_pictures(runs: Sequence[Run]) -> list[Picture | str]:
    """Draw the metric over the samples trained on and the training time."""
    metric = runs[0].metric
    by_samples = figures.metric_chart(
        metric,
        'samples trained on',
        [Curve(run.label, run.images, run.values) for run in runs],
        'At each validation, over the samples trained on before it.',
    )
    times = [time for run in runs for time in run.seconds]
    if not all(map(math.isfinite, times)):
        return [by_samples, NO_TIMES]
    scale, unit = time_unit(max(times))
    by_time = figures.metric_chart(
        metric,
        f'training time ({unit})',
        [
            Curve(
                run.label, [time / scale for time in run.seconds], run.values
            )
            for run in runs
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


def gallery(work_dir: Path) -> Gallery | str:
    """Show the samples that are hardest and those that were pruned most."""
    if not (work_dir / 'last_checkpoint').exists():
        return 'Left out: the run has not saved a checkpoint.'
    try:
        path = report_gallery.last_checkpoint(work_dir)
        state = report_gallery.load_state(path)
        if state is None:
            return (
                'Left out: the checkpoint is of a stock run, with no scores.'
            )
        show = report_gallery.Shower(read_run.config(work_dir), state)
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


def versions(work_dir: Path) -> dict[str, str]:
    """Return what the last start wrote into its log of its environment."""
    log = read_run.log_text(read_run.last_start(work_dir))
    return dict(ENVIRONMENT.findall(log))


def installed() -> dict[str, str]:
    """Return the packages that are here as the page is made."""
    found = {
        dist.name: dist.version
        for dist in metadata.distributions()
        if PACKAGES.fullmatch(dist.name)
    }
    return {'infobatch_mm': infobatch_mm.__version__, **found}


def render(work_dir: Path, baseline_dir: Path | None = None) -> str:
    """Return the page about a run, beside a baseline if one is given."""
    start = read_run.last_start(work_dir)
    runs = read_both(work_dir, baseline_dir)
    rounds = read_run.rounds(work_dir)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration, number=number_text)
    return environment.get_template('report.html.j2').render(
        nan=math.nan,
        name=work_dir.name,
        baseline=baseline_dir.name if baseline_dir else None,
        start=datetime.strptime(start.name, '%Y%m%d_%H%M%S'),
        runs=runs,
        comparison=comparison(runs) if runs else NO_VALIDATIONS,
        metric_pictures=metric_pictures(runs) if runs else [],
        summary=read_run.summary(work_dir) or NO_SUMMARY,
        round_pictures=round_pictures(rounds) if rounds else NO_ROUNDS,
        gallery=gallery(work_dir),
        classes=class_rows(runs),
        versions=versions(work_dir),
        installed=installed(),
        config=(start / 'vis_data/config.py').read_text(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('baseline', type=Path, nargs='?')
    parser.add_argument(
        '--out', type=Path, help='the page (default: WORK_DIR/report.html)'
    )
    args = parser.parse_args()
    try:
        page = render(
            *(p and p.resolve() for p in (args.work_dir, args.baseline))
        )
    except FileNotFoundError as error:
        parser.error(str(error))
    out = args.out or args.work_dir / 'report.html'
    out.write_text(page, encoding='utf-8')
    print(f'Report: {out}')


if __name__ == '__main__':
    main()
