"""Prune an unchanged config by taking the stock train loops over.

Importing this module puts loops in the place of mmengine's
``IterBasedTrainLoop`` and ``EpochBasedTrainLoop``. When one is built it does
what :func:`infobatch_mm.enable` would have done to the config: it weights the
heads of the model, wraps the train data set, replaces the sampler and
registers :class:`InfoBatchHook`. Validation and test are not touched.

Without a change to a config, by the command line of any train tool:
``--cfg-options train_cfg.type=infobatch_mm.override.IterBasedTrainLoop``. In a
config: ``custom_imports = dict(imports=['infobatch_mm.override'])``. The
options of the hook go to ``train_cfg.infobatch``, unless ``custom_hooks`` has
one with its own.
"""

from collections.abc import Mapping
from typing import Any

from mmengine.registry import LOOPS

# Before the loops are replaced, so that no later import puts them back.
from mmengine.runner import _flexible_runner
from mmengine.runner import runner as runner_module
from torch import nn

from .config import check_options, prune_dataloader
from .heads import attach, outermost_heads
from .hook import InfoBatchHook
from .loops import InfoBatchEpochBasedTrainLoop, InfoBatchIterBasedTrainLoop


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
    check_options(options)
    if not isinstance(dataloader, Mapping):
        raise TypeError(
            'infobatch_mm.override needs train_dataloader as a config, but '
            f'it is a {type(dataloader).__name__}. Use the explicit '
            'components (README) where the dataloader is built by hand'
        )
    if not isinstance(runner.model, nn.Module):
        raise TypeError(
            f'infobatch_mm.override works with mmengine.runner.Runner, and '
            f'{type(runner).__name__} has no model yet when it builds its '
            'train loop. Use infobatch_mm.enable(cfg) instead'
        )
    has_hook = any(isinstance(hook, InfoBatchHook) for hook in runner.hooks)
    if has_hook and options:
        raise ValueError(
            f'train_cfg.infobatch={dict(options)!r} would not be used: the '
            'run has an InfoBatchHook with options of its own. Move them to '
            'it in custom_hooks, or take it out of custom_hooks'
        )
    heads = dict(outermost_heads(runner.model))
    for head in heads.values():
        attach(head)
    if not has_hook:
        runner.register_hook(InfoBatchHook(**options))
    names = ', '.join(
        f'{name} ({type(head).__name__})' for name, head in heads.items()
    )
    runner.logger.info(
        'infobatch_mm.override has taken the train loop over: the train '
        f'dataloader prunes, and these heads are weighted: {names}. '
        'Validation and test are untouched'
    )
    return prune_dataloader(dataloader)


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


for _loop in (IterBasedTrainLoop, EpochBasedTrainLoop):
    LOOPS.register_module(module=_loop, force=True)
    # Runners name the loop themselves if a config gives by_epoch and no type.
    for _module in (_flexible_runner, runner_module):
        setattr(_module, _loop.__name__, _loop)
