"""The command line that says what pruning will save, before training."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from .. import estimate
from ..config import enable, hook_settings
from ..estimate import Budget, Case, Row
from ..hook import InfoBatchHook
from ..host.classes import type_name
from ..pacing import PACINGS, SMALLER_BATCHES, Dealing
from ..pruning import NoPruningPolicy, PruningPolicy
from ..pruning.registry import build_policy
from ..report.samples import build_dataset
from . import pilot, running, train
from .ending import in_one_line, is_ours

SHARES = (0.5, 0.7, 0.9)  # of the samples, below the mean
# Shown beside each other if no policy is asked for.
POLICIES: tuple[dict[str, Any], ...] = (
    dict(type='InfoBatchPolicy'),
    dict(type='QuantilePolicy'),
    dict(type='RandomPolicy', prune_ratio=0.5),
)
EPILOG = """\
What is exact: QuantilePolicy, RandomPolicy and any policy that is told what to
keep (policy.keep=0.7) keep the same share whatever the scores are, so their
iterations are those that a run will have (unless scores are tied, or missing:
in a run by iterations, or with drop_last, the remainder of the first pass that
makes no whole batch has no score in the second round, and is kept).
InfoBatchPolicy without keep prunes below the mean, and which share of the
samples that is shows only in training: there is a line for each of 50, 70 and
90 %, and with --pilot one for the scores of your data after so many rounds,
which may change later. There is a table for each pacing, unless the config or
an option asks for one. With smaller_batches a run has the iterations of the
stock run, with fewer samples each; how much less time such a step takes
depends on the device, so no hours are given. What pruning costs in accuracy,
nothing here says.
"""


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Declare `CONFIG [--gpus] [--samples] [--pilot]` and the options."""
    parser = argparse.ArgumentParser(
        prog,
        description='Say how many iterations and samples a pruned run of a '
        'config will have, and what memory pruning takes, before training.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    running.add_config(parser)
    running.add_cfg_options(parser)
    train.add_infobatch_options(parser)
    parser.add_argument(
        '--gpus',
        type=running.positive,
        default=1,
        metavar='N',
        help='processes of the run, each with batch_size samples a step, as '
        'in 4xb4 of a config name (default: 1)',
    )
    parser.add_argument(
        '--samples',
        type=running.positive,
        metavar='N',
        help='samples of the training data set, each counted once where a '
        'RepeatDataset repeats them (default: count them, for which it has '
        'to be there)',
    )
    parser.add_argument(
        '--pilot',
        type=running.positive,
        metavar='N',
        help='train the first N rounds in this process, without validation '
        'and in a temporary work directory, and use their scores',
    )
    parser.set_defaults(no_pin_memory=False)
    return parser


def load_config(args: argparse.Namespace) -> Config:
    """Read the config, and switch pruning on in it."""
    cfg = running.read_config(args.config, args.cfg_options)
    if running.is_mmpretrain(cfg):
        running.set_dataloader_defaults(cfg, args)
    return enable(cfg, **running.nested_options(args.infobatch_options))


def count_samples(cfg: Config) -> int:
    """Return the number of samples of the training data set of a config."""
    try:
        return len(build_dataset(cfg))
    except Exception as error:
        # The files may not be there yet; the data set may be anybody's code.
        raise ValueError(
            'the training data set cannot be listed here '
            f'({type(error).__name__}: {error}); give --samples N instead'
        ) from error


def repeated(dataset: Mapping[str, Any], samples: int) -> int:
    """Return the length of a data set, within which one has some samples.

    Raises:
        ValueError: If that depends on what the samples are.
    """
    inner = dataset.get('dataset')
    if not isinstance(inner, Mapping):
        return samples
    kind = type_name(dataset)
    if kind in ('ClassBalancedDataset', 'KFoldDataset'):
        raise ValueError(
            f'--samples {samples} does not tell how long the {kind} of the '
            'config is. Leave it out, to have its samples counted'
        )
    times = dataset['times'] if kind == 'RepeatDataset' else 1
    return times * repeated(inner, samples)


def budget_of(cfg: Config, gpus: int, samples: int) -> Budget:
    """Return what the full-data run of a config is.

    Args:
        cfg (Config): The config.
        gpus (int): Processes of the run.
        samples (int): Samples of its training data set.
    """
    loader, loop = cfg.train_dataloader, cfg.train_cfg
    if loader.get('batch_size') is None:
        raise ValueError(
            'train_dataloader.batch_size is not set, so the iterations of a '
            'round are not known; set it to the samples of a step on each '
            'process'
        )
    for name, value in {
        'train_dataloader.batch_size': loader.batch_size,
        'train_cfg.max_epochs': loop.get('max_epochs'),
        'train_cfg.max_iters': loop.get('max_iters'),
    }.items():
        if value is not None and value < 1:
            raise ValueError(f'{name} is {value}; set it to 1 or more')
    if loop.get('max_epochs') is None and loop.get('max_iters') is None:
        raise ValueError(
            'train_cfg sets neither max_epochs nor max_iters, so the length '
            'of the run is not known'
        )
    batch = loader.batch_size * gpus
    if (batches := loader.get('num_batch_per_epoch')) is not None:
        samples = min(samples, batches * batch)
    by_iter = loop.get('max_epochs') is None
    drops_rest = by_iter or bool(loader.get('drop_last', False))
    ranks = 1 if by_iter else gpus
    iters = loop.get('max_iters') or 0
    budget = Budget(samples, batch, iters, drops_rest, ranks)
    if budget.iters_of(samples) == 0:
        raise ValueError(
            f'the training data set has {samples} samples, fewer than one '
            f'global batch of {batch}. Lower train_dataloader.batch_size or '
            '--gpus'
        )
    if samples < 2:
        raise ValueError(
            f'the training data set has {samples} sample, of which none can '
            'be pruned'
        )
    if by_iter:
        return budget
    return budget._replace(iters=loop.max_epochs * budget.iters_of(samples))


def policies(hook: Mapping[str, Any], delta: float) -> list[PruningPolicy]:
    """Return the policy that a hook's config names, or some to choose from."""
    asked = hook.get('policy')
    return [build_policy(p, delta) for p in ([asked] if asked else POLICIES)]


def cases(total: int, found: pilot.Pilot | None) -> list[Case]:
    """Return the scores that a run may have, for each share below the mean.

    Those of a pilot stand for the samples that it left without one, too.
    """
    if found is not None:
        share = estimate.share_below_mean(found.scores)
        ranks = torch.linspace(0, len(found.scores) - 1, total).round().long()
        scores = found.scores.sort().values[ranks]
        return [Case(f'{share:.0%}', scores)]
    return [
        Case(f'{share:.0%}', estimate.scores_below_mean(share, total))
        for share in SHARES
    ]


def dealing_of(hook: InfoBatchHook, budget: Budget, gpus: int) -> Dealing:
    """Return how a hook deals samples to smaller batches."""
    steps = budget.iters_of(budget.samples)
    least = int(hook.smallest_batch)
    dealing = Dealing(steps, budget.batch_size, gpus, least)
    if not isinstance(hook.policy, NoPruningPolicy):
        dealing.check()
    return dealing


def table(rows: Sequence[Row], pace: float) -> Table:
    """Lay schedules out.

    Args:
        rows (Sequence): The full-data run, and others.
        pace (float): Seconds of an iteration, 0 if not known.
    """
    names = 'policy', 'below mean', 'rounds', 'pruned', 'iterations', 'samples'
    laid = Table(box=None, padding=(0, 1, 0, 0))  # in 80 columns
    for name in (*names, 'saved', *(['hours'] if pace else [])):
        left = name == 'policy'
        laid.add_column(name, justify='left' if left else 'right')
    for policy, share, run in rows:
        saved = 1 - run.samples / rows[0].run.samples
        cells = [policy, share, *(f'{number:,}' for number in run[:-1])]
        hours = [f'{run.iters * pace / 3600:.2f}'] if pace else []
        laid.add_row(*cells, f'{saved:.1%}', *hours)
    return laid


def memory_lines(total: int) -> Iterator[str]:
    """Yield what pruning holds in memory on each process."""
    yield f'Memory that pruning takes, for {total:,} samples on each process:'
    for name, size in estimate.memory(total).items():
        yield f'  {size / 1e6:10,.2f} MB  {name}'


def dealing_lines(
    dealing: Dealing, total: int, rows: Iterable[Row]
) -> Iterator[str]:
    """Yield how large the batches of pruned rounds are, on each process."""
    fewest = min(dealing.fewest, total)
    yield (
        f'A pruned round has the {dealing.steps:,} steps of a full pass. As '
        f'smallest_batch={dealing.smallest_batch},\nit keeps at least '
        f'{fewest:,} of {total:,} samples ({fewest / total:.0%}).\n'
        'Samples of a step on each process, then:'
    )
    full = dealing.batch_size // dealing.world_size
    for policy, share, run in rows:
        each = estimate.dealt_samples(dealing, dealing.steps, run.fewest)
        each //= dealing.world_size
        low, high = each // dealing.steps, -(-each // dealing.steps)
        sizes = f'{low}' if low == high else f'{low} or {high}'
        yield f'  {policy}, {share}: {sizes} of {full}'


def clock_lines(cfg: Config) -> Iterator[str]:
    """Yield what the clock does to validation and checkpoints."""
    loop = cfg.train_cfg
    by_epoch = loop.get('max_epochs') is not None
    unit = 'epochs' if by_epoch else 'iterations'
    if cfg.get('val_cfg') is not None:
        interval = loop.get('val_interval', 1 if by_epoch else 1000)
        yield f'Validation: every {interval:,} {unit} of the full-data run.'
    saves = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if saves.get('interval', -1) > 0:
        unit = 'epochs' if saves.get('by_epoch', True) else 'iterations'
        yield (
            f'Checkpoints: every {saves["interval"]:,} {unit} of the '
            'full-data run.'
        )
    yield (
        'Validations and checkpoints are as many as without pruning, at the '
        'same\nprogress: an epoch is a round, and iterations are counted on '
        'the full-data\nclock. File names and logs have the real iterations: '
        'fewer with fewer steps,\nas many with smaller batches.'
    )


class Run(NamedTuple):
    """What a pacing is estimated of."""

    hook: InfoBatchHook
    policies: Sequence[PruningPolicy]
    budget: Budget
    gpus: int
    cases: Sequence[Case]
    pace: float  # seconds of an iteration, 0 if not known


def show_pacing(pacing: str, run: Run) -> None:
    """Print the table of a pacing.

    Raises:
        ValueError: If it could prune nothing.
    """
    budget, is_dealt = run.budget, pacing == SMALLER_BATCHES
    dealing = dealing_of(run.hook, budget, run.gpus) if is_dealt else None
    rows = [
        *estimate.schedules(
            run.policies,
            run.cases,
            budget,
            warmup_rounds=run.hook.warmup_rounds,
            dealing=dealing,
        )
    ]
    full = Row('all data', '-', estimate.full_schedule(budget))
    # How long a smaller iteration takes is not known.
    Console().print(table([full, *rows], 0.0 if is_dealt else run.pace))
    if dealing:
        print(*dealing_lines(dealing, budget.samples, rows), sep='\n')


def report(
    cfg: Config, args: argparse.Namespace, found: pilot.Pilot | None
) -> None:
    """Print the estimate of a pruned config."""
    if args.samples:
        samples = repeated(cfg.train_dataloader.dataset, args.samples)
    else:
        samples = count_samples(cfg)
    budget = budget_of(cfg, args.gpus, samples)
    settings = hook_settings(cfg)
    hook = InfoBatchHook(**settings)
    made = policies(settings, hook.delta)
    # The pilot has not measured an iteration on several processes.
    pace = found.seconds if found and args.gpus == 1 else 0.0
    scores = cases(budget.samples, found)
    run = Run(hook, made, budget, args.gpus, scores, pace)
    print(
        f'{args.config}: {budget.samples:,} samples, '
        f'{budget.batch_size:,} a step'
    )
    asked = settings.get('pacing')
    for pacing in [asked] if asked else PACINGS:
        print(f'\npacing={pacing!r}')
        try:
            show_pacing(pacing, run)
        except ValueError as error:
            if asked:
                raise
            print(fill(str(error), 79))
    print(
        '',
        *map(repr, made),
        *(pilot.lines(found) if found else ()),
        *memory_lines(budget.samples),
        *clock_lines(cfg),
        sep='\n',
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Print what pruning will save."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    with in_one_line(parser):
        cfg = load_config(args)
    if args.pilot:
        print(f'Training {args.pilot} rounds as a pilot ...', file=sys.stderr)
    with in_one_line(parser, only=is_ours):
        found = pilot.fly(cfg, args.pilot) if args.pilot else None
        report(cfg, args, found)
