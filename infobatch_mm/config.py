"""Turn a stock config into a pruned one."""

from collections.abc import Iterable, Mapping, MutableMapping
from copy import deepcopy
from inspect import signature
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    LOOPS,
    MODELS,
    Registry,
)
from mmengine.registry import HOOKS as HOOK_CLASSES

from .datasets.indexed import IndexedDataset
from .hook import InfoBatchHook
from .host.classes import find_class, imported_modules, is_of, type_name
from .pruning.registry import PRUNING_POLICIES

PACKAGE = 'infobatch_mm'
# The second is of infobatch_mm.override.
HOOKS = ('InfoBatchHook', 'PruneHook')
# Under `head` other packages keep heads that are not weighted so.
CLS_PACKAGE = 'mmpretrain'
CLS_HEADS = dict(head='WeightedClsHead')
SEG_HEADS = dict(
    decode_head='WeightedDecodeHead', auxiliary_head='WeightedDecodeHead'
)
SAMPLERS = ('DefaultSampler', 'InfiniteSampler', 'InfoBatchSampler')
STOCK_LOOPS = ('EpochBasedTrainLoop', 'IterBasedTrainLoop')


def enable(cfg: Config, **options: Any) -> Config:
    """Return a stock mmengine config with dynamic pruning switched on.

    Nothing but what pruning needs is changed: the sampler and the data set
    of the train dataloader, the train loop, the heads of the model,
    ``custom_hooks`` and ``custom_imports``. Validation and test stay as they
    are. Enabling twice is enabling once; options given the second time
    replace those given the first.

    The types that are written name this package, as in
    ``infobatch_mm.InfoBatchSampler``, so that they are found under any
    ``default_scope``.

    Args:
        cfg (Config): Any config that trains; it is not changed.
        **options: Arguments of :class:`InfoBatchHook`, such as ``policy``.
            They come before those of the config; a policy without a type
            is of the type of its own, else an ``InfoBatchPolicy``.

    Raises:
        TypeError: If it is not a Config.
        ValueError: If an option is not known or its value not possible, or
            if the config has a part that cannot prune; the message names it.

    Example:
        >>> cfg = Config.fromfile('upernet_r50_4xb4-160k_ade20k-512x512.py')
        >>> cfg = enable(cfg, policy=dict(type='QuantilePolicy'), delta=0.9)
    """
    if not isinstance(cfg, Config):
        raise TypeError(
            f"enable(cfg) takes mmengine's Config, but got {cfg!r:.80}. Read "
            'a file with Config.fromfile(path), make one of a dict with '
            'Config(dict)'
        )
    cfg = deepcopy(cfg)
    scope = cfg.get('default_scope') or 'mmengine'
    present = [_settings(hook) for hook in _hooks_of(cfg)]
    asked = (cfg.get('train_cfg') or {}).pop('infobatch', {})
    options = combine_options(*present, asked, options)
    for name in ('model', 'train_dataloader', 'train_cfg'):
        if cfg.get(name) is None:
            raise ValueError(
                f'the config has no {name}, so it does not train and cannot '
                'be pruned'
            )
    cfg.custom_imports = _with_import(cfg.get('custom_imports'))
    cfg.train_dataloader = prune_dataloader(cfg.train_dataloader, scope)
    cfg.train_cfg = prune_loop(cfg.train_cfg, scope)
    _weight_heads(cfg.model, scope)
    _add_hook(cfg, options)
    return cfg


# Options


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of :class:`InfoBatchHook`, or say what is wrong.

    A policy without a type gets that of the default, and a class becomes its
    name, so that the config can be written to a file.

    Raises:
        ValueError: If one is not known, or has a value that is not possible.
    """
    if not isinstance(options, Mapping):
        raise ValueError(
            f'train_cfg.infobatch={options!r} is not a dict of options, as '
            'in train_cfg.infobatch.delta=0.9'
        )
    options = dict(options)
    known = list(signature(InfoBatchHook).parameters)
    for name, value in options.items():
        if name not in known:
            raise ValueError(
                f'{name}={value!r} is not an option of InfoBatch; known: '
                f'{", ".join(known)} (the settings of a policy are within '
                "it: policy=dict(type='InfoBatchPolicy', prune_ratio=0.5))"
            )
    policy = options.get('policy')
    if isinstance(policy, Mapping):
        policy = {'type': 'InfoBatchPolicy', **policy}
        options['policy'] = {**policy, 'type': _written(policy['type'])}
    # Building the hook looks at every value, and does nothing else.
    InfoBatchHook(**options)
    return options


def combine_options(*given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of several places, where the later replace the earlier.

    A policy replaces the one before as a whole. Without a type it is of the
    type of that one.

    Raises:
        ValueError: See :func:`check_options`.
    """
    options: dict[str, Any] = {}
    for each in given:
        policy = each.get('policy') if isinstance(each, Mapping) else None
        before = options.get('policy')
        if isinstance(policy, Mapping) and isinstance(before, Mapping):
            each = {**each, 'policy': {'type': before['type'], **policy}}
        options |= check_options(each)
    return options


def _written(kind: Any) -> Any:
    """Return the name of a class, as a config would write it."""
    if not isinstance(kind, type):
        return kind
    if PRUNING_POLICIES.module_dict.get(kind.__name__) is kind:
        return kind.__name__
    return f'{kind.__module__}.{kind.__qualname__}'


# Parts


def prune_dataloader(
    dataloader: Mapping[str, Any], scope: str = 'mmengine'
) -> ConfigDict:
    """Return a train dataloader's config with our sampler and data set.

    Args:
        dataloader (dict): The config.
        scope (str): The scope in which its parts would be built.
    """
    if not isinstance(dataloader, Mapping):
        raise TypeError(
            f'train_dataloader is a {type(dataloader).__name__}, and pruning '
            'works with the config of one: dict(batch_size=..., dataset=...)'
        )
    dataloader = _with_sampler(dataloader)
    sampler = dataloader['sampler']
    if not isinstance(sampler, Mapping):
        raise TypeError(
            f'train_dataloader.sampler is a {type(sampler).__name__} that is '
            'built already, and pruning works in its place. Give its config: '
            "dict(type='DefaultSampler', shuffle=True)"
        )
    kind = find_class(DATA_SAMPLERS, sampler, scope)
    is_known = kind and (is_of('mmengine', kind) or is_of(PACKAGE, kind))
    if not is_known or type_name(sampler) not in SAMPLERS:
        raise ValueError(
            f'train_dataloader.sampler.type is {_written(sampler["type"])!r}, '
            'whose order pruning would replace. Pruning works in place of '
            'DefaultSampler and InfiniteSampler'
        )
    dataset = dataloader['dataset']  # or one that is built
    is_config = isinstance(dataset, Mapping)
    if not (
        _is_ours(DATASETS, dataset, ('IndexedDataset',), scope)
        if is_config
        else isinstance(dataset, IndexedDataset)
    ):
        dataset = dict(type=f'{PACKAGE}.IndexedDataset', dataset=dataset)
    sampler = dict(sampler, type=f'{PACKAGE}.InfoBatchSampler')
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


def prune_loop(train_cfg: Mapping[str, Any], scope: str) -> dict[str, Any]:
    """Return a train loop's config with our loop in place of mmengine's."""
    train_cfg = dict(train_cfg)
    by_epoch = train_cfg.pop('by_epoch', True)
    # As in mmengine's Runner, by_epoch counts where there is no type.
    default = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    loop = {'type': default, **train_cfg}
    name = type_name(loop).removeprefix('InfoBatch')
    kind = find_class(LOOPS, loop, scope)
    is_known = kind and (is_of('mmengine', kind) or is_of(PACKAGE, kind))
    if not is_known or name not in STOCK_LOOPS:
        raise ValueError(
            f'train_cfg.type is {_written(loop["type"])!r}, and pruning works '
            'in place of EpochBasedTrainLoop and IterBasedTrainLoop. Derive '
            'the loop from InfoBatchEpochBasedTrainLoop or '
            'InfoBatchIterBasedTrainLoop and use the explicit components'
        )
    return {**train_cfg, 'type': f'{PACKAGE}.InfoBatch{name}'}


def _is_ours(
    registry: Registry,
    config: Mapping[str, Any],
    names: Iterable[str],
    scope: str,
) -> bool:
    """Tell whether a config's type is one of ours, and not of its name alone.

    Where there is no class of its name yet, the name decides.
    """
    if type_name(config) not in names:
        return False
    kind = find_class(registry, config, scope)
    return kind is None or is_of(PACKAGE, kind)


def is_classifier(model: Mapping[str, Any], scope: str) -> bool:
    """Say whether a model is one of mmpretrain's, or derived from one.

    Where there is no class of its name, the scope decides.
    """
    kind = find_class(MODELS, model, scope)
    if kind is not None:
        return any(is_of(CLS_PACKAGE, base) for base in kind.__mro__)
    prefix, has_prefix, _ = model['type'].partition('.')
    scope = model.get('_scope_') or scope
    return (prefix if has_prefix else scope) == CLS_PACKAGE


def _with_import(custom_imports: Any) -> dict[str, Any]:
    """Append to a config's imports, which mmengine replaces as a whole."""
    imports = imported_modules(custom_imports)
    if PACKAGE not in imports:
        imports.append(PACKAGE)
    return {**(custom_imports or {}), 'imports': imports}


def _weight_heads(model: MutableMapping[str, Any], scope: str) -> None:
    kinds = CLS_HEADS if is_classifier(model, scope) else SEG_HEADS
    found = [name for name in kinds if model.get(name)]
    if not found:
        raise ValueError(
            f'the model ({type_name(model)}) has none of the heads that can '
            f'be weighted: {", ".join(kinds)}. The override weights others '
            'where it can, once the model is built: set '
            f'default_hooks.infobatch.type={PACKAGE}.override.PruneHook'
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
    return dict(type=f'{PACKAGE}.{kind}', head=head)


def _add_hook(cfg: Config, options: Mapping[str, Any]) -> None:
    """Put the hook into custom_hooks, or the options into one that is."""
    if not (present := _hooks_of(cfg)):
        present = [ConfigDict(type=f'{PACKAGE}.{HOOKS[0]}')]
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *present]
    for hook in present:
        for name, value in options.items():
            hook[name] = value  # update() would mix two policies


def hook_settings(cfg: Config) -> dict[str, Any]:
    """Return the arguments of the :class:`InfoBatchHook` of a config."""
    return _settings(_hooks_of(cfg)[0])


def _settings(hook: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in hook.items() if k not in ('type', 'priority')}


def _hooks_of(cfg: Config) -> list[MutableMapping[str, Any]]:
    """Return those configs of hooks that are ours."""
    scope = cfg.get('default_scope') or 'mmengine'
    default = (cfg.get('default_hooks') or {}).values()
    return [
        hook
        for hook in (*(cfg.get('custom_hooks') or []), *default)
        if isinstance(hook, MutableMapping)
        and _is_ours(HOOK_CLASSES, hook, HOOKS, scope)
    ]
