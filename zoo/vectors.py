"""Arithmetic on lists of tensors, such as the gradients of a model.

A parameter without a gradient has None in its place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor | None]


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
