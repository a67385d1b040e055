"""Turn a stock config into a pruned one."""

from collections.abc import Mapping, MutableMapping
from copy import deepcopy
from inspect import signature
from typing import Any

from mmengine.config import Config, ConfigDict

from .hook import InfoBatchHook

PACKAGE = 'infobatch_mm'
HOOK = 'InfoBatchHook'
# Under `head` other packages keep heads that are not weighted so.
CLS_PACKAGE = 'mmpretrain'
CLS_HEADS = dict(head='WeightedClsHead')
SEG_HEADS = dict(
    decode_head='WeightedDecodeHead', auxiliary_head='WeightedDecodeHead'
)
SAMPLERS = ('DefaultSampler', 'InfiniteSampler', 'InfoBatchSampler')
LOOPS = ('EpochBasedTrainLoop', 'IterBasedTrainLoop')


def enable(cfg: Config, **options: Any) -> Config:
    """Return a stock mmengine config with dynamic pruning switched on.

    Nothing but what pruning needs is changed: the sampler and the data set
    of the train dataloader, the train loop, the heads of the model,
    ``custom_hooks`` and ``custom_imports``. Validation and test stay as they
    are. Enabling twice is enabling once; options given the second time
    replace those given the first.

    Args:
        cfg (Config): Any config that trains; it is not changed.
        **options: Arguments of :class:`InfoBatchHook`, such as ``policy``.

    Raises:
        ValueError: If an option is not known, or if the config has a part
            that cannot prune; the message names it.

    Example:
        >>> cfg = Config.fromfile('upernet_r50_4xb4-160k_ade20k-512x512.py')
        >>> cfg = enable(cfg, policy=dict(type='QuantilePolicy'), delta=0.9)
    """
    check_options(options)
    for name in ('model', 'train_dataloader', 'train_cfg'):
        if cfg.get(name) is None:
            raise ValueError(
                f'the config has no {name}, so it does not train and cannot '
                'be pruned'
            )
    cfg = deepcopy(cfg)
    cfg.custom_imports = _with_import(cfg.get('custom_imports'))
    cfg.train_dataloader = prune_dataloader(cfg.train_dataloader)
    cfg.train_cfg = _prune_loop(cfg.train_cfg)
    _weight_heads(cfg.model, cfg.get('default_scope'))
    cfg.custom_hooks = _with_hook(cfg.get('custom_hooks') or [], options)
    return cfg


def check_options(options: Mapping[str, Any]) -> None:
    """Raise a ValueError unless InfoBatchHook takes these options."""
    known = list(signature(InfoBatchHook).parameters)
    for name, value in options.items():
        if name not in known:
            raise ValueError(
                f'{name}={value!r} is not an option of InfoBatch; known: '
                f'{", ".join(known)} (the settings of a policy are within '
                "it: policy=dict(type='InfoBatchPolicy', prune_ratio=0.5))"
            )


def prune_dataloader(dataloader: Mapping[str, Any]) -> ConfigDict:
    """Return a train dataloader's config with our sampler and data set."""
    dataloader = _with_sampler(dataloader)
    sampler = dataloader['sampler']
    if type_name(sampler) not in SAMPLERS:
        raise ValueError(
            f'train_dataloader.sampler.type is {type_name(sampler)!r}, whose '
            'order pruning would replace. Pruning works in place of '
            'DefaultSampler and InfiniteSampler'
        )
    dataset = dataloader['dataset']
    if type_name(dataset) != 'IndexedDataset':
        dataset = dict(type='IndexedDataset', dataset=dataset)
    sampler = dict(sampler, type='InfoBatchSampler')
    return ConfigDict({**dataloader, 'sampler': sampler, 'dataset': dataset})


def _with_sampler(dataloader: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write the sampler that a dataloader has by ``shuffle=True`` alone."""
    if dataloader.get('sampler') is not None:
        return dataloader
    shuffle = dataloader.get('shuffle', False)
    if not shuffle:
        raise ValueError(
            f'train_dataloader has no sampler and shuffle={shuffle}, so it '
            'reads the data in order, and a pruned round is a random draw. '
            "Set sampler=dict(type='DefaultSampler', shuffle=True)"
        )
    # PyTorch takes no shuffle beside a sampler.
    rest = {k: v for k, v in dataloader.items() if k != 'shuffle'}
    return {**rest, 'sampler': dict(type='DefaultSampler', shuffle=True)}


def type_name(config: Mapping[str, Any]) -> str:
    """Return the name of a config's type, without scope or module."""
    kind = config['type']
    name = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition('.')[2]


def _with_import(custom_imports: Any) -> dict[str, Any]:
    """Append to a config's imports, which mmengine replaces as a whole."""
    custom_imports = dict(custom_imports or {})
    imports = custom_imports.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if PACKAGE not in imports:
        imports.append(PACKAGE)
    return {**custom_imports, 'imports': imports}


def _prune_loop(train_cfg: Mapping[str, Any]) -> dict[str, Any]:
    train_cfg = dict(train_cfg)
    by_epoch = train_cfg.pop('by_epoch', True)
    # As in mmengine's Runner, by_epoch counts where there is no type.
    default = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    loop = type_name({'type': default, **train_cfg})
    stock_loop = loop.removeprefix('InfoBatch')
    if stock_loop not in LOOPS:
        raise ValueError(
            f'train_cfg.type is {loop!r}, and pruning works in place of '
            'EpochBasedTrainLoop and IterBasedTrainLoop. Derive the loop from '
            'InfoBatchEpochBasedTrainLoop or InfoBatchIterBasedTrainLoop and '
            'use the explicit components'
        )
    return {**train_cfg, 'type': f'InfoBatch{stock_loop}'}


def _package(config: Mapping[str, Any], default_scope: str | None) -> str:
    """Return the package that a config's type is of."""
    kind = config['type']
    name = kind if isinstance(kind, str) else f'{kind.__module__}.'
    scope, has_scope, _ = name.partition('.')
    return scope if has_scope else default_scope or ''


def _weight_heads(
    model: MutableMapping[str, Any], default_scope: str | None
) -> None:
    is_classifier = _package(model, default_scope) == CLS_PACKAGE
    kinds = CLS_HEADS if is_classifier else SEG_HEADS
    found = [name for name in kinds if model.get(name)]
    if not found:
        raise ValueError(
            f'the model ({type_name(model)}) has none of the heads that can '
            f'be weighted: {", ".join(kinds)}'
        )
    for name in found:
        heads, kind = model[name], kinds[name]
        if isinstance(heads, (list, tuple)):  # several, or a cascade
            model[name] = [_weighted(head, kind) for head in heads]
        else:
            model[name] = _weighted(heads, kind)


def _weighted(head: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    if type_name(head) == kind:
        return head
    return dict(type=kind, head=head)


def _with_hook(
    hooks: list[dict[str, Any]], options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    present = [hook for hook in hooks if type_name(hook) == HOOK]
    if not present:
        return [*hooks, dict(type=HOOK, **options)]
    for hook in present:
        hook.update(options)
    return hooks
