"""Find the parts of a loss that the weights of the samples do not reach.

With all weights zero no parameter may get a gradient. One that does gets it
from a term beside the weighted heads: in the ``loss`` of a head or a model, in
an overridden ``train_step``, or from a parameter within a loss. Such a term
would be trained on the kept samples as if they were all there are.
"""

import math
from collections.abc import Iterable, Iterator, KeysView
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .host.untouched import Untouched, UntouchedRandomness, every_module

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


class _DryOptimizer:
    """An optimizer that never steps, and else is the real one."""

    def __init__(self, real: Any) -> None:
        self._real = real

    @property  # type: ignore[misc]  # what isinstance() goes by
    def __class__(self) -> Any:
        return type(self._real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def step(self, closure: Any = None, **_: Any) -> Any:
        """Leave the parameters alone."""
        return closure() if callable(closure) else None

    def zero_grad(self, *_: Any, **__: Any) -> None:
        """Leave the gradients alone."""


class _DryWrapper(_DryOptimizer):
    """An optimizer wrapper, or a dict of them, that only goes backward.

    Args:
        real (OptimWrapper): That of the run.
        losses (list): Where the losses are noted.
        scaled (bool): Whether losses are multiplied as in training, by what
            mixed precision keeps small gradients from vanishing with.
    """

    def __init__(
        self, real: Any, losses: list[Tensor], *, scaled: bool
    ) -> None:
        super().__init__(real)
        self._losses, self._scaled = losses, scaled

    def _dry(self, part: Any) -> '_DryWrapper':
        return _DryWrapper(part, self._losses, scaled=self._scaled)

    @property
    def optimizer(self) -> _DryOptimizer:
        """_DryOptimizer: In place of the real one."""
        return _DryOptimizer(self._real.optimizer)

    def __len__(self) -> int:
        return len(self._real)

    def __contains__(self, name: str) -> bool:
        return name in self._real

    def __getitem__(self, name: str) -> '_DryWrapper':
        return self._dry(self._real[name])

    def keys(self) -> KeysView[str]:
        """Return the names of the wrappers."""
        return self._real.keys()

    def values(self) -> Iterator['_DryWrapper']:
        """Yield the wrappers."""
        return map(self._dry, self._real.values())

    def items(self) -> Iterator[tuple[str, '_DryWrapper']]:
        """Yield the wrappers, with their names."""
        return zip(self.keys(), self.values(), strict=True)

    def update_params(self, loss: Tensor, *_: Any, **__: Any) -> None:
        """Go backward."""
        self.backward(loss)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Go backward."""
        self._losses.append(loss.detach())
        scaler = getattr(self._real, 'loss_scaler', None)
        if scaler is not None and self._scaled:
            loss = loss * scaler.get_scale()
        loss.backward(**kwargs)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the loss; there is no group of steps to scale it for."""
        return loss


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
    are zero. It costs a step, or two, and leaves everything as it was. All
    ranks must call it.

    Args:
        model (nn.Module): The model, or its wrapper.
        batch (Any): A batch of the train dataloader.
        optim_wrapper (OptimWrapper): That of the run; it makes no step.

    Returns:
        list[str] | None: Their names; None if the batch cannot tell, since
        its loss, or a gradient of it, is not finite.
    """
    sizes = _gradients(model, batch, optim_wrapper, scaled=True)
    overflows = not all(map(math.isfinite, (sizes or {}).values()))
    if any(all_gather_object(overflows)):  # all ranks once more, or none
        # The scale of the loss is too large, as it is when training begins.
        sizes = _gradients(model, batch, optim_wrapper, scaled=False)
    # Zero times infinity is no number.
    if sizes is None or not all(map(math.isfinite, sizes.values())):
        return None
    return [name for name, size in sizes.items() if size]


def _gradients(
    model: nn.Module, batch: Any, optim_wrapper: Any, *, scaled: bool
) -> dict[str, float] | None:
    """Return the largest gradient of each parameter in a step.

    Returns:
        dict[str, float] | None: By name; None if a loss is not finite.
    """
    inner, losses = inner_model(model), list[Tensor]()
    wrapper = _DryWrapper(optim_wrapper, losses, scaled=scaled)
    no_sync = getattr(model, 'no_sync', nullcontext)
    sizes: dict[str, Tensor] = {}

    def note(name: str, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None and gradient.numel():
            size = gradient.detach().abs().amax()
            sizes[name] = torch.maximum(sizes.get(name, size), size)

    def hold_back(*_: Any) -> None:
        # An optimizer within another is past the wrapper: SAM has one.
        for name, parameter in parameters.items():
            note(name, parameter)
            parameter.grad = None

    with untouched_model(inner) as parameters, no_sync():
        # As they come, since a train_step may clear them before it ends ...
        handles = [
            parameter.register_post_accumulate_grad_hook(partial(note, name))
            for name, parameter in parameters.items()
        ]
        handles.append(register_optimizer_step_pre_hook(hold_back))
        try:
            _own_step(inner)(deepcopy(batch), optim_wrapper=wrapper)
        finally:
            for handle in handles:
                handle.remove()
        for name, parameter in parameters.items():
            note(name, parameter)  # ... or set them itself
        if not all(bool(loss.isfinite().all()) for loss in losses):
            return None
        return {n: float(sizes[n]) for n in parameters if n in sizes}


def _own_step(model: nn.Module) -> Any:
    """Return the ``train_step`` of a model, before it was compiled."""
    step: Any = model.train_step
    return getattr(step, '_torchdynamo_orig_callable', step)


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
