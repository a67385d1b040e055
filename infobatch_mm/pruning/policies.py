"""The policies: which samples are easy, and what part of them is pruned.

A policy cuts the scored samples into strata, keeps a part of each stratum
drawn without replacement, and weights what it keeps by the inverse of the
inclusion probability, ``n / m``. The sum of weighted gradients is then
unbiased (Horvitz-Thompson), whatever the scores are.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .draw import draw, kept_counts, strata_of, whole_plan
from .plan import Plan
from .prune_ratio import PruneRatio


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
        at_least: int = 0,
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
            at_least (int): The least number kept, as far as there are so many.
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
            return whole_plan(len(scores), generator)
        strata, edges, squares = self._cut(scores.numpy())
        threshold = edges[-1] if math.isfinite(edges[-1]) else None
        sizes = [int(np.count_nonzero(strata == j)) for j in range(len(edges))]
        sizes.append(len(scores) - sum(sizes))
        kept = kept_counts(sizes, [*ratios, 0.0], multiple_of, at_least)
        if kept == sizes:
            return whole_plan(len(scores), generator, threshold)
        weights = [
            n / m if m else 1.0 for n, m in zip(sizes, kept, strict=True)
        ]
        # (1 - p) / p is the weight less one.
        added = sum((w - 1) * s for w, s in zip(weights, squares, strict=True))
        variance_ratio = added / sum(squares) if any(squares) else 0.0
        drawn = draw(strata, kept, weights, generator)
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
        strata = strata_of(scored, edges)
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
