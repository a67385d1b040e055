"""What is replaced in other packages for the time of a loss."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional


class _Functional:
    """``torch.nn.functional`` with another cross-entropy."""

    def __init__(self, cross_entropy: Callable[..., Any]) -> None:
        self.cross_entropy = cross_entropy

    def __getattr__(self, name: str) -> Any:
        return getattr(functional, name)


@contextmanager
def replaced_cross_entropy(
    module: ModuleType, cross_entropy: Callable[..., Any]
) -> Iterator[None]:
    """Let one module call another function than torch's cross-entropy.

    mmseg's cross-entropy loss takes the mean of the pixel losses that
    ``torch.nn.functional.cross_entropy`` gives it, and has no hook from which
    they could be had. So the name ``F`` of its module is replaced, for the
    time of one call of a stock loss; torch itself stays as it is. A
    TorchFunctionMode would see the call too, but slows down each of the forty
    others in the loss.

    Args:
        module (ModuleType): It knows ``torch.nn.functional`` as ``F``.
        cross_entropy (Callable): What it shall call instead.
    """
    stock = module.F
    module.F = _Functional(cross_entropy)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.F = stock  # type: ignore[attr-defined]


@contextmanager
def one_process() -> Iterator[None]:
    """Make collectives those of a single process.

    A score is the loss of a batch of one image, not of as many images as
    there are ranks, and ranks must not wait for each other to get it.
    ``torch.distributed.is_initialized`` is what losses ask before they
    average: those of mmdet in its reduce_mean, SAN's in mmengine.dist, a
    user's who knows where. It is replaced for the whole process, since each
    module that averages has names of its own for such functions.
    """
    is_initialized = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = is_initialized
