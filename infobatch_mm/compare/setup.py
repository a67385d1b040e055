"""What all arms of a comparison have in common: the stock config as run."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from copy import deepcopy
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import METRICS

from ..host.classes import find_class, imported_modules, is_of, type_name
from ..host.packages import alias_config_bases

AUTO = 'auto'  # mmengine's word for the first that a validation returns
# The paper's settings, as the text of a config spells them out.
PAPER_SETTINGS = (
    '"pacing": "fewer_steps"',
    '"score": "image_mean"',
)
# Positions of a scheduler that are counted in iterations or epochs.
EDGES = (
    'begin',
    'end',
    'T_max',
    'total_iters',
    'total_steps',
    'step_size',
    'milestones',
)
# Settings of hooks that are counted in them.
HOOK_EDGES = (
    'begin_epoch',  # EMAHook
    'begin_iter',
    'action_epoch',  # mmpretrain's SwitchRecipeHook
    'action_iter',
    'switch_epoch',  # mmdetection's hooks
    'num_last_epochs',
    'warmup_epochs',
)


class Parts(NamedTuple):
    """The modules that a run imports to be measured, by name.

    Names enter the digest of a finished cell, so that cells made under other
    names than these keep them.

    Attributes:
        hook (str): Has ``BenchmarkHook`` and what some arms need.
        class_iou (str): Has ``ClassIoUMetric``.
    """

    hook: str = 'infobatch_mm.compare.parts'
    class_iou: str = 'infobatch_mm.compare.parts'


class Setup(NamedTuple):
    """What the arms of a comparison train.

    Attributes:
        config (Path | Config): A config that trains on all data.
        metric (str): The metric that counts, as its evaluator names it, such
            as ``'mIoU'`` or ``'accuracy/top1'``.
        options (Mapping): Settings to change in it, as ``--cfg-options``
            names them.
        length (float): Factor on the length of its schedule.
        channels_last (bool): Whether the model's memory is laid out so,
            which makes some of them train faster on a CPU.
        num_workers (int | None): Workers of each data loader; None leaves
            those of the config.
        parts (Parts): The modules that its runs import.
        higher_is_better (bool): Whether more of the metric is better.
    """

    config: Path | Config
    metric: str
    options: Mapping[str, Any] = {}
    length: float = 1.0
    channels_last: bool = False
    num_workers: int | None = None
    parts: Parts = Parts()
    higher_is_better: bool = True


def stock_config(setup: Setup) -> Config:
    """Return what a run on all data trains, with what measures it."""
    if isinstance(setup.config, Config):
        cfg = deepcopy(setup.config)
    else:
        alias_config_bases()
        cfg = Config.fromfile(setup.config)
    cfg.merge_from_dict(dict(setup.options))
    if setup.length != 1:
        stretch(cfg, setup.length)
    _measure(cfg, setup)
    if setup.num_workers is not None:
        _set_workers(cfg, setup.num_workers)
    return cfg


def _measure(cfg: Config, setup: Setup) -> None:
    """Add the hook that counts costs, and the IoU of each class."""
    imports = imported_modules(cfg.get('custom_imports'))
    imports.append(setup.parts.hook)
    if _give_class_iou(cfg) and setup.parts.class_iou not in imports:
        imports.append(setup.parts.class_iou)
    cfg.custom_imports = dict(imports=imports, allow_failed_imports=False)
    hook: dict[str, Any] = dict(type='BenchmarkHook')
    if setup.channels_last:
        hook['channels_last'] = True
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def _give_class_iou(cfg: Config) -> bool:
    """Replace mmseg's IoUMetric; tell whether there was one."""
    found, name_of_ours = False, 'ClassIoUMetric'
    scope = cfg.get('default_scope') or 'mmengine'
    if scope != 'mmseg':
        name_of_ours = f'mmseg.{name_of_ours}'
    for name in ('val_evaluator', 'test_evaluator'):
        evaluators = cfg.get(name) or []
        if isinstance(evaluators, dict):
            evaluators = [evaluators]
        for evaluator in evaluators:
            if _is_iou_metric(evaluator, scope):
                evaluator['type'] = name_of_ours
                found = True
    return found


def _is_iou_metric(evaluator: Mapping[str, Any], scope: str) -> bool:
    """Tell whether an evaluator is mmseg's, and not of its name alone."""
    if type_name(evaluator) != 'IoUMetric':
        return False
    kind = find_class(METRICS, evaluator, scope)
    if kind is None:  # mmseg is not installed, or not the scope
        return evaluator['type'] in ('IoUMetric', 'mmseg.IoUMetric')
    return is_of('mmseg', kind)


def _set_workers(cfg: Config, num_workers: int) -> None:
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name].num_workers = num_workers
            cfg[name].persistent_workers = num_workers > 0


def stretch(
    cfg: Config,
    factor: float,
    *,
    of_iters: float | None = None,
    of_epochs: float | None = None,
) -> None:
    """Multiply the length of a schedule, its intervals and its schedulers.

    Args:
        cfg (Config): The config, changed in place.
        factor (float): On the length, which stays at least 1.
        of_iters (float | None): On what schedulers and hooks count in
            iterations, where that is to be another one.
        of_epochs (float | None): The same for epochs.
    """
    loop = cfg.train_cfg
    by_epoch = is_epoch_based(cfg)
    key = 'max_epochs' if by_epoch else 'max_iters'
    old = loop[key]
    loop[key] = max(1, round(old * factor))
    ratio = loop[key] / old
    # As many validations as before; the last one, at the end, may come early.
    interval = loop.get('val_interval', 1 if by_epoch else 1000)
    validations = max(1, old // interval)
    loop.val_interval = math.ceil(loop[key] / validations)
    if 'val_begin' in loop:
        loop.val_begin = round(loop.val_begin * ratio)
    if changes := loop.get('dynamic_intervals'):
        loop.dynamic_intervals = [(_scaled(k, ratio), n) for k, n in changes]
    of_iters = ratio if of_iters is None else of_iters
    of_epochs = ratio if of_epochs is None else of_epochs
    for scheduler in schedulers_of(cfg):
        by_iter = not scheduler.get('by_epoch', True)
        steps_by_iter = by_iter or scheduler.get('convert_to_iter_based')
        _stretch_scheduler(
            scheduler,
            of_iters if by_iter else of_epochs,
            of_steps=of_iters if steps_by_iter else of_epochs,
        )
    hooks = [*(cfg.get('custom_hooks') or [])]
    hooks += (cfg.get('default_hooks') or {}).values()
    _stretch_hooks(hooks, of_epochs, of_iters)


def _stretch_scheduler(
    scheduler: dict[str, Any], factor: float, *, of_steps: float
) -> None:
    """Stretch a scheduler.

    Args:
        scheduler (dict): Its config, changed in place.
        factor (float): On what its settings count in.
        of_steps (float): On how often it is stepped.
    """
    begin, end = scheduler.get('begin', 0), scheduler.get('end')
    length = None if end is None else end - begin
    is_whole = length is not None and scheduler.get('T_max') == length
    old_step = scheduler.get('step_size')
    for edge in EDGES:
        if edge in scheduler:
            scheduler[edge] = _scaled(scheduler[edge], factor)
    if 'periods' in scheduler:  # one after another
        scheduler['periods'] = _scaled_periods(scheduler['periods'], factor)
    if length:
        _keep_steps(scheduler, length)
    if is_whole:
        scheduler['T_max'] = scheduler['end'] - scheduler.get('begin', 0)
    # What decays by a factor at each step, or each few, reaches the same end.
    power = 1.0
    if type_name(scheduler).startswith('Exponential'):
        power = 1 / of_steps
    elif old_step:
        power = scheduler['step_size'] / (old_step * factor)
    if abs(power - 1) > 1e-9:
        scheduler['gamma'] = scheduler.get('gamma', 0.1) ** power


def _keep_steps(scheduler: dict[str, Any], length: int) -> None:
    """Leave a scheduler of some length at least two steps, if it had them.

    A warm-up of one step would begin and never end, and a decay never begin.
    """
    one_is_enough = scheduler.get('convert_to_iter_based')  # it is an epoch
    least = 1 if one_is_enough else min(2, length)
    begin, end = scheduler.get('begin', 0), scheduler['end']
    if end - begin < least:
        # A warm-up ends later, what comes after it begins earlier.
        begin = max(0, end - least) if begin else 0
        scheduler['end'] = begin + least
        if begin or scheduler.get('begin'):
            scheduler['begin'] = begin


def _stretch_hooks(part: Any, of_epochs: float, of_iters: float) -> None:
    """Stretch what hooks count in epochs or iterations, at any depth."""
    if isinstance(part, MutableMapping):
        for key in HOOK_EDGES:
            if isinstance(part.get(key), int):
                by_iter = key.endswith('_iter')
                scale = of_iters if by_iter else of_epochs
                part[key] = _scaled(part[key], scale)
        part = part.values()
    elif not isinstance(part, (list, tuple)):
        return
    for each in part:
        _stretch_hooks(each, of_epochs, of_iters)


def schedulers_of(cfg: Config) -> list[dict[str, Any]]:
    """Return the schedulers of a config, which may be changed in place."""
    return list(_schedulers(cfg.get('param_scheduler')))


def _schedulers(config: Any) -> Iterator[dict[str, Any]]:
    """Go through schedulers: one, several, or some for each optimizer."""
    if isinstance(config, dict) and 'type' in config:
        yield config
    elif config:
        parts = config.values() if isinstance(config, dict) else config
        for part in parts:
            yield from _schedulers(part)


def _scaled(edge: Any, factor: float) -> Any:
    if edge is None:
        return None
    if isinstance(edge, (list, tuple)):
        return [_scaled(each, factor) for each in edge]
    return max(1, round(edge * factor)) if edge > 0 else edge


def _scaled_periods(periods: Sequence[int], factor: float) -> list[int]:
    """Stretch periods so that each ends where it should."""
    ends = [0, *accumulate(periods)]
    ends = [round(end * factor) for end in ends]
    return [max(1, end - begin) for begin, end in pairwise(ends)]


def is_epoch_based(cfg: Config) -> bool:
    """Tell whether a config counts its schedule in epochs."""
    return 'max_epochs' in cfg.train_cfg


def samples_budget(
    setup: Setup, dataset_size: int, world_size: int = 1
) -> int:
    """Return how many samples the run on all data sees, on all ranks.

    Args:
        setup (Setup): What is trained.
        dataset_size (int): Samples of its training data.
        world_size (int): Number of ranks.
    """
    cfg = stock_config(setup)
    loader = cfg.train_dataloader
    if is_epoch_based(cfg):
        return cfg.train_cfg.max_epochs * samples_of_epoch(
            loader, dataset_size, world_size
        )
    iters = cfg.train_cfg.max_iters
    sampler = loader.get('sampler')  # or shuffle=True
    if sampler and type_name(sampler) == 'InfiniteSampler':
        return iters * loader.batch_size * world_size
    # One pass after another, each with a smaller last batch.
    each = samples_of_epoch(loader, dataset_size, world_size) // world_size
    passes, rest = divmod(iters, -(-each // loader.batch_size))
    return (passes * each + rest * loader.batch_size) * world_size


def samples_of_epoch(
    dataloader: Mapping[str, Any], dataset_size: int, world_size: int = 1
) -> int:
    """Return how many samples a dataloader gives in an epoch, on all ranks.

    A sampler of mmengine fills the ranks up to equal numbers.
    """
    batch = dataloader['batch_size']
    each = -(-dataset_size // world_size)
    if batches := dataloader.get('num_batch_per_epoch'):
        each = min(each, batches * batch)
    dropped = each % batch * bool(dataloader.get('drop_last'))
    return (each - dropped) * world_size


def config_hash(cfg: Config) -> str:
    """Return a digest of a config.

    Whether a type of this package is named with its prefix makes no
    difference, nor do settings that are those of the paper: the first results
    were made without the one, and when the others were the default. What is
    the default now has to be written out to count (``arms.UNSET``).
    """
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=str)
    text = text.replace('"type": "infobatch_mm.', '"type": "')
    for setting in PAPER_SETTINGS:
        text = text.replace(f'{setting}, ', '')
    return hashlib.sha256(text.encode()).hexdigest()[:16]
