"""Drawing a plan: how many samples of each stratum, and which ones."""

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from .plan import Plan


def kept_counts(
    sizes: Sequence[int],
    prune_ratios: Sequence[float],
    multiple_of: int = 1,
    at_least: int = 0,
) -> list[int]:
    """Return how many samples each stratum keeps.

    A stratum of n samples keeps the integer nearest to ``(1 - ratio) * n``,
    but at least one: a probability of zero could not be weighted. The total
    is then moved to the nearest multiple of ``multiple_of``, and not below
    ``at_least``. To raise it, all ratios are made smaller by one factor, so
    that no stratum is kept more than one above it for that. Samples that are
    still too many or too few are those of the strata that are pruned, the
    largest first. None of them loses more than half of what it keeps by
    that, so that no weight more than doubles; where no such multiple can be
    reached the total stays as it is, and where ``at_least`` cannot be
    reached, everything is kept.

    Args:
        sizes (Sequence[int]): Number of samples of each stratum.
        prune_ratios (Sequence[float]): Share to prune of each stratum.
        multiple_of (int): What the total should be a multiple of.
        at_least (int): The least total.
    """

    def thinned(factor: float) -> list[int]:
        return [
            n
            if ratio == 0
            else min(n, max(1, round((1 - factor * ratio) * n)))
            for n, ratio in zip(sizes, prune_ratios, strict=True)
        ]

    kept = thinned(1.0)
    pruned = [j for j, ratio in enumerate(prune_ratios) if ratio and sizes[j]]
    if not pruned:
        return kept
    total, most = sum(kept), sum(sizes)
    fewest = {j: -(-kept[j] // 2) for j in pruned}
    least = total - sum(kept[j] - fewest[j] for j in pruned)
    lowest = math.ceil(max(least, at_least) / multiple_of) * multiple_of
    highest = most // multiple_of * multiple_of
    if lowest > highest:
        return kept if total >= at_least else list(sizes)
    nearest = (total + multiple_of // 2) // multiple_of * multiple_of
    wanted = min(max(nearest, lowest), highest)
    if wanted > total:
        kept = thinned((most - wanted) / (most - total))
    missing = wanted - sum(kept)
    for j in sorted(pruned, key=lambda j: -sizes[j]):
        step = min(max(missing, fewest[j] - kept[j]), sizes[j] - kept[j])
        kept[j] += step
        missing -= step
    return kept


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


def finite(scores: np.ndarray) -> np.ndarray:
    """Return the finite scores; the array itself if all of them are."""
    is_finite = np.isfinite(scores)
    return scores if is_finite.all() else scores[is_finite]


def cut(
    scores: np.ndarray, scored: np.ndarray, edges: Sequence[float]
) -> tuple[np.ndarray, list[float]]:
    """Cut the samples into strata; the last one is never pruned.

    Args:
        scores (ndarray): Of all samples, shape (N,).
        scored (ndarray): The finite ones (:func:`finite`).
        edges (Sequence[float]): The upper edge of each stratum but the last.

    Returns:
        tuple: The stratum of each sample, uint8, shape (N,), the last one
        where there is no score; the sum of squared scores of each stratum.
    """
    strata = strata_of(scored, edges)
    squares = [
        float(np.einsum('i,i,i', scored, scored, strata == j, dtype=float))
        for j in range(len(edges) + 1)
    ]
    if len(scored) < len(scores):
        scored_strata = strata
        strata = np.full(len(scores), len(edges), np.uint8)
        strata[np.isfinite(scores)] = scored_strata
    return strata, squares


def variance_ratio(
    weights: Sequence[float], squares: Sequence[float]
) -> float:
    """Return the variance that pruning adds; see :class:`Plan`.

    Args:
        weights (Sequence[float]): The weight of each stratum.
        squares (Sequence[float]): The sum of its squared scores.
    """
    # (1 - p) / p is the weight less one.
    added = sum((w - 1) * s for w, s in zip(weights, squares, strict=True))
    return added / sum(squares) if any(squares) else 0.0


def ratios_to_keep(sizes: Sequence[int], keep: float) -> list[float]:
    """Return the prune ratios that keep a share of all samples.

    The inclusion probability falls from stratum to stratum by one factor, the
    highest being kept whole, as long as that factor is at least a half, the
    paper's. Where that keeps too many it stays a half, and all strata are
    thinned alike. So no sample is weighted more than twice as much as one of
    the next stratum. The authors' quantiles with their weights of 4 and 2
    follow from ``keep=0.525``.

    Args:
        sizes (Sequence[int]): Samples of each stratum, lowest scores first;
            the last one, without scores, is always kept.
        keep (float): The share of all samples, in (0, 1].
    """
    *scored, always = sizes
    wanted = keep * sum(sizes) - always
    powers = range(len(scored) - 1, -1, -1)

    def kept(factor: float) -> float:
        return sum(n * factor**k for n, k in zip(scored, powers, strict=True))

    low, high, share = 0.5, 1.0, 1.0
    if kept(low) >= wanted:
        high = low
        # Where too many have no score, no weight more than doubles for that.
        share = max(keep / 2, wanted / kept(low))
    while high - low > 1e-12:
        middle = (low + high) / 2
        if kept(middle) < wanted:
            low = middle
        else:
            high = middle
    return [*(1 - share * high**k for k in powers), 0.0]


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


def whole_plan(
    num_samples: int,
    generator: torch.Generator,
    threshold: float | None = None,
) -> Plan:
    """Keep all samples. See :meth:`PruningPolicy.plan`."""
    order = torch.randperm(num_samples, generator=generator)
    weights = torch.ones(num_samples, dtype=torch.float32)
    return Plan(order, weights, threshold)


def strata_of(values: np.ndarray, edges: Iterable[float]) -> np.ndarray:
    """Return how many of the edges are at or below each value, uint8."""
    strata = np.zeros(len(values), np.uint8)
    for edge in edges:
        strata += values >= edge
    return strata


def draw(
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
    kept_strata = strata_of(order.numpy(), ends[:-1])
    del order
    table = np.array(weights, np.float32)
    return indices, torch.from_numpy(table.take(kept_strata))
