"""Weight the gradient of each image, and leave the values alone.

On its way back the gradient of each image passes by here, so its norm can be
had as well. It is handed on as autograd hands on everything: as the gradient
of a tensor, which the backward pass adds up.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _ScaleGradient(torch.autograd.Function):
    """Identity whose backward multiplies along one axis by weights.

    The gradient of ``squares``, if there are any, is the squared norm of each
    image's gradient before that.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        inputs: Tensor,
        weights: Tensor,
        axis: int,
        squares: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.axis = axis  # type: ignore[attr-defined]
        ctx.reports = squares is not None  # type: ignore[attr-defined]
        return inputs.view_as(inputs)

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None, None, Tensor | None]:
        (weights,) = ctx.saved_tensors
        gradient = _DifferentiatedOnce.apply(gradient)
        squares = None
        if ctx.reports:
            squares = _norms(gradient, ctx.axis).square()
        shape = [1] * gradient.dim()
        shape[ctx.axis] = -1
        # float32 * bfloat16 is computed in float32: the weight itself is
        # never rounded, only the result.
        scaled = gradient * weights.view(shape)
        return scaled.to(gradient.dtype), None, None, squares


class _DifferentiatedOnce(torch.autograd.Function):
    """Identity for a gradient, of which no further one can be had."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError(
            'the gradient of the loss is differentiated once more '
            '(create_graph=True), as by a penalty on it, in which each weight '
            'of InfoBatch would count twice. Train without that penalty, or '
            'without InfoBatchHook: NoPruningPolicy weights too'
        )


def _norms(gradient: Tensor, axis: int) -> Tensor:
    """Return the norm of each slice along an axis, in float32."""
    others = [dim for dim in range(gradient.dim()) if dim != axis]
    if not others:
        return gradient.float().abs()
    # In float64, which no loss scale overflows, it takes twenty times longer.
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    norms = torch.linalg.vector_norm(gradient, dim=others, dtype=dtype)
    return norms.float()


class _ReportUnit(torch.autograd.Function):
    """Identity for a loss, which reports what its gradient is.

    The gradient of ``units`` is its amount, and the square of that.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, loss: Tensor, units: Tensor) -> Tensor:
        return loss.clone()  # which, unlike a view, may be changed in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        amount = gradient.sum(dtype=torch.float32).abs()
        return gradient, torch.stack([amount, amount.square()])


class GradientNorms:
    """The norm of the gradient of each image of a batch.

    It is that of the image's own loss by what enters the losses, over all
    tensors and heads: the loss is taken to be a mean over the images of the
    batch, so gradients are multiplied by their number. What the loss as a
    whole is multiplied by (the scale of mixed precision, one over the number
    of accumulated batches) is found as the gradient of the losses themselves,
    and divided by. Where losses are weighted differently outside of their
    heads, it is by a mean of those weights. Above a loss scale of some 2**60,
    which takes bfloat16 and 100,000 steps, the norms are infinite. Of a batch
    with a loss that is not finite all norms are NaN, whatever the gradients.

    Args:
        images (int): Images of the batch, B.
        device (torch.device): Where the gradients are.
    """

    def __init__(self, images: int, device: torch.device) -> None:
        self._squares, self._units = (
            torch.zeros(size, device=device, requires_grad=True)
            for size in (images, 2)
        )
        self._total = torch.zeros((), device=device)

    def squares_of(self, rows: int, places: Tensor | None) -> Tensor:
        """Return the tensor for :func:`scale_gradient` to report to.

        Args:
            rows (int): Number of rows that a head is given, R.
            places (Tensor, optional): The image that each is of, int64, (R,).
                An image of several rows has the mean of their squares. None
                where the rows are the images.

        Returns:
            Tensor: Shape (R,).
        """
        if places is None:
            return self._squares * rows**2
        ones = torch.ones_like(places, dtype=torch.float32)
        counts = torch.zeros_like(self._squares).index_add(0, places, ones)
        factors = rows**2 / counts.clamp(min=1)
        return (self._squares * factors).index_select(0, places)

    def reported(self, losses: Any) -> Any:
        """Return the losses of a head, made to report their gradients."""

        def report(loss: Tensor) -> Tensor:
            total = loss.detach().sum(dtype=torch.float32)
            self._total = self._total + total
            return _ReportUnit.apply(loss, self._units)

        return _mapped(losses, report)

    def scores(self) -> Tensor | None:
        """Return the norms, float32, shape (B,); None before backward."""
        if self._squares.grad is None or self._units.grad is None:
            return None
        # The mean of the units, each weighted by itself: one of zero is none.
        amount, square = self._units.grad
        norms = self._squares.grad.sqrt() * (amount / square)
        return norms + 0 * self._total


def scale_gradient(
    value: Any,
    weights: Tensor,
    *,
    axis: int = 0,
    squares: Tensor | None = None,
) -> Any:
    """Return ``value`` unchanged, but with its gradient weighted per image.

    Args:
        value (Any): A tensor, or nested tuples, lists and dicts of tensors.
            Tensors without gradient and anything else are passed through.
        weights (Tensor): One weight an image, float32, shape (B,).
        axis (int): The batch axis of every tensor with gradient.
        squares (Tensor, optional): Shape (B,). Its gradient will be the
            squared norm of each image's gradient, before the weight, summed
            over the tensors.

    Raises:
        ValueError: If a tensor that carries gradient has no axis of size B
            there: leaving it unweighted would bias the step.
    """

    def scaled(tensor: Tensor) -> Tensor:
        if tensor.dim() <= axis or tensor.shape[axis] != len(weights):
            raise ValueError(
                f'a tensor of shape {tuple(tensor.shape)} carries gradient '
                f'into the loss, but its axis {axis} is not the batch of '
                f'{len(weights)} images, so it cannot be weighted per image'
            )
        return _ScaleGradient.apply(tensor, weights, axis, squares)

    return _mapped(value, scaled)


def are_weighted(tensors: Iterable[Tensor]) -> bool:
    """Tell whether :func:`scale_gradient` is in the graph of any tensor."""
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen = {None}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        if node.name() == f'{_ScaleGradient.__name__}Backward':
            return True
        seen.add(node)
        waiting += [source for source, _ in node.next_functions]
    return False


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the tensors with gradient in a nested value."""
    if isinstance(value, Tensor):
        return function(value) if value.requires_grad else value
    if isinstance(value, dict):
        twin = copy.copy(value)  # of its class, with its attributes
        for key, item in value.items():
            twin[key] = _mapped(item, function)
        return twin
    if isinstance(value, (tuple, list)):
        items = [_mapped(item, function) for item in value]
        if hasattr(value, '_fields'):  # a named tuple
            return type(value)(*items)
        return type(value)(items)
    return value
