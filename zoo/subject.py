"""The models that are compared, and a step of one of them.

The model that was trained with pruning is compared with one that the stock
config builds: both with the same weights, frozen batch statistics and the
same random numbers.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from infobatch_mm.binding import find_heads
from infobatch_mm.ledger import Ledger

BATCH_NORM = nn.modules.batchnorm._BatchNorm
# Such as the gradients of a model; a parameter without one has None.
Tensors = Sequence[Tensor | None]


class Step(NamedTuple):
    """What a forward and backward pass gave."""

    loss: Tensor
    gradients: list[Tensor | None]
    scores: Tensor | None
    random_state: Tensor


class Subject:
    """A model of frozen statistics, each step of which starts the same.

    Args:
        model (nn.Module): The model, stock or with weighted heads.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.train()
        for module in model.modules():
            if isinstance(module, BATCH_NORM):
                module.eval()
        self.buffers = {
            name: buffer.clone() for name, buffer in model.named_buffers()
        }
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def without_dropout(self) -> 'Subject':
        """Switch off what draws a random number for each image."""
        for module in self.model.modules():
            if 'Drop' in type(module).__name__:
                module.eval()
        return self

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a batch under seed 0."""
        for name, value in self.buffers.items():
            # EMAHead learns its bases in the forward pass.
            self.model.get_buffer(name).copy_(value)
        torch.manual_seed(0)
        losses = self.model(**deepcopy(batch), mode='loss')
        return self.model.parse_losses(losses)[0]

    def step(self, batch: dict[str, Any], *weights: float) -> Step:
        """Return the gradients of a batch, weighted if weights are given."""
        ledger = open_ledger(self.model, batch, weights) if weights else None
        loss = self.loss(batch)
        state = torch.get_rng_state()
        scores = ledger.close()[1] if ledger else None
        gradients = torch.autograd.grad(
            loss, self.parameters, allow_unused=True
        )
        return Step(loss.detach(), list(gradients), scores, state)


def open_ledger(
    model: nn.Module, batch: dict[str, Any], weights: Sequence[float]
) -> Ledger:
    """Let the heads of a model weight and score a batch, as in training.

    Its samples are numbered by their place, since one that was drawn twice
    would be in the batch under the same number twice.
    """
    for place, sample in enumerate(batch['data_samples']):
        sample.set_field(place, 'infobatch_index', field_type='metainfo')
    ledger = Ledger()
    for head in find_heads(model).values():
        head.infobatch_ledger = ledger
    ledger.open(torch.arange(len(weights)), torch.tensor(weights))
    return ledger


def lay_out(model: nn.Module) -> None:
    """Give batch norms their input and their gradient in the usual layout.

    PyTorch 2.13 and 2.15 get gradients wrong on the CPU where one of the two
    belongs to a single image that was transposed to or from (B, HW, C), and
    the other does not.
    """

    def before(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0].contiguous(),)

    def after(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(Tensor.contiguous)

    for module in model.modules():
        if isinstance(module, BATCH_NORM):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)


def compare_keys(model: nn.Module, twin: nn.Module) -> None:
    """Raise RuntimeError if a key or a shape is not that of the stock model.

    It is not loaded: Swin V2 leaves out some of its own keys as it loads.
    """
    first, second = (
        {name: tuple(value.shape) for name, value in each.state_dict().items()}
        for each in (model, twin)
    )
    different = sorted(first.items() ^ second.items())
    if different:
        raise RuntimeError(f"not the stock model's state dict: {different}")


@torch.no_grad()
def copy_tensors(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters and buffers, also those that LoRA saves not."""
    for kind in ('named_parameters', 'named_buffers'):
        values = dict(getattr(source, kind)())
        for name, tensor in getattr(target, kind)():
            tensor.copy_(values[name])


def to_double(model: nn.Module) -> None:
    """Let a model compute in double precision, in place.

    XCiT makes positions in single precision and gives them to a convolution.
    """
    for module in model.double().modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda module, args: (args[0].to(module.weight.dtype),)
            )


@torch.no_grad()
def settle(model: nn.Module, batch: dict[str, Any]) -> None:
    """Set the running statistics of batch norms to those of a batch.

    After few iterations they are far from them, and what comes out of a deep
    model of frozen statistics can be so large that rounding error dominates.
    """
    for module in model.modules():
        if isinstance(module, BATCH_NORM):
            module.momentum = 1.0
    model.train()(**deepcopy(batch), mode='loss')


# Arithmetic on lists of tensors


def difference(found: Tensors, expected: Tensors) -> float:
    """Return the largest absolute difference; 0 only if all is equal."""
    if [f is None for f in found] != [e is None for e in expected]:
        return float('inf')
    return largest(
        [f - e for f, e in _pairs(found, expected) if not torch.equal(f, e)]
    )


def largest(tensors: Tensors) -> float:
    """Return the largest absolute value, NaN if there is one."""
    values = [t.abs().max().double() for t in tensors if t is not None]
    return float(torch.stack(values).max()) if values else 0.0


def distance(found: Tensors, expected: Tensors) -> float:
    """Return the norm of the difference over that of what is expected."""
    return norm([f - e for f, e in _pairs(found, expected)]) / norm(expected)


def norm(tensors: Tensors) -> float:
    """Return the Euclidean norm of tensors taken together."""
    norms = [torch.linalg.vector_norm(t) for t in tensors if t is not None]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def combine(
    factors: Sequence[float], first: Tensors, second: Tensors
) -> list[Tensor | None]:
    """Return a linear combination of two lists of tensors."""
    return [
        None if a is None or b is None else factors[0] * a + factors[1] * b
        for a, b in zip(first, second, strict=True)
    ]


def _pairs(first: Tensors, second: Tensors) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(first, second, strict=True)
    return [(a, b) for a, b in pairs if a is not None and b is not None]
