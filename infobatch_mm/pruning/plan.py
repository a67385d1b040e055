"""The plan of a round: which samples it keeps, and with what weight."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .prune_ratio import is_number


@dataclass(frozen=True, eq=False)
class Plan:
    """The samples of one round, in training order.

    Attributes:
        indices (Tensor): Sample ids, int64, shape (K,).
        weights (Tensor): Gradient weights beside them, float32, shape (K,).
            From a policy, their sum is the number of samples of the whole
            data set.
        threshold (float, optional): The score below which samples may have
            been pruned; None if the round has no threshold.
        variance_ratio (float): The variance that pruning adds, from the
            scores alone: the sum of ``(1 - p) / p * score ** 2`` over the sum
            of ``score ** 2``, both over all scored samples, where p is the
            probability m / n of being kept. If the score stands for the norm
            of the gradient, it is the variance of the weighted sum of
            gradients, over the sum of their squared norms, for samples kept
            independently of each other (Horvitz-Thompson). A stratum is
            drawn without replacement, which subtracts the stratum's mean
            from its gradients and multiplies by ``n / (n - 1)``. That leaves
            the variance as it is if they are orthogonal, and makes it less
            if the squared norm of their sum exceeds the sum of their squared
            norms. 0 if nothing is pruned, or if all scores are zero.
        asked (int, optional): How many samples a policy with ``keep`` was
            asked for, of which whole batches and samples without a score may
            make another number; None without ``keep``, or with nothing to
            prune.
    """

    indices: Tensor
    weights: Tensor
    threshold: float | None = None
    variance_ratio: float = 0.0
    asked: int | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def mean_weight(self) -> float:
        """float: Mean of the weights; N / K if the plan is not trimmed."""
        return self.weights.mean(dtype=torch.float64).item()

    def digest(self) -> str:
        """Return the SHA-1 of the indices and weights, in order."""
        sha1 = hashlib.sha1(self.indices.contiguous().numpy().data)
        sha1.update(self.weights.contiguous().numpy().data)
        return sha1.hexdigest()

    def trimmed(self, multiple_of: int) -> 'Plan':
        """Return the plan without a remainder smaller than ``multiple_of``.

        The order of a plan is random, so the part left out is drawn uniformly
        and the mean step stays unbiased.
        """
        return self.first(len(self) // multiple_of * multiple_of)

    def first(self, kept: int) -> 'Plan':
        """Return the plan with its first samples alone."""
        return replace(
            self, indices=self.indices[:kept], weights=self.weights[:kept]
        )


def check_plan(plan: Any, total: int, policy: Any) -> None:
    """Raise a ValueError unless a policy has planned so many samples.

    One of the user's may give anything. A sample that is in a plan twice
    would have one of its weights both times, and a single weight be that of
    all samples.
    """
    if fault := _fault_of(plan, total):
        raise ValueError(
            f'the plan() of {type(policy).__name__} gave {fault}. It must '
            'give a Plan of one or more samples: indices, int64, (K,), each '
            'at most once; weights, float32, (K,), not negative; and as '
            'threshold a float or None'
        )


def _fault_of(plan: Any, total: int) -> str | None:
    """Return what is wrong with a plan of so many samples, if anything."""
    if not isinstance(plan, Plan):
        return f'a {type(plan).__name__}'
    indices, weights = plan.indices, plan.weights
    kinds = [getattr(each, 'dtype', None) for each in (indices, weights)]
    if kinds != [torch.int64, torch.float32]:
        return f'indices and weights of the types {kinds}'
    shapes = tuple(indices.shape), tuple(weights.shape)
    if shapes[0] != shapes[1] or len(shapes[0]) != 1 or 0 in shapes[0]:
        return f'indices and weights of the shapes {shapes}'
    if indices.min() < 0 or indices.max() >= total:
        return f'indices that are not within its {total} samples'
    is_kept = torch.zeros(total, dtype=torch.bool)
    is_kept[indices] = True
    if is_kept.sum() < len(indices):
        return 'some of its samples more than once'
    if not (weights.isfinite() & (weights >= 0)).all():
        return 'weights that are negative or not finite'
    if plan.threshold is not None and not is_number(plan.threshold):
        return f'a threshold of type {type(plan.threshold).__name__}'
    return None
