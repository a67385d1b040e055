"""What train and test share: reading a config, its family, the processes."""

import argparse
import gc
import os
import subprocess
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.hub import get_config
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from ..config import is_classifier
from ..host.checkpoint_files import allow_resuming
from ..host.packages import alias_config_bases, is_importable
from .ending import in_one_line, is_ours

DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


class KeyValues(DictAction):
    """Settings as KEY=VALUE; what is none is refused in one line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Put the settings into the namespace as a dict."""
        for each in values:
            key, is_setting, value = each.partition('=')
            if not is_setting:
                text = f'{each!r} is not KEY=VALUE'
            elif value.startswith('dict('):
                text = f'{each!r}: give the settings of a dict one by one, '
                text += f'as in {key}.type=NAME {key}.SETTING=VALUE'
            else:
                continue
            text = f'{parser.prog}: error: {option_string}: {text}\n'
            parser.exit(2, text)
        super().__call__(parser, namespace, values, option_string)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declare the config, which comes first."""
    parser.add_argument(
        'config',
        help='path of the config, or the name of one in an installed '
        'package, as in mmseg::segformer/segformer_mit-b0_8xb2-160k_'
        'ade20k-512x512.py',
    )


def add_common_flags(
    parser: argparse.ArgumentParser, *, work_dir_of: str
) -> None:
    """Declare the flags that all tools of mmseg and mmpretrain have.

    Args:
        parser (argparse.ArgumentParser): Where they are declared.
        work_dir_of (str): What the work dir will hold.
    """
    parser.add_argument(
        '--work-dir',
        help=f'folder of {work_dir_of} '
        "(default: the config's, else ./work_dirs/CONFIG_NAME)",
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes (default: none)',
    )
    # torch.distributed.launch spells it --local-rank from PyTorch 2.0 on.
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help="set by torch.distributed.launch: the process's number on its "
        'machine',
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Declare the settings that replace those of the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=KeyValues,
        metavar='KEY=VALUE',
        help='settings that replace those of the config; lists and tuples '
        'are quoted and hold no white space, as in key="[(a,b),(c,d)]"',
    )


def nested_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nest the KEY=VALUE settings of a command line by their dots.

    Example:
        >>> nested_options({'policy.prune_ratio': 0.7, 'delta': 0.9})
        {'policy': {'prune_ratio': 0.7}, 'delta': 0.9}
    """
    for name, value in settings.items():
        inner = [each for each in settings if each.startswith(f'{name}.')]
        if inner:
            raise ValueError(
                f'{name}={value} is given beside {", ".join(inner)}. What it '
                f'is goes to {name}.type'
            )
    nested = Config()
    nested.merge_from_dict(dict(settings))
    return nested.to_dict()


def positive(text: str) -> int:
    """Return a number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is less than 1')
    return number


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parse the command line; sets LOCAL_RANK where no launcher did."""
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def own_config(name: str) -> Path:
    """Return the path of a config of this package, by its name.

    A wheel holds them where mim looks for them; in a checkout they are beside
    the package.
    """
    package = Path(__file__).parents[1]
    for folder in (package / '.mim/configs', package.parent / 'configs'):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f'infobatch_mm has no config {name}')


def read_config(name: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config, with what the command line sets in it.

    Args:
        name (str): A file, or one of an installed package as `pkg::` name.
        options (Mapping, optional): Those of `--cfg-options`.
    """
    try:
        cfg = _read(name)
        if options is not None:
            _merge(cfg, options)
            # mmengine imports those of a file as it reads it.
            if imports := cfg.get('custom_imports'):
                import_modules_from_strings(**imports)
    except ImportError as error:
        why = f' ({error.__context__})' if error.__context__ else ''
        raise ValueError(f'{name}: {error}{why}{_hint(error)}') from error
    return cfg


def _merge(cfg: Config, options: Mapping[str, Any]) -> None:
    try:
        cfg.merge_from_dict(dict(options))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        given = ' '.join(f'{key}={value}' for key, value in options.items())
        raise ValueError(
            f'--cfg-options {given}: the config has nothing to set there '
            f'({type(error).__name__}: {error})'
        ) from error


def _hint(error: ImportError) -> str:
    """Say which extra of ours installs what an import lacks, if one does."""
    if 'mmpretrain' not in str(error) or is_importable('mmpretrain'):
        return ''
    return '. The extra cls has it: pip install "infobatch_mm[cls]"'


def _read(name: str) -> Config:
    alias_config_bases()
    package, is_name, rest = name.rpartition('::')
    if package == 'infobatch_mm':
        return Config.fromfile(own_config(rest))
    if is_name:
        if not is_importable(package):
            # mmengine would install it.
            raise ValueError(
                f'{name}: the package {package} is not installed; install it '
                'or give the path of a config'
            )
        return get_config(name)
    return Config.fromfile(name)


def load_common(args: argparse.Namespace) -> Config:
    """Read the config and apply the common flags to it.

    The work dir is the command line's, else the config's, else a folder
    named after the config file.
    """
    cfg = read_config(args.config, args.cfg_options)
    if not cfg.get('model'):
        raise ValueError(f'{args.config} has no model, so it is of no run')
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = f'./work_dirs/{Path(args.config).stem}'
    return cfg


def is_mmpretrain(cfg: Config) -> bool:
    """Tell whether a config is one for mmpretrain's tools.

    Its new-style configs have no scope; the class of the model tells then.
    """
    if scope := cfg.get('default_scope'):
        return scope == 'mmpretrain'
    model = cfg.get('model')
    return bool(model) and is_classifier(model, 'mmengine')


def check_family(
    cfg: Config, args: argparse.Namespace, instead: Mapping[str, str]
) -> None:
    """Refuse flags of mmpretrain's tools with a config of another package.

    Args:
        cfg (Config): The config.
        args (argparse.Namespace): The command line.
        instead (Mapping[str, str]): The names of the flags in `args`, and
            what to write in place of each.
    """
    if is_mmpretrain(cfg):
        return
    for name, cure in instead.items():
        if getattr(args, name) not in (None, False):
            raise ValueError(
                f'--{name.replace("_", "-")} is for configs of mmpretrain, '
                f'and {args.config} has default_scope='
                f'{cfg.get("default_scope")!r}; {cure}'
            )


def set_dataloader_defaults(cfg: Config, args: argparse.Namespace) -> None:
    """Complete the dataloaders as mmpretrain's own tools do, in place.

    Its configs leave that to the tools. Without workers there are none that
    could persist, and without an accelerator no memory to pin.
    """
    for name in DATALOADERS:
        loader = cfg.get(name)
        if loader is None:
            continue
        loader.setdefault('pin_memory', get_device() != 'cpu')
        loader.setdefault(
            'persistent_workers', loader.get('num_workers', 0) > 0
        )
        loader.setdefault('collate_fn', dict(type='default_collate'))
        if args.no_pin_memory:
            loader.pin_memory = False


def take_slurm_ranks(env: MutableMapping[str, str]) -> None:
    """Name the ranks of a Slurm step as torch does."""
    if 'SLURM_PROCID' not in env:
        raise ValueError(
            '--launcher slurm was not started by srun: use '
            'tools/slurm_train.sh, or --launcher pytorch'
        )
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
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {})}


def build_runner(cfg: Config) -> Runner:
    """Build mmengine's Runner, or the one that `runner_type` names."""
    allow_resuming()
    if 'runner_type' not in cfg:
        return Runner.from_cfg(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return RUNNERS.build(cfg)


def start(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    load_config: Callable[[argparse.Namespace], Config],
) -> Runner:
    """Build the runner that a command line asks for, in all processes.

    A setting that cannot work ends with one line, exit status 2.
    """
    with in_one_line(parser):
        cfg = load_config(args)
        start_cpu_ranks(cfg)
    with in_one_line(parser, only=is_ours):
        return build_runner(cfg)


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
