"""Find the parts of a loss that the weights of the samples do not reach.

With all weights zero no parameter may get a gradient. One that does gets it
from a term beside the weighted heads: in the ``loss`` of a head or a model, in
an overridden ``train_step``, or from a parameter within a loss. Such a term
would be trained on the kept samples as if they were all there are.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .host.untouched import Untouched, UntouchedRandomness, every_module

Step = Callable[[nn.Module, Any, Any], Any]
_MOST_NAMES = 8


def check_unweighted(unweighted: Any) -> None:
    """Raise a ValueError unless the setting is a known one."""
    is_list = isinstance(unweighted, (list, tuple)) and all(
        isinstance(name, str) for name in unweighted
    )
    if not is_list and unweighted not in ('refuse', 'allow'):
        raise ValueError(
            f"unweighted={unweighted!r} is not 'refuse', 'allow' or a list of "
            'names of parameters, or of modules, whose gradients may come '
            'from a loss that no sample weight reaches'
        )


def inner_model(model: nn.Module) -> nn.Module:
    """Return the model within a DDP wrapper."""
    is_ddp = isinstance(model, DistributedDataParallel)
    return model.module if is_ddp else model  # type: ignore[return-value]


class _DryWrapper:
    """An optimizer wrapper that goes backward and never steps.

    Everything else is the real one's.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self.losses: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapper, name)

    def __getitem__(self, name: str) -> '_DryWrapper':
        part = _DryWrapper(self._wrapper[name])
        part.losses = self.losses
        return part

    def update_params(self, loss: Tensor, *_: Any, **__: Any) -> None:
        """Go backward."""
        self.backward(loss)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Go backward, without scaling the loss."""
        self.losses.append(loss.detach())
        loss.backward(**kwargs)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the loss; there is no group of steps to scale it for."""
        return loss

    def step(self, *_: Any, **__: Any) -> None:
        """Leave the parameters alone."""

    def zero_grad(self, *_: Any, **__: Any) -> None:
        """Leave the gradients alone."""


@contextmanager
def untouched_model(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """Leave no trace in a model, in the random states or in the message hub.

    Yields:
        dict[str, nn.Parameter]: The parameters that train, by name, without
        a gradient; those of hidden modules too.
    """
    modules = dict(every_module(model))
    parameters = {
        f'{name}.{key}'.lstrip('.'): parameter
        for name, module in modules.items()
        for key, parameter in module.named_parameters(recurse=False)
    }
    unique = {id(each): each for each in parameters.values()}.values()
    gradients = [parameter.grad for parameter in unique]
    # On the host, since a device may have no room for them twice.
    values = [each.detach().to('cpu', copy=True) for each in unique]
    devices = {each.device.index for each in unique if each.is_cuda}
    owners = [*modules.values(), MessageHub.get_current_instance()]
    with UntouchedRandomness(devices), Untouched(owners):
        for parameter in unique:
            parameter.grad = None
        try:
            yield {k: p for k, p in parameters.items() if p.requires_grad}
        finally:
            with torch.no_grad():
                for parameter, value in zip(unique, values, strict=True):
                    if not _is_equal(parameter, value):
                        parameter.copy_(value)
            for parameter, gradient in zip(unique, gradients, strict=True):
                parameter.grad = gradient


def _is_equal(parameter: Tensor, value: Tensor) -> bool:
    return torch.equal(parameter.detach().cpu(), value)


def unreached_parameters(
    model: nn.Module, batch: Any, optim_wrapper: Any
) -> list[str] | None:
    """Return the parameters that get a gradient though all weights are zero.

    The heads of the model must be weighted by an open ledger whose weights
    are zero. It costs a step, and leaves everything as it was.

    Args:
        model (nn.Module): The model, or its wrapper.
        batch (Any): A batch of the train dataloader.
        optim_wrapper (OptimWrapper): That of the run; it makes no step.

    Returns:
        list[str] | None: Their names; None if the batch cannot tell, since
        its loss is not finite.
    """
    inner, wrapper = inner_model(model), _DryWrapper(optim_wrapper)
    no_sync = getattr(model, 'no_sync', nullcontext)
    with untouched_model(inner) as parameters, no_sync():
        # The class's own, for which nothing is compiled anew.
        type(inner).train_step(inner, deepcopy(batch), wrapper)  # type: ignore[attr-defined]
        if not all(bool(loss.isfinite().all()) for loss in wrapper.losses):
            return None
        return [
            name
            for name, parameter in parameters.items()
            if parameter.grad is not None and bool(parameter.grad.any())
        ]


def refuse_unreached(names: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise a ValueError if there are such parameters, but for those allowed.

    Args:
        names (Iterable[str]): Parameters that no weight reaches.
        allowed (Iterable[str]): Names of parameters, or of modules.
    """
    allowed = tuple(allowed)
    refused = [
        name
        for name in names
        if not any(name == a or name.startswith(f'{a}.') for a in allowed)
    ]
    if not refused:
        return
    shown = ', '.join(refused[:_MOST_NAMES])
    more = len(refused) - _MOST_NAMES
    raise ValueError(
        'with all sample weights at zero these parameters still get a '
        f'gradient: {shown}{f" and {more} more" if more > 0 else ""}. A part '
        'of the loss escapes the weights: a term that a head adds in loss() '
        'beside its loss_by_feat (or its loss_module), a term that the model '
        'adds in loss() or train_step(), or a parameter within a loss. '
        'Pruning would bias it. Move the term into loss_by_feat or '
        'loss_module, or freeze such a parameter. If the term is the same '
        'whatever the samples are, as a weight penalty is, allow it: '
        "unweighted='allow', or unweighted=['name.of.a.module', ...] among "
        'the options of InfoBatchHook'
    )
