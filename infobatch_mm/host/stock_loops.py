"""Where mmengine builds and runs its train loops: what we change and ask.

mmengine has no event before a train loop is built, and tells a sampler
nothing about the run that it belongs to.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.runner import BaseLoop, FlexibleRunner, Runner

Rewrite = Callable[[Any, dict[str, Any]], Mapping[str, Any]]


def rewrite_train_cfg(rewrite: Rewrite) -> None:
    """Let a function rewrite the config of each train loop that is built.

    It replaces ``Runner.build_train_loop`` and
    ``FlexibleRunner.build_train_loop``, the one place through which a loop
    goes whether the config names it by ``type``, by class or by ``by_epoch``
    (which bypasses the registry). All else is left to the replaced method, so
    that a config which is returned as it came is built by mmengine alone.

    Calling this again replaces the function.

    Args:
        rewrite (Callable): Takes the runner and ``train_cfg``, and returns
            the ``train_cfg`` to build.
    """
    for kind in (Runner, FlexibleRunner):
        present = kind.build_train_loop
        stock = getattr(present, 'infobatch_stock', present)
        kind.build_train_loop = _rewriting(stock, rewrite)


def _rewriting(stock: Callable[..., Any], rewrite: Rewrite) -> Any:
    def build_train_loop(self: Any, loop: Any) -> Any:
        if isinstance(loop, dict):
            loop = rewrite(self, loop)
        return stock(self, loop)

    build_train_loop.__doc__ = stock.__doc__
    build_train_loop.infobatch_stock = stock  # type: ignore[attr-defined]
    return build_train_loop


def iterating_loop() -> BaseLoop | None:
    """Return the loop of mmengine in whose code the caller is called.

    It is the ``self`` of a frame of the stack. A ``DataLoader`` asks its
    sampler in the process of the loop, with workers too.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get('self')
        if isinstance(owner, BaseLoop):
            return owner
        frame = frame.f_back
    return None
