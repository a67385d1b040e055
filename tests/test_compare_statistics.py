"""Intervals, verdicts and power over seeds."""

import numpy as np
import pytest
from scipy import stats

from infobatch_mm.compare.statistics import (
    paired,
    power,
    rank_test,
    seeds_needed,
    verdict,
)


def test_the_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(70, 1, 8), rng.normal(70.3, 1, 8)
    gap = paired(ours - theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.9)
    assert (gap.low, gap.high) == pytest.approx(tuple(expected))
    assert gap.mean == pytest.approx((ours - theirs).mean())


@pytest.mark.parametrize(
    ('differences', 'expected'),
    [
        ([0.1, -0.1, 0.0, 0.05], 'lossless'),
        ([-0.3, -0.31, -0.29], 'lossless'),
        ([-2.0, -2.1, -1.9], 'lossy'),
        ([-2.0, 2.0, 0.0], 'inconclusive'),
        ([0.0], 'inconclusive'),
    ],
)
def test_verdict(differences, expected):
    assert verdict(paired(differences)) == expected


def test_power_is_the_share_of_lossless_verdicts():
    rng = np.random.default_rng(0)
    found = [
        verdict(paired(rng.normal(0, 0.6, 8))) == 'lossless'
        for _ in range(4000)
    ]
    assert power(0.6, 8) == pytest.approx(np.mean(found), abs=0.03)
    count = seeds_needed(0.6, 0.8)
    assert power(0.6, count - 1) < 0.8 <= power(0.6, count)


def test_rank_test_is_the_exact_permutation_test():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=6), rng.normal(size=6)

    def statistic(x):
        return stats.spearmanr(x, y).statistic

    exact = stats.permutation_test(
        [x], statistic, permutation_type='pairings', n_resamples=np.inf
    )
    expected = pytest.approx((exact.statistic, exact.pvalue))
    assert rank_test([(x, y)]) == expected


def test_ranks_are_compared_within_groups():
    rises = ([1, 2, 3], [4, 5, 6])
    # Two of the 36 pairs of orders are as far: both right, both reversed.
    assert rank_test([rises, rises]) == pytest.approx((1.0, 2 / 36))
    falls = ([1, 2, 3], [60, 50, 40])
    assert rank_test([rises, falls]) == pytest.approx((0.0, 1.0))
