"""The command line of training: mmseg's and mmpretrain's, with pruning."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import print_log

from .. import override  # noqa: F401 # so that train_cfg.infobatch is heeded
from ..config import enable
from ..hook import InfoBatchHook
from ..host.checkpoint_files import last_checkpoint
from ..host.classes import type_name
from ..host.running import is_resuming
from ..pruned_run import STATE_KEY
from . import running
from .ending import check_exists, in_one_line, is_ours

# Flags that only mmpretrain's tool has, and what does the same elsewhere.
MMPRETRAIN_FLAGS = {
    'no_validate': 'use --cfg-options val_cfg=None val_dataloader=None '
    'val_evaluator=None',
    'auto_scale_lr': 'use --cfg-options auto_scale_lr.enable=True',
    'no_pin_memory': 'use --cfg-options train_dataloader.pin_memory=False',
    'no_persistent_workers': 'use --cfg-options '
    'train_dataloader.persistent_workers=False',
}


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Declare our flags, and those of mmseg's and mmpretrain's tool."""
    parser = argparse.ArgumentParser(
        prog,
        description='Train a model from a config of mmseg or mmpretrain, '
        'with --infobatch on fewer samples.',
    )
    running.add_config(parser)
    add_pruning_flags(parser)
    running.add_common_flags(parser, work_dir_of='logs and checkpoints')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        type=checkpoint,
        metavar='CHECKPOINT',
        help='go on from a checkpoint (default: the latest in the work dir, '
        'if any); the config comes first',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in automatic mixed precision (needs an accelerator)',
    )
    parser.add_argument(
        '--resume-unpruned',
        action='store_true',
        help='go on without pruning from the checkpoint of a pruned run, '
        'whose schedule is ahead of its iterations',
    )
    add_mmpretrain_flags(parser)
    return parser


def add_pruning_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that turn a stock config into a pruned one."""
    parser.add_argument(
        '--infobatch',
        action='store_true',
        help='prune: infobatch_mm.enable(cfg), after --cfg-options',
    )
    add_infobatch_options(parser, '; sets --infobatch')


def add_infobatch_options(
    parser: argparse.ArgumentParser, effect: str = ''
) -> None:
    """Declare the options of the hook, and what else they do."""
    parser.add_argument(
        '--infobatch-options',
        nargs='+',
        action=running.KeyValues,
        default={},
        metavar='KEY=VALUE',
        help='options of InfoBatchHook, as in policy.type=QuantilePolicy '
        f'delta=0.9{effect}',
    )


def add_mmpretrain_flags(parser: argparse.ArgumentParser) -> None:
    """Declare what only mmpretrain's tool has."""
    group = parser.add_argument_group('only with configs of mmpretrain')
    group.add_argument(
        '--no-validate', action='store_true', help='train without validation'
    )
    group.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size, as the '
        "config's auto_scale_lr says",
    )
    group.add_argument(
        '--no-pin-memory',
        action='store_true',
        help='load no batch into pinned memory',
    )
    group.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='start the workers of the dataloaders anew in each epoch',
    )


def checkpoint(text: str) -> str:
    """Return the path of a checkpoint, unless a config stands in its place.

    In mmseg's tool --resume takes no value, so a config may follow it.
    """
    if text.endswith('.py'):
        raise argparse.ArgumentTypeError(
            f'{text} is a config and not a checkpoint; put it before --resume'
        )
    return text


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; sets LOCAL_RANK where no launcher did."""
    return running.parse(build_parser(), argv)


def enable_amp(cfg: Config) -> None:
    """Switch the config's OptimWrapper to AmpOptimWrapper in place.

    mmengine's AmpOptimWrapper refuses to be built on a CPU, in both families
    and for every dtype, so that is an error here, before anything is built.
    """
    name = type_name({'type': 'OptimWrapper', **cfg.optim_wrapper})
    if name not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            f'--amp cannot be combined with optim_wrapper.type={name!r}; '
            "set it to 'OptimWrapper' or leave --amp out"
        )
    if get_device() == 'cpu':
        raise ValueError(
            '--amp needs a GPU or another accelerator and only a CPU was '
            'found, where AmpOptimWrapper does not run; leave --amp out'
        )
    if name == 'AmpOptimWrapper':
        print_log(
            '--amp: the config already trains in mixed precision',
            logger='current',
            level=logging.WARNING,
        )
        return
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    if not running.is_mmpretrain(cfg):  # whose tool leaves what is set
        cfg.optim_wrapper.loss_scale = 'dynamic'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def set_resume(
    cfg: Config, resume: str | None, options: Mapping[str, Any] | None = None
) -> None:
    """Say where a run goes on from, as the tool of its package does.

    mmseg's ignores what the config says of `resume`, and leaves `load_from`
    as it is; mmpretrain's does neither, but for what is set on the command
    line.

    Args:
        cfg (Config): The config, changed in place.
        resume (str | None): The value of --resume.
        options (Mapping | None): Those of --cfg-options.
    """
    if resume is None:
        cfg.resume = running.is_mmpretrain(cfg) and cfg.get('resume', False)
        return
    cfg.resume = True
    if resume != 'auto':
        cfg.load_from = resume
    elif running.is_mmpretrain(cfg) and 'load_from' not in (options or {}):
        cfg.load_from = None


def check_resume(cfg: Config, args: argparse.Namespace) -> None:
    """Refuse to go on from what a config of mmseg only loads weights from.

    mmseg's tool does, in place of the latest checkpoint, and a run that is
    past its budget by then ends at once. On the command line it is meant.
    """
    is_meant = 'load_from' in (args.cfg_options or {})
    if args.resume == 'auto' and cfg.get('load_from') and not is_meant:
        raise ValueError(
            f'--resume would go on from load_from={cfg.load_from!r} of the '
            'config, and not from the latest checkpoint in the work dir. Name '
            'the one to go on from, --resume CHECKPOINT, or leave --resume '
            'out to begin with the weights of load_from'
        )


def apply_mmpretrain_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Do to a config of mmpretrain what its own tool does, in place."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.auto_scale_lr:
        if cfg.get('auto_scale_lr') is None:
            raise ValueError(
                '--auto-scale-lr needs auto_scale_lr, which the config does '
                'not set; add auto_scale_lr=dict(base_batch_size=...), the '
                'batch size that its learning rate is meant for'
            )
        cfg.auto_scale_lr.enable = True
    running.set_dataloader_defaults(cfg, args)
    if args.no_persistent_workers:
        for name in running.DATALOADERS:
            if cfg.get(name) is not None:
                cfg[name].persistent_workers = False


def follow_moved(cfg: Config) -> None:
    """Go on from the work dir's own checkpoint, if the folder was moved.

    Or copied: mmengine takes the path in `last_checkpoint`, where another
    run may go on.
    """
    name = Path(cfg.work_dir, 'last_checkpoint')
    if not cfg.get('resume') or cfg.get('load_from') or not name.exists():
        return
    found = last_checkpoint(name.parent)
    named = Path(name.read_text().strip())
    if not named.exists() or not named.samefile(found):
        cfg.load_from = str(found)


class RefusePrunedCheckpoint(Hook):
    """Let no run that does not prune go on from one that did."""

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Raise a ValueError for the checkpoint of a pruned run."""
        prunes = any(isinstance(hook, InfoBatchHook) for hook in runner.hooks)
        if prunes or STATE_KEY not in checkpoint:
            return
        raise ValueError(
            'the checkpoint is that of a pruned run, whose schedule is ahead '
            'of its iterations, and this run does not prune: it would end '
            'with a learning rate of 0. Resume with --infobatch, take its '
            'weights alone (load_from without --resume), or go on all the '
            'same with --resume-unpruned'
        )


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line to it."""
    cfg = running.load_common(args)
    running.check_family(cfg, args, MMPRETRAIN_FLAGS)
    if args.amp:
        enable_amp(cfg)
    set_resume(cfg, args.resume, args.cfg_options)
    check_resume(cfg, args)
    follow_moved(cfg)
    if running.is_mmpretrain(cfg):
        apply_mmpretrain_flags(cfg, args)
    if args.infobatch or args.infobatch_options:
        cfg = enable(cfg, **running.nested_options(args.infobatch_options))
    return cfg


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Train as the command line says."""
    with in_one_line(parser):
        if args.resume not in (None, 'auto'):
            check_exists('--resume', args.resume)
    runner = running.start(parser, args, load_config)
    if is_resuming(runner) and not args.resume_unpruned:
        runner.register_hook(RefusePrunedCheckpoint())
    with in_one_line(parser, only=is_ours):
        runner.train()


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train the model of a config."""
    parser = build_parser(prog)
    run(parser, running.parse(parser, argv))
    running.leave_group()
