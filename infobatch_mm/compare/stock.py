"""What a comparison reads out of a user's config: stock form and metric."""

from collections.abc import Iterator, Mapping, MutableMapping
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.hooks import CheckpointHook

from ..config import (
    CLS_HEADS,
    HOOKS,
    PACKAGE,
    SEG_HEADS,
    combine_options,
)
from ..host.classes import imported_modules, type_name
from .setup import AUTO, is_epoch_based

OVERRIDE = f'{PACKAGE}.override'
SAMPLER, DATASET = 'InfoBatchSampler', 'IndexedDataset'
HEADS = {*CLS_HEADS.values(), *SEG_HEADS.values()}
LOOP = 'InfoBatch'  # before the names of mmengine's
LOOPS = {f'{LOOP}{kind}BasedTrainLoop' for kind in ('Epoch', 'Iter')}


def check_trains(cfg: Config) -> None:
    """Raise a ValueError if a config does not train, or not validate."""
    for name in ('model', 'train_dataloader', 'train_cfg'):
        if cfg.get(name) is None:
            raise ValueError(f'the config has no {name}: it does not train')
    if cfg.train_dataloader.get('batch_size') is None:
        raise ValueError(
            'train_dataloader.batch_size is not set, from which the cost of '
            'a run follows; set it to the samples of a step on each process'
        )
    if cfg.get('val_cfg') is None or cfg.get('val_evaluator') is None:
        raise ValueError(
            'the config has no validation (val_cfg, val_evaluator), so that '
            'nothing could be compared'
        )


# The stock form of a pruned config


def unpruned(cfg: Config) -> tuple[Config, dict[str, Any]]:
    """Take out of a config what prunes in it, whichever way it came in.

    This undoes :func:`infobatch_mm.enable`, a config of explicit components
    and the override. One thing is not written in a pruned config: which stock
    sampler it had. It gets the one that mmseg and mmpretrain use with its
    loop, ``InfiniteSampler`` or ``DefaultSampler``, shuffled.

    Args:
        cfg (Config): A config, stock or pruned; it is not changed.

    Returns:
        tuple[Config, dict]: The stock config, and the options that it was
        pruned with, none if it was stock.

    Raises:
        ValueError: If something that prunes would be left.
    """
    cfg = deepcopy(cfg)
    options = combine_options(
        _take_hooks(cfg), cfg.train_cfg.pop('infobatch', {})
    )
    _unwrap_loop(cfg.train_cfg)
    _unwrap_data(cfg)
    for name in {*CLS_HEADS, *SEG_HEADS} & cfg.model.keys():
        cfg.model[name] = _unwrap_head(cfg.model[name])
    _take_imports(cfg)
    _check_nothing_left(cfg)
    return cfg, options


def _take_hooks(cfg: Config) -> dict[str, Any]:
    """Take our hooks out; return their settings."""
    options: dict[str, Any] = {}
    kept = []
    for hook in cfg.get('custom_hooks') or []:
        if _is(hook, HOOKS):
            options |= hook
        else:
            kept.append(hook)
    defaults = cfg.get('default_hooks') or {}
    for name in [name for name, h in defaults.items() if _is(h, HOOKS)]:
        options |= defaults.pop(name)
    if kept:
        cfg.custom_hooks = kept
    else:
        cfg.pop('custom_hooks', None)
    return {k: v for k, v in options.items() if k not in ('type', 'priority')}


def _unwrap_loop(train_cfg: MutableMapping[str, Any]) -> None:
    if 'type' not in train_cfg:
        return
    if _is(train_cfg, LOOPS):
        train_cfg['type'] = type_name(train_cfg).removeprefix(LOOP)
    elif _module(train_cfg['type']) == OVERRIDE:
        train_cfg['type'] = type_name(train_cfg)


def _module(kind: str | type) -> str:
    """Return the module that a type names."""
    return (
        kind.rpartition('.')[0] if isinstance(kind, str) else kind.__module__
    )


def _unwrap_data(cfg: Config) -> None:
    loader = cfg.train_dataloader
    if _is(loader.get('sampler'), {SAMPLER}):
        infinite = not (is_epoch_based(cfg) or 'round_up' in loader.sampler)
        kind = 'InfiniteSampler' if infinite else 'DefaultSampler'
        loader.sampler = dict({'shuffle': True, **loader.sampler}, type=kind)
    if _is(loader.dataset, {DATASET}):
        loader.dataset = loader.dataset.dataset


def _unwrap_head(head: Any) -> Any:
    if isinstance(head, (list, tuple)):
        return [_unwrap_head(each) for each in head]
    return head.head if _is(head, HEADS) else head


def _take_imports(cfg: Config) -> None:
    imports = imported_modules(cfg.get('custom_imports'))
    kept = [each for each in imports if each not in (PACKAGE, OVERRIDE)]
    if kept:
        cfg.custom_imports['imports'] = kept
    else:
        cfg.pop('custom_imports', None)


def _check_nothing_left(cfg: Config) -> None:
    ours = {*HOOKS, SAMPLER, DATASET, *HEADS, *LOOPS}
    for part in _parts(cfg.to_dict()):
        kind = part.get('type') or ''
        if _is(part, ours) or _module(kind) == OVERRIDE:
            raise ValueError(
                f'{type_name(part)} stands at a place of this config from '
                'which it cannot be taken out, so its other arms cannot be '
                'trained. Give the stock config that it was made of, and its '
                'options with --infobatch-options'
            )


def _parts(config: Any) -> Iterator[Mapping[str, Any]]:
    """Go through all dicts of a config."""
    if isinstance(config, Mapping):
        yield config
        config = config.values()
    elif not isinstance(config, (list, tuple)):
        return
    for part in config:
        yield from _parts(part)


def _is(config: Any, names: Any) -> bool:
    """Tell whether a config builds one of some classes."""
    return (
        isinstance(config, Mapping)
        and isinstance(config.get('type'), (str, type))
        and type_name(config) in names
    )


# Its checkpoints


def keep_one_checkpoint(cfg: Config, length: float) -> None:
    """Save as often as the config does, and keep the last one, in place."""
    hooks = cfg.get('default_hooks') or {}
    # Changed, not copied into a dict, as its type may be a class.
    saves = hooks.get('checkpoint') or ConfigDict(type='CheckpointHook')
    by_epoch = saves.get('by_epoch', True)
    often = 1 if by_epoch else cfg.train_cfg.get('val_interval', 1000)
    saves.setdefault('interval', often)
    saves.setdefault('max_keep_ckpts', 1)
    if saves['interval'] > 0:
        saves['interval'] = max(1, round(saves['interval'] * length))
    cfg.default_hooks = {**hooks, 'checkpoint': saves}


# The metric that counts


def metric_of(cfg: Config) -> str:
    """Return the metric that a config is judged by, or ``'auto'``.

    It is that of ``save_best``, of several the first. Most configs of mmseg
    and mmpretrain set none: of ``IoUMetric`` it is then the first of its
    ``iou_metrics``, and of ``Accuracy`` ``'accuracy/top1'``.

    Raises:
        ValueError: If neither is there.
    """
    best = _checkpoint(cfg).get('save_best')
    if best:
        return best if isinstance(best, str) else best[0]
    evaluator = cfg.get('val_evaluator') or {}
    if isinstance(evaluator, (list, tuple)):
        evaluator = evaluator[0]
    if evaluator.get('prefix') is None:
        if _is(evaluator, {'IoUMetric'}):
            return evaluator.get('iou_metrics', ['mIoU'])[0]
        if _is(evaluator, {'Accuracy'}) and _gives_top1(evaluator):
            return 'accuracy/top1'
    raise ValueError(
        'which metric counts is not known: default_hooks.checkpoint.save_best '
        'is not set. Give it with --metric, as the log of a validation '
        'names it'
    )


def _gives_top1(evaluator: Mapping[str, Any]) -> bool:
    topk = evaluator.get('topk', 1)
    ks = topk if isinstance(topk, (list, tuple)) else [topk]
    return 1 in ks and not evaluator.get('thrs')


def is_higher_better(cfg: Config, metric: str) -> bool:
    """Tell whether more of a metric is better, as CheckpointHook does.

    By its ``rule``, if the metric is that of ``save_best``, else by its
    ``greater_keys`` and ``less_keys``.

    Raises:
        ValueError: If these say nothing about it.
    """
    settings = _checkpoint(cfg)
    best, rule = settings.get('save_best'), settings.get('rule')
    names = [best] if isinstance(best, str) else list(best or [])
    rules = [rule] if isinstance(rule, str) else list(rule or [None])
    rules = rules * len(names) if len(rules) == 1 else rules
    if len(rules) != len(names):
        raise ValueError(
            f'default_hooks.checkpoint has {len(names)} names in save_best '
            f'and {len(rules)} in rule; give one rule for each, or one for all'
        )
    of_name = dict(zip(names, rules, strict=True))
    keys = {
        key: settings[key]
        for key in ('greater_keys', 'less_keys')
        if key in settings
    }
    try:
        hook = CheckpointHook(
            save_best=metric,
            rule=of_name.get(metric, of_name.get(AUTO)),
            **keys,
        )
    except ValueError:
        raise ValueError(
            f'whether more of {metric!r} is better is not known: neither '
            'default_hooks.checkpoint.rule nor its greater_keys and '
            'less_keys say so. Give --higher-is-better or --lower-is-better'
        ) from None
    return hook.rules[0] == 'greater'


def _checkpoint(cfg: Config) -> Mapping[str, Any]:
    return (cfg.get('default_hooks') or {}).get('checkpoint') or {}
