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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
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
        sha1 = hashlib.sha1(self.indices.numpy().data)
        sha1.update(self.weights.numpy().data)
        return sha1.hexdigest()

    def trimmed(self, multiple_of: int) -> 'Plan':
        """Return the plan without a remainder smaller than ``multiple_of``.

        The order of a plan is random, so the part left out is drawn uniformly
        and the mean step stays unbiased.
        """
        kept = len(self) // multiple_of * multiple_of
        return replace(
            self, indices=self.indices[:kept], weights=self.weights[:kept]
        )


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
    exact = torch.tensor(scores.numpy().mean(dtype=np.float64))
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
    strata that are pruned, the largest first. None of them loses more than
    half of what it keeps by that, so that no weight more than doubles; where
    no such multiple can be reached the total stays as it is.

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
    fewest = {j: -(-kept[j] // 2) for j in pruned}
    least = total - sum(kept[j] - fewest[j] for j in pruned)
    lowest = math.ceil(least / multiple_of) * multiple_of
    highest = most // multiple_of * multiple_of
    if lowest > highest:
        return kept
    nearest = (total + multiple_of // 2) // multiple_of * multiple_of
    missing = min(max(nearest, lowest), highest) - total
    for j in sorted(pruned, key=lambda j: -sizes[j]):
        step = min(max(missing, fewest[j] - kept[j]), sizes[j] - kept[j])
        kept[j] += step
        missing -= step
    return kept


def uniform_subset(
    members: np.ndarray, m: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw m of the members without replacement, each set of m alike.

    A byte of randomness a sample serves instead of a permutation. Flips of a
    coin that keeps about m / n of the members leave nearly m of them; those
    too many are taken out, or those missing put in, at random. Neither step
    tells one member from another, so every set of m is equally likely,
    whatever the coin.

    Args:
        members (ndarray): Whether a sample is a member, bool, shape (N,).
        m (int): How many to draw, at most the number of members.
        rng (np.random.Generator): The source of randomness.

    Returns:
        ndarray: The members drawn, int64, shape (m,), ascending.
    """
    n = np.count_nonzero(members)
    if m == n:
        return np.flatnonzero(members)
    coin = rng.integers(256, size=len(members), dtype=np.uint8)
    drawn = members & (coin < 256 * m // n)
    surplus = np.count_nonzero(drawn) - m
    wrong = np.flatnonzero(members & (drawn == (surplus > 0)))
    drawn[rng.choice(wrong, abs(surplus), replace=False)] ^= True
    return np.flatnonzero(drawn)


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
        ratios = [ratio.at(progress) for ratio in self.prune_ratios]
        if not any(ratios) or not np.isfinite(scores.numpy()).any():
            return _whole(len(scores), generator)
        strata, edges, squares = self._cut(scores.numpy())
        threshold = edges[-1] if math.isfinite(edges[-1]) else None
        sizes = [int(np.count_nonzero(strata == j)) for j in range(len(edges))]
        sizes.append(len(scores) - sum(sizes))
        kept = kept_counts(sizes, [*ratios, 0.0], multiple_of)
        if kept == sizes:
            return _whole(len(scores), generator, threshold)
        weights = [
            n / m if m else 1.0 for n, m in zip(sizes, kept, strict=True)
        ]
        # (1 - p) / p is the weight less one.
        added = sum((w - 1) * s for w, s in zip(weights, squares, strict=True))
        variance_ratio = added / sum(squares) if any(squares) else 0.0
        drawn = _draw(strata, kept, weights, generator)
        return Plan(*drawn, threshold, variance_ratio)

    def _cut(
        self, scores: np.ndarray
    ) -> tuple[np.ndarray, list[float], list[float]]:
        """Cut the samples into strata; the last one is never pruned.

        Returns:
            tuple: The stratum of each sample, uint8, shape (N,), the last one
            where there is no score; the edges; the sum of squared scores of
            each stratum.
        """
        is_scored = np.isfinite(scores)
        complete = is_scored.all()
        scored = scores if complete else scores[is_scored]
        edges = self.thresholds(torch.from_numpy(scored))
        strata = _strata(scored, edges)
        squares = [
            float(np.einsum('i,i,i', scored, scored, strata == j, dtype=float))
            for j in range(len(edges) + 1)
        ]
        if not complete:
            scored_strata = strata
            strata = np.full(len(scores), len(edges), np.uint8)
            strata[is_scored] = scored_strata
        return strata, edges, squares

    def __repr__(self) -> str:
        ratios = ', '.join(map(repr, self.prune_ratios))
        return f'{type(self).__name__}({ratios})'


def _whole(
    num_samples: int,
    generator: torch.Generator,
    threshold: float | None = None,
) -> Plan:
    """Keep all samples. See :meth:`PruningPolicy.plan`."""
    order = torch.randperm(num_samples, generator=generator)
    weights = torch.ones(num_samples, dtype=torch.float32)
    return Plan(order, weights, threshold)


def _strata(values: np.ndarray, edges: Iterable[float]) -> np.ndarray:
    """Return how many of the edges are at or below each value, uint8."""
    strata = np.zeros(len(values), np.uint8)
    for edge in edges:
        strata += values >= edge
    return strata


def _draw(
    strata: np.ndarray,
    kept: Sequence[int],
    weights: Sequence[float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return indices and weights of a plan.

    The strata are laid end to end, each thinned out, and permuted. So the
    place of a sample before the permutation tells its stratum.
    """
    seed = torch.randint(2**63 - 1, (2,), generator=generator).tolist()
    rng = np.random.default_rng(seed)
    ids = np.concatenate(
        [uniform_subset(strata == j, m, rng) for j, m in enumerate(kept)]
    )
    # Places fit into four bytes up to 2**31 samples, and permute faster.
    order = torch.randperm(len(ids), generator=generator, dtype=torch.int32)
    indices = torch.from_numpy(ids).index_select(0, order)
    del ids
    ends = list(accumulate(kept))
    kept_strata = _strata(order.numpy(), ends[:-1])
    del order
    table = np.array(weights, np.float32)
    return indices, torch.from_numpy(table.take(kept_strata))


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
        # One rank at a time: NumPy is several times slower with two at once.
        ranked, begin, edges = scores.numpy().copy(), 0, []
        for rank in inner:
            ranked[begin:].partition(rank - begin)
            edges.append(float(ranked[rank]))  # the next one may move it
            begin = rank
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
