"""The command line that finds out whether pruning pays on a config."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich import progress
from rich.console import Console

from ..compare import planning, summary
from ..compare.arms import core
from ..compare.cells import Cell, Study, check_same, order
from ..compare.processes import probe, train_command
from ..compare.running import missing, result_text, run_all
from ..compare.setup import AUTO
from ..compare.stock import (
    check_trains,
    keep_one_checkpoint,
    unpruned,
)
from ..config import combine_options
from ..host.packages import require
from . import running, train
from .ending import in_one_line, is_ours

ARMS = 'full', 'short', 'short-lr', 'small-batch', 'random'
DESCRIPTION = """\
Find out whether pruning pays on a config: train it as several arms with
several seeds each, and compare what they reach at what cost. A shorter
schedule or smaller batches save as much without pruning: is it better?
"""
EPILOG = """\
arms (infobatch is always trained, since the others are compared with it):
{arms}
How much "as much" is, the infobatch run of the same seed says: each arm with
"as" in its line sees as many training samples. Without this package there are
all but random and the two of infobatch, and small-batch costs nothing but a
smaller number in the config. Where the schedule counts in epochs, short is
rounded to whole ones. small-batch rounds its batch size, and makes up for that
by the length of its schedule; in epochs that is as short as for short, with
the iterations of the full run.

What is compared is the metric at the last validation. A config that prunes
already is taken apart: its options are those of infobatch, the other arms
train its stock form.

The hours: unless --seconds says what a run takes, ten iterations are trained
and one validation is made first (which also shows that the config trains and
has the metric). You are asked before the rest begins, or say --yes.

What is kept: WORK_DIR/ARM/SEED/ is the work directory of a run; finished ones
are lines of WORK_DIR/cells.jsonl and are not trained again, and one that was
cut off goes on from its last checkpoint, when the same command is given
again. More seeds or arms later train only what is missing. A run keeps its
last checkpoint only, unless the config sets max_keep_ckpts. Results are in
compare.json, compare.md and report.html of WORK_DIR.

What it says at the end: the samples and the time saved (time only means
something if nothing else ran beside, so with --jobs 1 on CPUs); the
difference to all data, seed by seed, with its 90 % t interval; whether
infobatch is better or worse than each arm (the interval excludes 0) or
indistinguishable; and about how many more seeds would decide, with a chance
of 80 % if the differences stay as they are. One seed gives no verdict. Of
arms that truly do not differ one in ten is called better or worse by chance.

examples:
  infobatch compare my_config.py --length 0.25 --seeds 2 --arms full short
  infobatch compare mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py \\
      --launcher pytorch --gpus 4 --infobatch-options policy.keep=0.7
"""


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Declare `CONFIG` and what is to be trained of it."""
    lines = [f'  {name:22}{arm.words}' for name, arm in core().items()]
    parser = argparse.ArgumentParser(
        prog,
        description=DESCRIPTION,
        epilog=EPILOG.format(arms='\n'.join(lines)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    running.add_config(parser)
    _add_what(parser)
    _add_metric(parser)
    _add_how(parser)
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--arms',
        nargs='+',
        choices=list(core()),
        default=list(ARMS),
        metavar='ARM',
        help=f'arms beside infobatch, see below (default: {" ".join(ARMS)})',
    )
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=[3],
        metavar='SEED',
        help='how many, or which if there are several: 3 is 0 1 2 '
        '(default: 3)',
    )
    parser.add_argument(
        '--length',
        type=_factor,
        default=1.0,
        metavar='FACTOR',
        help='factor on the length of the schedule, with its schedulers and '
        'intervals; below 1 it is a pilot (default: 1)',
    )
    train.add_infobatch_options(parser)
    running.add_cfg_options(parser)


def _add_metric(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--metric',
        metavar='NAME',
        help='the metric that counts, as the log of a validation names it, '
        'such as mIoU or accuracy/top1 (default: that of save_best, else the '
        'first of IoUMetric or the top-1 Accuracy)',
    )
    which = parser.add_mutually_exclusive_group()
    for name, value in (('higher', True), ('lower', False)):
        which.add_argument(
            f'--{name}-is-better',
            dest='higher_is_better',
            action='store_const',
            const=value,
            help=f'the {name} the metric is, the better (default: as '
            'CheckpointHook has it: its rule, greater_keys and less_keys)',
        )


def _add_how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--jobs',
        type=running.positive,
        default=1,
        metavar='N',
        help='runs at a time; where there are GPUs, each has its own as far '
        'as they go round (default: 1)',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch'],
        default='none',
        help='what starts the processes of each run: none is one process, '
        'pytorch starts --gpus of them on this machine (default: none)',
    )
    parser.add_argument(
        '--gpus',
        type=running.positive,
        default=1,
        metavar='N',
        help='processes of each run, with --launcher pytorch (default: 1)',
    )
    parser.add_argument(
        '--seconds',
        type=_factor,
        metavar='S',
        help='what a run on all data takes at this length, where you know '
        'it, for the estimate (default: time a few iterations)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        metavar='DIR',
        help='where all is kept, a folder for each config, length and choice '
        'of options (default: work_dirs/CONFIG_NAME-compare, and of a pilot '
        'work_dirs/CONFIG_NAME-compare-FACTOR)',
    )
    parser.add_argument(
        '--yes', action='store_true', help='do not ask before it begins'
    )


def _factor(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f'{text} is not above 0')
    return number


def load_config(args: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """Read the config; return its stock form and the options of pruning."""
    cfg = running.read_config(args.config, args.cfg_options)
    check_trains(cfg)
    cfg, options = unpruned(cfg)
    keep_one_checkpoint(cfg, args.length)
    if cfg.get('resume'):
        cfg.resume = False  # a run goes on from its own checkpoint, or anew
    given = running.nested_options(args.infobatch_options)
    return cfg, combine_options(options, given)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, with its runs."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_cells(study: Study, done: int, todo: Sequence[Cell], jobs: int) -> int:
    """Train what is missing, with a progress bar; return how many are left."""
    left = len(todo)
    with progress.Progress(
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn('runs'),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task('', total=done + left, completed=done)
        for cell, result in run_all(study, todo, jobs):
            if isinstance(result, BaseException):
                print(f'{cell.name}: {result}', file=sys.stderr)
                continue
            left -= 1
            print(result_text(cell, result), flush=True)
            bar.advance(task)
    return left


def is_confirmed() -> bool:
    """Ask whether to begin."""
    return input('Begin? [y/N] ').strip().lower() in ('y', 'yes')


def prepare(
    args: argparse.Namespace, study: Study, cells: Sequence[Cell]
) -> tuple[Study, list[Cell]] | None:
    """Say what will be trained, and ask; None if the answer is no."""
    todo = missing(study, cells)
    print(f'{args.config}: {len(cells)} runs, {len(cells) - len(todo)} done')
    print(planning.plan_text(study, cells))
    seconds, source = args.seconds, 'from --seconds'
    if not seconds or study.setup.metric == AUTO:
        probed = probe(study)
        found = list(probed['metrics'])
        study = planning.with_metric(study, found, args.higher_is_better)
    if not seconds:
        seconds = planning.run_seconds(study, probed)
        source = planning.source_text(probed)
    if todo:
        print(planning.estimate_text(len(todo), args.jobs, seconds, source))
        if not args.yes and not is_confirmed():
            return None
    return study, todo


def work_dir_of(args: argparse.Namespace) -> Path:
    """Return the folder that is asked for, or that of the config."""
    pilot = f'-{args.length:g}' if args.length != 1 else ''
    default = f'work_dirs/{Path(args.config).stem}-compare{pilot}'
    return args.work_dir or Path(default)


def load_study(args: argparse.Namespace) -> tuple[Study, list[Cell]]:
    """Read the config; return its study, and the cells that are asked for."""
    cfg, options = load_config(args)
    arms = list(dict.fromkeys([summary.OURS, *args.arms]))
    study = planning.study_of(
        cfg,
        options,
        work_dir_of(args),
        arms=arms,
        metric=args.metric,
        higher_is_better=args.higher_is_better,
        length=args.length,
        train=train_command(args.launcher, args.gpus),
        jobs=args.jobs,
        gpus=args.gpus,
    )
    seeds = planning.seeds_of(args.seeds)
    wanted = [study.cell(arm, seed) for seed in seeds for arm in arms]
    return study, order(study, wanted)


def compare(args: argparse.Namespace, study: Study, cells: list[Cell]) -> int:
    """Train what is missing and say what came out; return the status."""
    ready = prepare(args, study, cells)
    if ready is None:
        print('Nothing was trained.')
        return 1
    study, todo = ready
    left = run_cells(study, len(cells) - len(todo), todo, args.jobs)
    if left:
        text = 'runs failed or wait for one that did; the same command tries'
        print(f'{left} {text} them again', file=sys.stderr)
    finished = study.finished()
    check_same(study, cells, finished)  # others may have trained here too
    results = summary.asked_for(finished, cells)
    if summary.OURS in results:
        print(f'\n{summary.write(study, results, args.config)}', flush=True)
        print(summary.write_page(study.work_dir))
    return int(left > 0)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Compare, and end with status 1 if a run failed."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    with in_one_line(parser):
        for package in ('scipy', 'jinja2', 'matplotlib'):
            require(package, 'compare')
        if not args.yes and not sys.stdin.isatty():
            raise ValueError('no terminal to ask whether to begin: give --yes')
        study, cells = load_study(args)
    with in_one_line(parser, only=is_ours), _ended_by_sigterm():
        try:
            status = compare(args, study, cells)
        except KeyboardInterrupt:
            parser.exit(130, 'Stopped; the same command goes on from here\n')
        except RuntimeError as error:
            parser.exit(1, f'{parser.prog}: error: {error}\n')
    if status:
        sys.exit(status)
