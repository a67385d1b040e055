"""Weight the gradient of each image, and leave the values alone."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _ScaleGradient(torch.autograd.Function):
    """Identity whose backward multiplies along one axis by weights."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, inputs: Tensor, weights: Tensor, axis: int
    ) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.axis = axis  # type: ignore[attr-defined]
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        shape = [1] * gradient.dim()
        shape[ctx.axis] = -1
        # float32 * bfloat16 is computed in float32: the weight itself is
        # never rounded, only the result.
        scaled = gradient * weights.view(shape)
        return scaled.to(gradient.dtype), None, None


def scale_gradient(value: Any, weights: Tensor, *, axis: int = 0) -> Any:
    """Return ``value`` unchanged, but with its gradient weighted per image.

    Args:
        value (Any): A tensor, or nested tuples, lists and dicts of tensors.
            Tensors without gradient and anything else are passed through.
        weights (Tensor): One weight an image, float32, shape (B,).
        axis (int): The batch axis of every tensor with gradient.

    Raises:
        ValueError: If a tensor that carries gradient has no axis of size B
            there: leaving it unweighted would bias the step.
    """
    if isinstance(value, Tensor):
        if not value.requires_grad:
            return value
        if value.dim() <= axis or value.shape[axis] != len(weights):
            raise ValueError(
                f'a tensor of shape {tuple(value.shape)} carries gradient '
                f'into the loss, but its axis {axis} is not the batch of '
                f'{len(weights)} images, so it cannot be weighted per image'
            )
        return _ScaleGradient.apply(value, weights, axis)
    if isinstance(value, dict):
        return {
            key: scale_gradient(item, weights, axis=axis)
            for key, item in value.items()
        }
    if isinstance(value, (tuple, list)):
        items = [scale_gradient(item, weights, axis=axis) for item in value]
        if hasattr(value, '_fields'):  # a named tuple
            return type(value)(*items)
        return type(value)(items)
    return value
