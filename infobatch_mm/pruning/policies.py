"""The policies: which samples are easy, and what part of them is pruned.

A policy cuts the scored samples into strata, keeps a part of each stratum
drawn without replacement, and weights what it keeps by the inverse of the
inclusion probability, ``n / m``. The sum of weighted gradients is then
unbiased (Horvitz-Thompson), whatever the scores are.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .draw import (
    cut,
    draw,
    finite,
    kept_counts,
    mean_threshold,
    ratios_to_keep,
    variance_ratio,
    whole_plan,
)
from .plan import Plan
from .prune_ratio import PruneRatio, check_keep


class PruningPolicy(ABC):
    """Base of all policies.

    Args:
        prune_ratios (Sequence, optional): The prune ratio of each stratum,
            lowest scores first; each a number or a schedule
            (:class:`PruneRatio`).
        keep (float, optional): The share of all samples that a pruned round
            keeps, in (0, 1]; the ratios follow from it and from how many
            samples each stratum has (:func:`ratios_to_keep`). With two strata
            no weight is above ``2 / keep``, with three ``4 / keep``; or twice
            that, while samples are without a score; but for the rounding to
            whole samples and batches. Where batches need more samples than
            that, ratios follow from as many.
        delta (float): The share of the full-data clock from which nothing is
            pruned (annealing; paper, section 3.3).
    """

    def __init__(
        self,
        prune_ratios: Sequence[float | Mapping[str, Any]] | None,
        *,
        keep: float | None = None,
        delta: float = 0.875,
    ) -> None:
        self.keep = keep
        if keep is not None:
            check_keep(keep, instead_of=prune_ratios)
            prune_ratios = [1 - keep]  # of all samples together
        if prune_ratios is None:
            raise ValueError(
                f'{type(self).__name__} needs a setting of what it prunes: '
                'prune_ratio, or keep, the share of all samples to keep'
            )
        self.prune_ratios = [
            PruneRatio.parse(ratio, delta=delta) for ratio in prune_ratios
        ]

    @abstractmethod
    def thresholds(self, scores: Tensor) -> list[float]:
        """Return the upper edge of each stratum, ascending.

        Stratum j holds the scores in ``[edge j-1, edge j)``. Scores at or
        above the last edge are kept, unless ``keep`` asks for less.

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
            then has the weight n / m. With ``keep`` it has that share of the
            N samples, rounded as above, unless too many have no score.
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
        scored = finite(scores.numpy())
        prunes = any(ratio.at(progress) for ratio in self.prune_ratios)
        if not prunes or not len(scored):
            return whole_plan(len(scores), generator)
        edges = self.edges(torch.from_numpy(scored))
        strata, squares = cut(scores.numpy(), scored, edges)
        below = [edge for edge in edges if math.isfinite(edge)]
        threshold = below[-1] if below else None
        sizes = [int(np.count_nonzero(strata == j)) for j in range(len(edges))]
        sizes.append(len(scores) - sum(sizes))
        kept = self.kept_counts(sizes, progress, multiple_of, at_least)
        asked = None if self.keep is None else round(self.keep * len(scores))
        if kept == sizes:
            whole = whole_plan(len(scores), generator, threshold)
            return replace(whole, asked=asked)
        weights = [
            n / m if m else 1.0 for n, m in zip(sizes, kept, strict=True)
        ]
        drawn = draw(strata, kept, weights, generator)
        added = variance_ratio(weights, squares)
        return Plan(*drawn, threshold, added, asked)

    def edges(self, scores: Tensor) -> list[float]:
        """Return the upper edges of the strata that may be pruned.

        Args:
            scores (Tensor): Finite scores, shape (M,), M > 0.
        """
        edges = self.thresholds(scores)
        if self.keep is None or math.isinf(edges[-1]):
            return edges
        return [*edges, math.inf]

    def kept_counts(
        self,
        sizes: Sequence[int],
        progress: float,
        multiple_of: int = 1,
        at_least: int = 0,
    ) -> list[int]:
        """Return how many samples of each stratum a round keeps.

        Args:
            sizes (Sequence[int]): Samples of each stratum; the last one is
                always kept.
            progress (float): See :meth:`plan`, as are the others.
        """
        ratios = [*(ratio.at(progress) for ratio in self.prune_ratios), 0.0]
        if not any(ratios):
            return list(sizes)
        if self.keep is not None:
            total = sum(sizes)
            fewest = math.ceil(max(at_least, 1) / multiple_of) * multiple_of
            if fewest > total:
                fewest = min(at_least, total)
            ratios = ratios_to_keep(sizes, max(self.keep, fewest / total))
        return kept_counts(sizes, ratios, multiple_of, at_least)

    def __repr__(self) -> str:
        ratios = ', '.join(map(repr, self.prune_ratios))
        if self.keep is not None:
            ratios = f'keep {self.keep:g} until {self.prune_ratios[0].delta:g}'
        return f'{type(self).__name__}({ratios})'


class InfoBatchPolicy(PruningPolicy):
    """Prune samples whose score is strictly below the mean (InfoBatch).

    Paper, equations 3 to 5. Unlike the reference code the weight is n / m
    from the true counts instead of ``1 / (1 - prune_ratio)``, so the plan is
    unbiased for every n.

    Args:
        prune_ratio (float | dict): The share to prune of the samples below
            the mean: a number in [0, 1), or a schedule over the clock such as
            ``dict(type='linear', start=0.0, end=0.9)``. Defaults to 0.5,
            unless ``keep`` is set.
        keep (float, optional): The share of all samples to keep, instead of
            ``prune_ratio``. With 60 % of the samples below the mean 0.7
            prunes half of those. Less than that prunes samples above the mean
            too: one below it is then kept half as often as one above it.
        delta (float): See :class:`PruningPolicy`. Defaults to 0.875.
    """

    def __init__(
        self,
        prune_ratio: float | Mapping[str, Any] | None = None,
        *,
        keep: float | None = None,
        delta: float = 0.875,
    ) -> None:
        if prune_ratio is None and keep is None:
            prune_ratio = 0.5
        ratios = None if prune_ratio is None else [prune_ratio]
        super().__init__(ratios, keep=keep, delta=delta)

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
            number or a schedule. Defaults to (0.75, 0.5), unless ``keep`` is
            set: the lowest 20 % keep 25 %, the next 65 % keep 50 %, the rest
            all.
        keep (float, optional): The share of all samples to keep, instead of
            ``prune_ratios``: each stratum is then kept less than the next by
            one factor (:func:`ratios_to_keep`). With the default quantiles
            0.525 gives the default ratios.
        delta (float): See :class:`PruningPolicy`. Defaults to 0.875.
    """

    def __init__(
        self,
        quantiles: Sequence[float] = (0.2, 0.85),
        *,
        prune_ratios: Sequence[float | Mapping[str, Any]] | None = None,
        keep: float | None = None,
        delta: float = 0.875,
    ) -> None:
        if prune_ratios is None and keep is None:
            prune_ratios = (0.75, 0.5)
        super().__init__(prune_ratios, keep=keep, delta=delta)
        edges = [0.0, *quantiles]
        rising = all(a < b for a, b in zip(edges, edges[1:], strict=False))
        if not quantiles or not rising or edges[-1] > 1:
            raise ValueError(
                'quantiles must rise within (0, 1], but got '
                f'{tuple(quantiles)}'
            )
        if prune_ratios is not None and len(quantiles) != len(prune_ratios):
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
        keep (float, optional): The share of all samples to keep, instead of
            ``prune_ratio``; one of the two is needed.
        delta (float): See :class:`PruningPolicy`. Defaults to 0.875.
    """

    def __init__(
        self,
        prune_ratio: float | Mapping[str, Any] | None = None,
        *,
        keep: float | None = None,
        delta: float = 0.875,
    ) -> None:
        ratios = None if prune_ratio is None else [prune_ratio]
        super().__init__(ratios, keep=keep, delta=delta)

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
