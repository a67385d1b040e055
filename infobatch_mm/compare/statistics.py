"""Intervals, verdicts and power over seeds; pure functions."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..host.packages import require

MARGIN = 0.5  # points that an arm may lose and still be called lossless
LEVEL = 0.95  # of each one-sided interval


def _stats() -> Any:
    return require('scipy.stats', 'compare')


class Paired(NamedTuple):
    """Differences of an arm to another with the same seeds.

    Attributes:
        seeds (int): Their number.
        mean (float): Mean difference.
        deviation (float): Standard deviation of the differences; NaN for one.
        low (float): Lower end of the one-sided interval.
        high (float): Upper end of the other one-sided interval.
    """

    seeds: int
    mean: float
    deviation: float
    low: float
    high: float


def paired(differences: Sequence[float]) -> Paired:
    """Return the mean of paired differences with its t intervals.

    Both ends together are a two-sided interval of 2 * LEVEL - 1.
    """
    values = np.asarray(differences, dtype=float)
    count, mean = len(values), float(values.mean())
    if count < 2:
        return Paired(count, mean, math.nan, -math.inf, math.inf)
    deviation = float(values.std(ddof=1))
    reach = _stats().t.ppf(LEVEL, count - 1) * deviation / math.sqrt(count)
    return Paired(count, mean, deviation, mean - reach, mean + reach)


def verdict(difference: Paired, margin: float = MARGIN) -> str:
    """Return lossless, lossy or inconclusive.

    Lossless: the difference is above ``-margin`` with one-sided confidence
    LEVEL. Lossy: it is below ``-margin`` with the same confidence.
    """
    if difference.low > -margin:
        return 'lossless'
    if difference.high < -margin:
        return 'lossy'
    return 'inconclusive'


BETTER, WORSE, SAME = 'better', 'worse', 'indistinguishable'


def judge(gain: Paired) -> str:
    """Return better, worse or indistinguishable.

    Better: the gain is above 0 with one-sided confidence LEVEL; worse: it is
    below. Nothing is returned of one seed, of values that are not finite, and
    where each seed gave the same gain, other than 0: the metric is then so
    coarse, or the seeds so alike, that their spread tells nothing.

    Args:
        gain (Paired): Of more than one seed; positive is good.
    """
    if gain.seeds < 2 or not math.isfinite(gain.mean):
        return ''
    if is_constant(gain):
        return ''
    if gain.low > 0:
        return BETTER
    return WORSE if gain.high < 0 else SAME


def is_constant(gap: Paired) -> bool:
    """Tell whether each seed gave the same difference, other than 0."""
    return gap.mean != 0 and math.isclose(gap.low, gap.high)


def pooled_deviation(gaps: Sequence[Paired]) -> float:
    """Return the spread of paired differences, pooled over comparisons.

    ``sqrt(sum((n - 1) * s ** 2) / sum(n - 1))`` for comparisons of n seeds
    whose differences have the standard deviation s. With few seeds it is much
    steadier than each s. Comparisons with a run that diverged are left out.
    NaN if none other has two seeds.
    """
    known = [gap for gap in gaps if math.isfinite(gap.deviation)]
    degrees = sum(gap.seeds - 1 for gap in known)
    if not degrees:
        return math.nan
    squares = sum((gap.seeds - 1) * gap.deviation**2 for gap in known)
    return math.sqrt(squares / degrees)


def seeds_to_decide(
    gain: Paired, deviation: float, most: int = 100
) -> int | None:
    """Return about how many more seeds would decide a comparison.

    So many that a difference which truly is the mean seen so far would be
    found better or worse by :func:`judge` with a chance of 80 %: n less the
    seeds there are, for the least n with

        P(T > t) >= 0.8, T ~ noncentral t(n - 1, |mean| * sqrt(n) / deviation)

    and t the LEVEL quantile of Student's t with n - 1 degrees of freedom.

    Args:
        gain (Paired): The comparison.
        deviation (float): Of a paired difference, see
            :func:`pooled_deviation`.
        most (int): More seeds than these are not counted.

    Returns:
        int | None: At least 1; None if it takes more than `most` in all.
    """
    size = abs(gain.mean)
    if not size or not power(deviation, most, size) >= 0.8:
        return None
    return max(1, seeds_needed(deviation, margin=size) - gain.seeds)


def power(deviation: float, count: int, margin: float = MARGIN) -> float:
    """Return the chance that an arm without any loss is called lossless.

    Args:
        deviation (float): Standard deviation of the paired differences.
        count (int): Number of seeds.
        margin (float): See :func:`verdict`.
    """
    if count < 2:
        return 0.0
    if deviation == 0:
        return 1.0
    degrees = count - 1
    noncentrality = margin * math.sqrt(count) / deviation
    critical = _stats().t.ppf(LEVEL, degrees)
    return float(_stats().nct.sf(critical, degrees, noncentrality))


def seeds_needed(
    deviation: float, wanted: float = 0.8, margin: float = MARGIN
) -> int:
    """Return the least number of seeds with a power of `wanted`."""
    count = 2
    while power(deviation, count, margin) < wanted:
        count += 1
    return count


def rank_test(
    groups: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> tuple[float, float]:
    """Return Spearman's correlation within groups, and its p.

    Args:
        groups (Sequence): Pairs ``(x, y)`` of at least two values each. With
            several groups the correlations are averaged.

    Returns:
        tuple[float, float]: The correlation, and the two-sided p over all
        permutations within the groups. Both are NaN where a value is, or all
        of a group are the same.
    """
    seen, chances = 0.0, np.zeros(1)
    if not all(np.ptp(values) > 0 for group in groups for values in group):
        return math.nan, math.nan
    for x, y in groups:
        x_rank, y_rank = (
            _stats().zscore(_stats().rankdata(values)) / math.sqrt(len(values))
            for values in (x, y)
        )
        orders = np.array(list(itertools.permutations(y_rank)))
        seen += float(x_rank @ y_rank)
        chances = np.add.outer(chances, orders @ x_rank).ravel()
    as_far = np.abs(chances) >= abs(seen) - 1e-9
    return seen / len(groups), float(as_far.mean())
