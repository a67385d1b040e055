"""Pruning policies: which samples a round keeps, and with what weight.

Pure functions and classes on tensors; nothing here imports mmengine. A policy
cuts the scored samples into strata, keeps a part of each stratum drawn
without replacement, and weights what it keeps by the inverse of the inclusion
probability, ``n / m``. The sum of weighted gradients is then unbiased
(Horvitz-Thompson), whatever the scores are.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Tolerance of comparisons on the clock: 7 of 100 steps reach delta = 0.07,
# although 0.07 * 100 is above 7 in floating point.
_CLOCK_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Plan:
    """The samples of one round, in training order.

    Attributes:
        indices (Tensor): Sample ids, int64, shape (K,).
        weights (Tensor): Gradient weights beside them, float32, shape (K,).
            Their sum is the number of samples of the whole data set.
        threshold (float, optional): The score below which samples may have
            been pruned; None if the round has no threshold.
    """

    indices: Tensor
    weights: Tensor
    threshold: float | None = None
    variance_ratio: float = 0.0

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def mean_weight(self) -> float:
        """float: Mean of the weights; N / K if the plan is not trimmed."""
        return self.weights.mean(dtype=torch.float64).item()

    def digest(self) -> str:
        """Return the SHA-1 of the indices and weights, in order."""
        sha1 = hashlib.sha1(self.indices.numpy().tobytes())
        sha1.update(self.weights.numpy().tobytes())
        return sha1.hexdigest()

    def trimmed(self, multiple_of: int) -> 'Plan':
        """Return the plan without a remainder smaller than ``multiple_of``.

        The order of a plan is random, so the part left out is drawn uniformly
        and the mean step stays unbiased.
        """
        kept = len(self) // multiple_of * multiple_of
        return Plan(self.indices[:kept], self.weights[:kept], self.threshold)


class PruneRatio:
    """A prune ratio over the full-data clock.

    It runs from ``start`` at clock 0 to ``end`` at ``delta`` and is zero from
    ``delta`` on, which is the annealing of the paper (section 3.3).

    Args:
        start (float): The ratio at clock 0, in [0, 1).
        end (float): The ratio just before ``delta``, in [0, 1).
        delta (float): The share of the clock from which nothing is pruned,
            in [0, 1].
    """

    def __init__(self, start: float, end: float, *, delta: float) -> None:
        for name, ratio in (('start', start), ('end', end)):
            if not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
                raise ValueError(
                    f'prune_ratio must be in [0, 1), but its {name} is '
                    f'{ratio!r}: at 1 no sample of the stratum could be kept, '
                    'and no weight would make up for it'
                )
        if not isinstance(delta, (int, float)) or not 0 <= delta <= 1:
            raise ValueError(
                f'delta must be in [0, 1], but got {delta!r}: it is the share '
                'of the full-data budget after which all data is used'
            )
        self.start, self.end, self.delta = start, end, delta

    @classmethod
    def parse(
        cls, setting: float | Mapping[str, Any], *, delta: float
    ) -> 'PruneRatio':
        """Build a prune ratio from a setting of a config.

        Args:
            setting (float | dict): A number, ``dict(type='constant',
                value=0.5)`` or ``dict(type='linear', start=0.0, end=0.9)``.
            delta (float): See :class:`PruneRatio`.
        """
        if not isinstance(setting, Mapping):
            return cls(setting, setting, delta=delta)
        options = dict(setting)
        kind = options.pop('type', None)
        if kind == 'constant' and set(options) == {'value'}:
            return cls(options['value'], options['value'], delta=delta)
        if kind == 'linear' and set(options) == {'start', 'end'}:
            return cls(options['start'], options['end'], delta=delta)
        raise ValueError(
            "prune_ratio must be a number, dict(type='constant', value=...) "
            f"or dict(type='linear', start=..., end=...), but got {setting}"
        )

    def at(self, progress: float) -> float:
        """Return the ratio at ``progress``, a share of the clock."""
        if progress >= self.delta - _CLOCK_TOLERANCE:
            return 0.0
        share = progress / self.delta
        return self.start + (self.end - self.start) * share

    def __repr__(self) -> str:
        ratio = f'{self.start:g}'
        if self.end != self.start:
            ratio = f'{self.start:g} to {self.end:g}'
        return f'{ratio} until {self.delta:g}'


def mean_threshold(scores: Tensor) -> float:
    """Return the mean of the scores, as the smallest float32 not below it.

    A float32 score is strictly below the exact mean if and only if it is
    strictly below the returned value. It never exceeds the largest score, so
    equal scores are never below their own mean, however many there are.

    Args:
        scores (Tensor): Finite scores, float32, shape (M,), M > 0.
    """
    exact = scores.mean(dtype=torch.float64)
    rounded = exact.float()
    if rounded < exact:
        rounded = rounded.nextafter(torch.tensor(math.inf))
    return min(rounded.item(), scores.max().item())


def kept_counts(
    sizes: Sequence[int], prune_ratios: Sequence[float], multiple_of: int = 1
) -> list[int]:
    """Return how many samples each stratum keeps.

    A stratum of n samples keeps the integer nearest to ``(1 - ratio) * n``,
    but at least one: a probability of zero could not be weighted. The total
    is then moved to the nearest multiple of ``multiple_of``, by changing the
    strata that are pruned, the largest first; where no such multiple can be
    reached it stays as it is.

    Args:
        sizes (Sequence[int]): Number of samples of each stratum.
        prune_ratios (Sequence[float]): Share to prune of each stratum.
        multiple_of (int): What the total should be a multiple of.
    """
    kept = [
        n if ratio == 0 else min(n, max(1, round((1 - ratio) * n)))
        for n, ratio in zip(sizes, prune_ratios, strict=True)
    ]
    pruned = [j for j, ratio in enumerate(prune_ratios) if ratio and sizes[j]]
    if not pruned:
        return kept
    total, most = sum(kept), sum(sizes)
    least = total - sum(kept[j] - 1 for j in pruned)
    lowest = math.ceil(least / multiple_of) * multiple_of
    highest = most // multiple_of * multiple_of
    if lowest > highest:
        return kept
    nearest = (total + multiple_of // 2) // multiple_of * multiple_of
    missing = min(max(nearest, lowest), highest) - total
    for j in sorted(pruned, key=lambda j: -sizes[j]):
        step = min(max(missing, 1 - kept[j]), sizes[j] - kept[j])
        kept[j] += step
        missing -= step
    return kept


def systematic_positions(n: int, m: int, generator: torch.Generator) -> Tensor:
    """Draw m of the positions 0..n-1, evenly spaced from a random start.

    Each position is drawn with probability exactly m / n. On a list in random
    order this is sampling without replacement, at the cost of one random
    number. Shape (m,), int64, ascending.
    """
    start = torch.randint(n, (1,), generator=generator)
    return (torch.arange(m) * n + start).div_(m, rounding_mode='floor')


class PruningPolicy(ABC):
    """Base of all policies.

    Args:
        prune_ratios (Sequence): The prune ratio of each stratum, lowest
            scores first; each a number or a schedule (:class:`PruneRatio`).
        delta (float): The share of the full-data clock from which nothing is
            pruned (annealing; paper, section 3.3).
    """

    def __init__(
        self,
        prune_ratios: Sequence[float | Mapping[str, Any]],
        *,
        delta: float = 0.875,
    ) -> None:
        self.prune_ratios = [
            PruneRatio.parse(ratio, delta=delta) for ratio in prune_ratios
        ]

    @abstractmethod
    def thresholds(self, scores: Tensor) -> list[float]:
        """Return the upper edge of each stratum, ascending.

        Stratum j holds the scores in ``[edge j-1, edge j)``. Scores at or
        above the last edge are always kept.

        Args:
            scores (Tensor): Finite scores, float32, shape (M,), M > 0.
        """

    def plan(
        self,
        scores: Tensor,
        *,
        generator: torch.Generator,
        multiple_of: int = 1,
        progress: float = 0.0,
    ) -> Plan:
        """Plan a round.

        Samples without a finite score are kept at weight 1. With nothing to
        prune, the order is ``torch.randperm(N, generator=generator)``, that
        of mmengine's ``DefaultSampler``.

        Args:
            scores (Tensor): One score a sample, float32, shape (N,), NaN
                where not seen yet; on the CPU.
            generator (torch.Generator): The only source of randomness.
            multiple_of (int): The number kept becomes a multiple of this, if
                something is pruned and such a number exists (a global batch).
            progress (float): The share of the full-data clock at the start of
                the round.

        Returns:
            Plan: Each sample is in it at most once. A sample of a stratum
            of n of which m are kept is in it with probability m / n, and
            then has the weight n / m.
        """
        if scores.dim() != 1 or len(scores) == 0:
            raise ValueError(
                'scores must have the shape (N,) with N > 0, but got '
                f'{tuple(scores.shape)}'
            )
        if multiple_of < 1:
            raise ValueError(
                f'multiple_of must be at least 1, but got {multiple_of}'
            )
        order = torch.randperm(len(scores), generator=generator)
        ratios = [ratio.at(progress) for ratio in self.prune_ratios]
        if not any(ratios):
            return Plan(order, torch.ones(len(order)))
        # One pass tells whether any score is missing: float32 scores cannot
        # overflow a float64 sum.
        complete = scores.sum(dtype=torch.float64).isfinite()
        finite = scores if complete else scores[scores.isfinite()]
        if len(finite) == 0:
            return Plan(order, torch.ones(len(order)))
        edges = self.thresholds(finite)
        strata = torch.zeros(len(scores), dtype=torch.uint8)
        for edge in edges:
            strata += scores >= edge
        if not complete:
            strata[~scores.isfinite()] = len(edges)
        threshold = edges[-1] if math.isfinite(edges[-1]) else None
        ratios.append(0.0)
        return _draw(order, strata, ratios, threshold, multiple_of, generator)

    def __repr__(self) -> str:
        ratios = ', '.join(map(repr, self.prune_ratios))
        return f'{type(self).__name__}({ratios})'


def _draw(
    order: Tensor,
    strata: Tensor,
    prune_ratios: Sequence[float],
    threshold: float | None,
    multiple_of: int,
    generator: torch.Generator,
) -> Plan:
    """Thin out the strata of a random order. See :meth:`PruningPolicy.plan`.

    The order is a uniform permutation, so the members of a stratum stand in
    random order too, and evenly spaced ones are a uniform sample of it. One
    permutation thus serves both for the draw and for the order.
    """
    sizes = torch.bincount(strata, minlength=len(prune_ratios)).tolist()
    kept = kept_counts(sizes, prune_ratios, multiple_of)
    if kept == sizes:
        return Plan(order, torch.ones(len(order)), threshold)
    strata = strata[order]
    chosen = torch.ones(len(order), dtype=torch.bool)
    for j, (n, m) in enumerate(zip(sizes, kept, strict=True)):
        if m < n:
            members = (strata == j).nonzero().flatten()
            chosen[members] = False
            chosen[members[systematic_positions(n, m, generator)]] = True
    weights = torch.tensor(
        [n / m if m else 1.0 for n, m in zip(sizes, kept, strict=True)]
    )
    # Evenly spaced members leave the ends of the round to the strata that are
    # kept whole; after a uniform rotation each position is like any other.
    places = chosen.nonzero().flatten()
    shift = int(torch.randint(len(places), (1,), generator=generator))
    places = places.roll(shift)
    return Plan(order[places], weights[strata[places].int()], threshold)


class InfoBatchPolicy(PruningPolicy):
    """Prune samples whose score is strictly below the mean (InfoBatch).

    Paper, equations 3 to 5. Unlike the reference code the weight is n / m
    from the true counts instead of ``1 / (1 - prune_ratio)``, so the plan is
    unbiased for every n.

    Args:
        prune_ratio (float | dict): The share to prune of the samples below
            the mean: a number in [0, 1), or a schedule over the clock such as
            ``dict(type='linear', start=0.0, end=0.9)``. Defaults to 0.5.
        delta (float): See :class:`PruningPolicy`. Defaults to 0.875.
    """

    def __init__(
        self,
        prune_ratio: float | Mapping[str, Any] = 0.5,
        *,
        delta: float = 0.875,
    ) -> None:
        super().__init__([prune_ratio], delta=delta)

    def thresholds(self, scores: Tensor) -> list[float]:
        return [mean_threshold(scores)]


class QuantilePolicy(PruningPolicy):
    """Prune by quantiles of the scores, the easiest most.

    The variant in the authors' code, behind the 40 % figures. Scores tied
    with a quantile belong to the stratum above it.

    Args:
        quantiles (Sequence[float]): Upper quantile of each stratum,
            ascending, in (0, 1]. Defaults to (0.2, 0.85).
        prune_ratios (Sequence): The prune ratio of each stratum, each a
            number or a schedule. Defaults to (0.75, 0.5): the lowest 20 %
            keep 25 %, the next 65 % keep 50 %, the rest all.
        delta (float): See :class:`PruningPolicy`. Defaults to 0.875.
    """

    def __init__(
        self,
        quantiles: Sequence[float] = (0.2, 0.85),
        *,
        prune_ratios: Sequence[float | Mapping[str, Any]] = (0.75, 0.5),
        delta: float = 0.875,
    ) -> None:
        super().__init__(prune_ratios, delta=delta)
        edges = [0.0, *quantiles]
        rising = all(a < b for a, b in zip(edges, edges[1:], strict=False))
        if not quantiles or not rising or edges[-1] > 1:
            raise ValueError(
                'quantiles must rise within (0, 1], but got '
                f'{tuple(quantiles)}'
            )
        if len(quantiles) != len(self.prune_ratios):
            raise ValueError(
                'prune_ratios must have one entry for each of the '
                f'{len(quantiles)} quantiles, but got {prune_ratios}'
            )
        self.quantiles = tuple(quantiles)

    def thresholds(self, scores: Tensor) -> list[float]:
        # With distinct scores, exactly floor(quantile * M) lie strictly below
        # the edge.
        ranks = [int(q * len(scores) + 1e-6) for q in self.quantiles]
        inner = [rank for rank in ranks if rank < len(scores)]
        edges = np.partition(scores.numpy(), inner)[inner].tolist()
        return edges + [math.inf] * (len(ranks) - len(inner))

    def __repr__(self) -> str:
        return f'{super().__repr__()[:-1]}; quantiles {self.quantiles})'


class RandomPolicy(PruningPolicy):
    """Prune at random, with the same rescaling: the control of InfoBatch.

    Args:
        prune_ratio (float | dict): The share to prune of all scored samples;
            a number or a schedule.
        delta (float): See :class:`PruningPolicy`. Defaults to 0.875.
    """

    def __init__(
        self, prune_ratio: float | Mapping[str, Any], *, delta: float = 0.875
    ) -> None:
        super().__init__([prune_ratio], delta=delta)

    def thresholds(self, scores: Tensor) -> list[float]:
        return [math.inf]


class NoPruningPolicy(PruningPolicy):
    """Keep every sample of every round at weight 1.

    Args:
        delta (float): Accepted so that all policies take it; without effect.
    """

    def __init__(self, *, delta: float = 0.875) -> None:
        super().__init__([], delta=delta)

    def thresholds(self, scores: Tensor) -> list[float]:
        return []
