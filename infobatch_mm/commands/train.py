"""Train a model from a config file: mmseg's command line, with pruning.

Importing infobatch_mm first registers its parts and lets `mmseg::` bases be
found with either family of OpenMMLab packages.
"""

import infobatch_mm  # isort: skip

import argparse
import gc
import logging
import os
import subprocess
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from infobatch_mm.compat import is_importable


def build_parser() -> argparse.ArgumentParser:
    """Declare the flags, the same as those of mmseg's tools/train.py."""
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument(
        'config',
        help='path of the train config, or the name of one in an installed '
        'package, as in mmseg::segformer/segformer_mit-b0_8xb2-160k_'
        'ade20k-512x512.py',
    )
    parser.add_argument(
        '--infobatch',
        action='store_true',
        help='prune: infobatch_mm.enable(cfg), after --cfg-options',
    )
    parser.add_argument(
        '--infobatch-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='options of InfoBatchHook, as in policy.type=QuantilePolicy '
        'delta=0.9; sets --infobatch',
    )
    parser.add_argument(
        '--work-dir',
        help='folder of logs and checkpoints '
        "(default: the config's, else ./work_dirs/CONFIG_NAME)",
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on from the latest checkpoint in the work dir, if any',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in automatic mixed precision (needs an accelerator)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config; lists and tuples '
        'are quoted and hold no white space, as in key="[(a,b),(c,d)]"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes (default: none)',
    )
    # torch.distributed.launch spells it --local-rank from PyTorch 2.0 on.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; sets LOCAL_RANK where no launcher did."""
    args = build_parser().parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def enable_amp(cfg: Config) -> None:
    """Switch the config's OptimWrapper to AmpOptimWrapper in place.

    mmengine's AmpOptimWrapper refuses to be built on a CPU, in both families
    and for every dtype, so that is an error here, before anything is built.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    name = kind if isinstance(kind, str) else kind.__name__
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
    cfg.optim_wrapper.loss_scale = 'dynamic'


def read_config(name: str) -> Config:
    """Read a config file, or one of an installed package by `pkg::` name."""
    package, is_name, _ = name.rpartition('::')
    if not is_name:
        return Config.fromfile(name)
    if not is_importable(package):
        # mmengine would install it.
        raise ValueError(
            f'{name}: the package {package} is not installed; install it or '
            'give the path of a config'
        )
    return get_config(name)


def set_dataloader_defaults(cfg: Config) -> None:
    """Complete the dataloaders as mmpretrain's tools/train.py does, in place.

    Its configs leave that to the tool. Without workers there are none that
    could persist, and without an accelerator no memory to pin.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is None:
            continue
        loader.setdefault('pin_memory', get_device() != 'cpu')
        loader.setdefault('persistent_workers', loader.num_workers > 0)
        loader.setdefault('collate_fn', dict(type='default_collate'))


def infobatch_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nest KEY=VALUE settings with dots in their keys."""
    options = Config()
    options.merge_from_dict(dict(settings))
    if 'policy' in options:
        options.policy.setdefault('type', 'InfoBatchPolicy')
    return options.to_dict()


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line to it.

    The work dir is the command line's, else the config's, else a folder
    named after the config file.
    """
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = f'./work_dirs/{Path(args.config).stem}'
    if args.amp:
        enable_amp(cfg)
    cfg.resume = args.resume
    if cfg.get('default_scope') == 'mmpretrain':
        set_dataloader_defaults(cfg)
    if args.infobatch or args.infobatch_options:
        options = infobatch_options(args.infobatch_options)
        cfg = infobatch_mm.enable(cfg, **options)
    return cfg


def take_slurm_ranks(env: MutableMapping[str, str]) -> None:
    """Name the ranks of a Slurm step as torch does."""
    command = ['scontrol', 'show', 'hostnames', env['SLURM_NODELIST']]
    hosts = subprocess.check_output(command, text=True).split()
    env.setdefault('MASTER_ADDR', hosts[0])
    env.setdefault('MASTER_PORT', '29500')  # as mmengine's start
    env['RANK'] = env['SLURM_PROCID']
    env['LOCAL_RANK'] = env['SLURM_LOCALID']
    env['WORLD_SIZE'] = env['SLURM_NTASKS']


def start_cpu_ranks(cfg: Config) -> None:
    """Join the gloo group of a distributed run on a machine without GPU.

    mmengine's own start and its default model wrapper both need a GPU. With
    the group there, mmengine uses it.
    """
    if cfg.launcher == 'none' or get_device() != 'cpu':
        return
    if cfg.launcher == 'mpi':
        raise ValueError(
            '--launcher mpi needs GPUs and none was found; on CPUs use '
            '--launcher pytorch (tools/dist_train.sh) or slurm '
            '(tools/slurm_train.sh)'
        )
    if cfg.launcher == 'slurm':
        take_slurm_ranks(os.environ)
    dist.init_process_group('gloo')
    wrapper = {
        'type': 'MMDistributedDataParallel',
        'device_ids': None,
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
    }
    cfg.model_wrapper_cfg = {**wrapper, **cfg.get('model_wrapper_cfg', {})}


def build_runner(cfg: Config) -> Runner:
    """Build mmengine's Runner, or the one that `runner_type` names."""
    if 'runner_type' not in cfg:
        return Runner.from_cfg(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return RUNNERS.build(cfg)


def leave_group() -> None:
    """Leave the process group, and wait for its threads to end.

    A gloo thread that still drops its last tensors while the interpreter
    shuts down aborts the rank, and torchrun then stops the ranks that are
    still writing. The threads end with the last reference to the group,
    which the runner holds in cycles of references.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()


def main(argv: Sequence[str] | None = None) -> None:
    """Train; a setting that cannot work ends with one line, exit status 2."""
    args = parse_args(argv)
    try:
        cfg = load_config(args)
        start_cpu_ranks(cfg)
    except ValueError as error:
        build_parser().error(str(error))
    build_runner(cfg).train()
    leave_group()


if __name__ == '__main__':
    main()
