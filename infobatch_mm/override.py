"""Prune an unchanged config by taking its train loop over.

When the train loop of a run is built this does what
:func:`infobatch_mm.enable` would have done to the config: it weights the heads
of the model, wraps the train data set, replaces the sampler and registers
:class:`InfoBatchHook`. Validation and test are not touched. A config asks for
it in one of these ways, of which the first works for every config, in a file
and on the command line of any train tool:

- ``default_hooks.infobatch.type=infobatch_mm.override.PruneHook``
- ``custom_imports = dict(imports=['infobatch_mm.override'])``
- ``train_cfg.type=infobatch_mm.override.IterBasedTrainLoop``, or
  ``EpochBasedTrainLoop``, where the config names its loop by a type

The options of the hook go beside the type in the first and to
``train_cfg.infobatch`` in the others. The run of a config that asks for
nothing, and has no ``train_cfg.infobatch``, is mmengine's own, whatever was
imported or trained in the process before.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .config import (
    check_options,
    prune_dataloader,
    prune_loop,
)
from .heads import attach, outermost_heads
from .hook import InfoBatchHook
from .host.classes import imported_modules
from .host.stock_loops import rewrite_train_cfg
from .loops import InfoBatchEpochBasedTrainLoop, InfoBatchIterBasedTrainLoop


class PruneHook(InfoBatchHook):
    """An :class:`InfoBatchHook` that brings the other parts of pruning along.

    In ``default_hooks`` it adds itself to the hooks of any config, as the
    entries of that dict are merged, and replaces nothing.

    Args:
        **options: Those of :class:`InfoBatchHook`. A policy without a type is
            an ``InfoBatchPolicy``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**check_options(options))


def is_asked_for(runner: Any, train_cfg: Mapping[str, Any]) -> bool:
    """Say whether the config of a run asks for the override."""
    imports = imported_modules(runner.cfg.get('custom_imports'))
    return (
        __name__ in imports
        or 'infobatch' in train_cfg
        or any(isinstance(hook, PruneHook) for hook in runner.hooks)
    )


def rewritten(runner: Any, train_cfg: dict[str, Any]) -> Mapping[str, Any]:
    """Return the config of the train loop that a run is to have."""
    if not is_asked_for(runner, train_cfg):
        return train_cfg
    scope = runner.cfg.get('default_scope') or 'mmengine'
    pruned = prune_loop(train_cfg, scope)
    loop = pruned['type'].removeprefix('infobatch_mm.InfoBatch')
    return {**pruned, 'type': f'{__name__}.{loop}'}


def has_hook(runner: Any) -> bool:
    """Tell whether a run has an :class:`InfoBatchHook` already."""
    return any(isinstance(hook, InfoBatchHook) for hook in runner.hooks)


def check_can_prune(
    runner: Any, dataloader: Any, options: Mapping[str, Any]
) -> None:
    """Raise an error unless a run can be made to prune; see take_over()."""
    if not isinstance(dataloader, Mapping):
        raise TypeError(
            'infobatch_mm.override needs train_dataloader as a config, but '
            f'it is a {type(dataloader).__name__}. Use the explicit '
            'components (docs/ways_in.md) where it is built by hand'
        )
    if not isinstance(runner.model, nn.Module):
        raise TypeError(
            f'infobatch_mm.override works with mmengine.runner.Runner, and '
            f'{type(runner).__name__} has no model yet when it builds its '
            'train loop. Use infobatch_mm.enable(cfg) instead'
        )
    if options and has_hook(runner):
        raise ValueError(
            f'train_cfg.infobatch={options!r} would not be used: the '
            'run has an InfoBatchHook with options of its own. Move them to '
            'it in custom_hooks (or default_hooks), or take it out of there'
        )


def take_over(
    runner: Any, dataloader: Any, options: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Make a run prune whose train loop is about to be built.

    Args:
        runner (Runner): The runner; its model and hooks exist by now.
        dataloader (dict): Config of the train dataloader.
        options (dict): Arguments of :class:`InfoBatchHook`.

    Returns:
        dict: Config of a train dataloader that prunes.

    Raises:
        TypeError: If the dataloader, or the model, comes in another form.
        ValueError: If an option is not known, or given beside a hook that
            has its own.
    """
    options = check_options(options)
    check_can_prune(runner, dataloader, options)
    scope = runner.cfg.get('default_scope') or 'mmengine'
    dataloader = prune_dataloader(dataloader, scope)
    heads = dict(outermost_heads(runner.model))
    for head in heads.values():
        attach(head)
    if not has_hook(runner):
        runner.register_hook(InfoBatchHook(**options))
    names = ', '.join(
        f'{name} ({type(head).__name__})' for name, head in heads.items()
    )
    runner.logger.info(
        'infobatch_mm.override has taken the train loop over: the train '
        f'dataloader prunes, and these heads are weighted: {names}. '
        'Validation and test are untouched'
    )
    return dataloader


class TakeOver:
    """Make the run prune before its train loop is built.

    Args:
        runner (Runner): The runner.
        dataloader (dict): Config of the stock train dataloader.
        infobatch (dict): Arguments of :class:`InfoBatchHook`.
        **settings: Those of the stock loop.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        *,
        infobatch: Mapping[str, Any] = {},
        **settings: Any,
    ) -> None:
        dataloader = take_over(runner, dataloader, infobatch)
        super().__init__(runner, dataloader, **settings)  # type: ignore[call-arg]


class IterBasedTrainLoop(TakeOver, InfoBatchIterBasedTrainLoop):
    """Stands in for mmengine's loop of this name; see :class:`TakeOver`."""


class EpochBasedTrainLoop(TakeOver, InfoBatchEpochBasedTrainLoop):
    """Stands in for mmengine's loop of this name; see :class:`TakeOver`."""


rewrite_train_cfg(rewritten)
