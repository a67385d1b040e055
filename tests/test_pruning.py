"""Policies: against the oracle, by hand, in frequency and in the mean."""

import hashlib
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import DefaultSampler
from oracle import plan_round, variance_ratio

from infobatch_mm.pruning import (
    InfoBatchPolicy,
    NoPruningPolicy,
    Plan,
    PruneRatio,
    QuantilePolicy,
    RandomPolicy,
    kept_counts,
    mean_threshold,
    uniform_subset,
)
from infobatch_mm.pruning.draw import ratios_to_keep

NAN, INF = math.nan, math.inf
POLICIES = dict(
    InfoBatch=InfoBatchPolicy,
    Quantile=QuantilePolicy,
    Random=RandomPolicy,
    NoPruning=NoPruningPolicy,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plan_of(policy, scores, *, seed: int = 0, **options) -> Plan:
    scores = torch.tensor(scores, dtype=torch.float32)
    return policy.plan(scores, generator=generator(seed), **options)


def weight_of(plan: Plan) -> dict[int, float]:
    return dict(zip(plan.indices.tolist(), plan.weights.tolist(), strict=True))


# Against the oracle

SCORES = st.lists(
    st.integers(0, 48).map(lambda k: k / 16)
    | st.sampled_from([0.1, 0.3, 1 / 3, NAN, INF, -INF]),
    min_size=1,
    max_size=30,
)
NUMBERS = st.sampled_from([0, 0.1, 0.3, 0.5, 0.75, 0.9])
RATIOS = (
    NUMBERS
    | st.builds(lambda v: dict(type='constant', value=v), NUMBERS)
    | st.builds(
        lambda a, b: dict(type='linear', start=a, end=b), NUMBERS, NUMBERS
    )
)
SETTINGS = st.one_of(
    st.tuples(st.just('InfoBatch'), st.builds(dict, prune_ratio=RATIOS)),
    st.tuples(st.just('Random'), st.builds(dict, prune_ratio=RATIOS)),
    st.tuples(
        st.just('Quantile'),
        st.builds(
            dict,
            quantiles=st.sampled_from([(0.2, 0.85), (0.07, 0.5), (0.5, 1.0)]),
            prune_ratios=st.tuples(RATIOS, RATIOS),
        ),
    ),
    st.just(('NoPruning', {})),
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    scores=SCORES,
    policy=SETTINGS,
    multiple_of=st.integers(1, 9),
    percent=st.integers(0, 100),
    delta=st.sampled_from([0, 0.07, 0.29, 0.5, 0.875, 1]),
    seed=st.integers(0, 2**31),
)
def test_a_plan_is_one_that_the_oracle_admits(
    scores, policy, multiple_of, percent, delta, seed
):
    name, options = policy
    scores = torch.tensor(scores)
    progress = Fraction(percent, 100)
    expected = plan_round(
        scores.tolist(),
        name,
        options,
        multiple_of=multiple_of,
        progress=progress,
        delta=delta,
    )
    plan, again = (
        POLICIES[name](**options, delta=delta).plan(
            scores,
            generator=generator(seed),
            multiple_of=multiple_of,
            progress=float(progress),
        )
        for _ in range(2)
    )
    weight = weight_of(plan)

    assert plan.indices.dtype == torch.int64
    assert plan.weights.dtype == torch.float32
    assert len(plan) == len(plan.indices) == len(plan.weights) == len(weight)
    assert set(weight) <= set(range(len(scores)))
    assert all(weight.get(i) == 1 for i in expected.always)
    kept = tuple(len(s & weight.keys()) for s in expected.strata)
    assert kept in expected.admissible
    for stratum, w in zip(
        expected.strata, expected.weights(kept), strict=True
    ):
        nearest = torch.tensor(float(w), dtype=torch.float32).item()
        assert {weight[i] for i in stratum & weight.keys()} == {nearest}
    assert math.fsum(weight.values()) == pytest.approx(len(scores), rel=1e-6)
    assert plan.variance_ratio == pytest.approx(
        float(variance_ratio(scores.tolist(), expected.strata, kept)),
        rel=1e-12,
    )
    assert plan.digest() == again.digest()
    assert torch.equal(plan.indices, again.indices)


# By hand


def test_samples_strictly_below_the_mean_are_pruned():
    plan = plan_of(InfoBatchPolicy(0.5), [1, 2, 3, 6])
    weight = weight_of(plan)
    assert plan.threshold == 3
    assert len(weight) == 3
    assert weight[2] == weight[3] == 1  # at the mean, and above
    assert {weight.get(0), weight.get(1)} == {2, None}


@pytest.mark.parametrize('value', [0.1, 1 / 3, 1e-30, 3e38, 0.0, -0.7])
@pytest.mark.parametrize('num', [1, 2, 3, 1000, 1_000_003])
def test_equal_scores_are_never_below_their_own_mean(value, num):
    assert len(plan_of(InfoBatchPolicy(0.9), [value] * num)) == num


def test_the_mean_is_not_blurred_by_float32():
    scores = torch.full((1001,), 0.1)
    scores[-1] = scores[0].nextafter(torch.tensor(1.0))
    assert (scores < mean_threshold(scores)).sum() == 1000


@pytest.mark.parametrize('seed', range(5))
def test_the_threshold_is_the_least_float32_not_below_the_mean(seed):
    scores = torch.rand(1009, generator=generator(seed))
    mean = sum(map(Fraction, scores.tolist())) / len(scores)
    threshold = torch.tensor(mean_threshold(scores))
    assert threshold.item() >= mean
    assert threshold.nextafter(torch.tensor(-INF)).item() < mean


@pytest.mark.parametrize('score', [0.0, 2.5, NAN, INF])
@pytest.mark.parametrize(
    'policy',
    [
        InfoBatchPolicy(0.9),
        QuantilePolicy(),
        RandomPolicy(0.9),
        NoPruningPolicy(),
    ],
    ids=POLICIES,
)
def test_a_single_sample_is_kept(policy, score):
    assert weight_of(plan_of(policy, [score])) == {0: 1.0}


def test_a_stratum_keeps_at_least_one():
    assert weight_of(plan_of(RandomPolicy(0.9), [1, 1, 1])).popitem()[1] == 3


def test_non_finite_scores_are_kept_and_do_not_move_the_mean():
    plan = plan_of(InfoBatchPolicy(0.5), [NAN, INF, -INF, 0, 0, 4])
    weight = weight_of(plan)
    assert plan.threshold == pytest.approx(4 / 3)
    assert [weight[i] for i in (0, 1, 2, 5)] == [1, 1, 1, 1]
    assert {weight.get(3), weight.get(4)} == {2, None}


def test_the_default_quantiles_are_those_of_the_authors_code():
    weight = weight_of(plan_of(QuantilePolicy(), range(40)))
    strata = (range(8), range(8, 34), range(34, 40))
    kept = [[weight[i] for i in s if i in weight] for s in strata]
    assert kept == [[4.0] * 2, [2.0] * 13, [1.0] * 6]


@pytest.mark.parametrize('size', [100, 1_000, 10_000])
def test_quantiles_of_many_scores_are_those_of_the_sorted_ones(size):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(0))
    policy = QuantilePolicy((0.2, 0.5, 0.85), prune_ratios=(0.7, 0.5, 0.3))
    ranks = [size * 20 // 100, size // 2, size * 85 // 100]
    assert policy.thresholds(scores) == scores.sort().values[ranks].tolist()


def test_scores_tied_with_a_quantile_belong_above_it():
    policy = QuantilePolicy((0.5,), prune_ratios=(0.5,))
    assert weight_of(plan_of(policy, [1, 1, 1, 1, 2, 2])) == {
        i: 1.0 for i in range(6)
    }


def test_random_pruning_does_not_look_at_the_scores():
    scores = torch.rand(50, generator=generator())
    plans = [
        plan_of(RandomPolicy(0.5), values.tolist())
        for values in (scores, -scores, scores.zero_())
    ]
    assert len({plan.digest() for plan in plans}) == 1
    assert len(plans[0]) == 25
    assert plans[0].threshold is None


def test_the_variance_that_pruning_adds():
    # Of 1 and 2 one is kept at weight 2: (1 - 0.5) / 0.5 * (1 + 4) of 50.
    plan = plan_of(InfoBatchPolicy(0.5), [1, NAN, 2, 3, 6])
    assert plan.variance_ratio == pytest.approx(0.1, rel=1e-12)
    assert plan.trimmed(2).variance_ratio == plan.variance_ratio


@pytest.mark.parametrize(
    ('policy', 'scores', 'expected'),
    [
        (RandomPolicy(0.5), [0, 0, 0, 0], 0),
        (RandomPolicy(0.5), [NAN, INF], 0),
        (RandomPolicy(0.0), [1, 2, 3, 4], 0),
        (NoPruningPolicy(), [1, 2, 3, 4], 0),
        # Squares that float32 has no room for.
        (RandomPolicy(0.75), [3e38] * 8, 3),
        (RandomPolicy(0.75), [1e-30] * 8, 3),
    ],
)
def test_the_variance_that_pruning_adds_at_the_limits(
    policy, scores, expected
):
    assert plan_of(policy, scores).variance_ratio == pytest.approx(expected)


LINEAR = dict(type='linear', start=0.2, end=0.8)


@pytest.mark.parametrize(
    ('setting', 'progress', 'kept'),
    [
        (LINEAR, 0.0, 80),
        (LINEAR, 0.25, 50),
        (LINEAR, 0.4999, 20),
        (LINEAR, 0.5, 100),
        (LINEAR, 1.0, 100),
        (dict(type='constant', value=0.3), 0.0, 70),
        (dict(type='constant', value=0.3), 0.4999, 70),
        (dict(type='constant', value=0.3), 0.5, 100),
    ],
)
def test_the_prune_ratio_follows_its_schedule(setting, progress, kept):
    policy = RandomPolicy(setting, delta=0.5)
    assert len(plan_of(policy, [0] * 100, progress=progress)) == kept


@pytest.mark.parametrize('delta', ['0', '0.07', '0.29', '0.875', '1'])
@pytest.mark.parametrize('budget', [1, 7, 100, 160_000])
def test_annealing_begins_exactly_at_delta_of_the_budget(delta, budget):
    first = math.ceil(Fraction(delta) * budget)
    ratio = PruneRatio.parse(0.5, delta=float(delta))
    assert ratio.at(first / budget) == 0
    if first:
        assert ratio.at((first - 1) / budget) == 0.5


def test_annealing_tolerates_the_rounding_of_the_clock():
    assert 1 - 0.93 < 0.07
    assert PruneRatio.parse(0.5, delta=0.07).at(1 - 0.93) == 0


@pytest.mark.parametrize(
    ('sizes', 'ratios', 'multiple_of', 'kept'),
    [
        ([10, 6], [0.5, 0.0], 1, [5, 6]),
        ([10, 6], [0.5, 0.0], 4, [6, 6]),
        ([10, 6], [0.5, 0.0], 5, [4, 6]),
        ([10, 6], [0.5, 0.0], 16, [10, 6]),
        ([10, 6], [0.5, 0.0], 17, [5, 6]),  # no such number
        ([2, 13], [0.5, 0.0], 8, [1, 13]),  # none between 14 and 15
        ([10, 20, 3], [0.5, 0.5, 0.0], 16, [5, 8, 3]),  # the largest moves
        ([706, 318], [0.98, 0.0], 32, [34, 318]),  # 2 were less than half
        ([600, 300, 100], [0.8, 0.7, 0.0], 900, [530, 270, 100]),  # alike
        ([1, 0, 0], [0.9, 0.5, 0.0], 1, [1, 0, 0]),
        ([3, 1], [0.0, 0.0], 8, [3, 1]),
    ],
)
def test_kept_counts(sizes, ratios, multiple_of, kept):
    assert kept_counts(sizes, ratios, multiple_of) == kept


@pytest.mark.parametrize(
    ('policy', 'scores', 'progress'),
    [
        (NoPruningPolicy(), [0, 1, 2, 3, 4], 0.0),
        (InfoBatchPolicy(0), [0, 1, 2, 3, 4], 0.0),
        (RandomPolicy(0.0), [0, 1, 2, 3, 4], 0.0),
        (QuantilePolicy(prune_ratios=(0, 0)), [0, 1, 2, 3, 4], 0.0),
        (InfoBatchPolicy(), [NAN] * 5, 0.0),
        (InfoBatchPolicy(), [1] * 5, 0.0),
        (InfoBatchPolicy(), [0, 1, 2, 3, 4], 0.875),
        (RandomPolicy(0.5, delta=0), [0, 1, 2, 3, 4], 0.0),
        (QuantilePolicy(delta=1), [0, 1, 2, 3, 4], 1.0),
    ],
)
@pytest.mark.parametrize('epoch', [0, 3])
def test_with_nothing_pruned_the_order_is_default_samplers(
    policy, scores, progress, epoch
):
    stock = DefaultSampler(range(5), seed=11)
    stock.set_epoch(epoch)
    plan = plan_of(
        policy, scores, progress=progress, seed=11 + epoch, multiple_of=2
    )
    assert plan.indices.tolist() == list(stock)
    assert plan.weights.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ('build', 'name', 'value'),
    [
        (lambda: InfoBatchPolicy(1.0), 'prune_ratio', '1.0'),
        (lambda: InfoBatchPolicy(-0.1), 'prune_ratio', '-0.1'),
        (lambda: InfoBatchPolicy(NAN), 'prune_ratio', 'nan'),
        (lambda: InfoBatchPolicy('half'), 'prune_ratio', 'half'),
        (lambda: InfoBatchPolicy(keep=0), 'keep', '0'),
        (lambda: InfoBatchPolicy(keep=1.5), 'keep', '1.5'),
        (lambda: InfoBatchPolicy(keep=NAN), 'keep', 'nan'),
        (lambda: InfoBatchPolicy(keep=True), 'keep', 'True'),
        (lambda: RandomPolicy(keep='70%'), 'keep', '70%'),
        (lambda: InfoBatchPolicy(0.5, keep=0.7), 'keep=0.7', r'\[0.5\]'),
        (
            lambda: QuantilePolicy(prune_ratios=(0.7, 0.5), keep=0.4),
            'keep=0.4',
            '0.7, 0.5',
        ),
        (lambda: RandomPolicy(), 'RandomPolicy', 'prune_ratio, or keep'),
        (lambda: InfoBatchPolicy(dict(type='cos')), 'prune_ratio', 'cos'),
        (
            lambda: InfoBatchPolicy(dict(type='linear', start=0, end=1.5)),
            'prune_ratio',
            '1.5',
        ),
        (
            lambda: InfoBatchPolicy(dict(type='linear', start=0)),
            'prune_ratio',
            'start',
        ),
        (lambda: RandomPolicy(2), 'prune_ratio', '2'),
        (lambda: InfoBatchPolicy(delta=1.5), 'delta', '1.5'),
        (lambda: InfoBatchPolicy(delta=-1), 'delta', '-1'),
        (lambda: InfoBatchPolicy(delta=NAN), 'delta', 'nan'),
        (lambda: QuantilePolicy((0.5, 0.2)), 'quantiles', '0.5, 0.2'),
        (lambda: QuantilePolicy((0.2, 1.2)), 'quantiles', '1.2'),
        (lambda: QuantilePolicy((0.2, NAN)), 'quantiles', 'nan'),
        (lambda: QuantilePolicy((), prune_ratios=()), 'quantiles', r'\(\)'),
        (lambda: QuantilePolicy((0.2,)), 'prune_ratios', '0.75, 0.5'),
        (
            lambda: plan_of(RandomPolicy(0.5), [1], multiple_of=0),
            'multiple_of',
            '0',
        ),
        (lambda: plan_of(RandomPolicy(0.5), []), 'scores', r'\(0,\)'),
        (lambda: plan_of(RandomPolicy(0.5), [[1]]), 'scores', r'\(1, 1\)'),
    ],
)
def test_a_bad_setting_is_named_with_its_value(build, name, value):
    kinds = (ValueError, TypeError)
    with pytest.raises(kinds, match=f'(?s){name}.*{value}'):
        build()


def test_the_digest_is_the_sha1_of_indices_and_weights_in_order():
    def digest(indices, weights):
        return Plan(torch.tensor(indices), torch.tensor(weights)).digest()

    content = torch.tensor([3, 1]).numpy().tobytes()
    content += torch.tensor([2.0, 1.0]).numpy().tobytes()
    assert digest([3, 1], [2.0, 1.0]) == hashlib.sha1(content).hexdigest()
    assert digest([1, 3], [2.0, 1.0]) != digest([3, 1], [2.0, 1.0])
    assert digest([3, 1], [1.0, 1.0]) != digest([3, 1], [2.0, 1.0])


def test_seeds_give_different_plans():
    plans = [
        plan_of(InfoBatchPolicy(), range(50), seed=seed) for seed in range(9)
    ]
    assert len({plan.digest() for plan in plans}) == 9


@pytest.mark.parametrize(
    ('multiple_of', 'left'), [(1, 5), (2, 4), (5, 5), (6, 0)]
)
def test_a_trimmed_plan_is_the_beginning_of_it(multiple_of, left):
    plan = plan_of(RandomPolicy(0.5), range(10))
    trimmed = plan.trimmed(multiple_of)
    assert torch.equal(trimmed.indices, plan.indices[:left])
    assert torch.equal(trimmed.weights, plan.weights[:left])


# The share to keep


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    scores=SCORES,
    policy=st.sampled_from([InfoBatchPolicy, QuantilePolicy, RandomPolicy]),
    keep=st.sampled_from([0.15, 0.33, 0.5, 0.7, 0.9, 1]),
)
def test_a_round_keeps_the_share_that_is_asked_for(scores, policy, keep):
    scores = torch.tensor(scores * 8)
    total, scored = len(scores), scores[scores.isfinite()]
    plan = policy(keep=keep).plan(scores, generator=generator())
    weight = weight_of(plan)
    assert all(
        weight.get(i) == 1
        for i, score in enumerate(scores.tolist())
        if not math.isfinite(score)
    )
    # At most 8 / keep, three strata deep and with too many not scored, but
    # for the rounding of a stratum to whole samples.
    assert max(weight.values()) <= 12 / keep
    fewest = total - len(scored) + keep / 2 * len(scored)
    asks = keep < 1 and len(scored) > 0
    strata = 3 if policy is QuantilePolicy else 2  # each is rounded
    if not asks or keep * total > fewest:
        reached = keep * total if asks else total
        assert len(plan) == pytest.approx(reached, abs=strata / 2)
    assert plan.asked == (round(keep * total) if asks else None)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    scored=st.lists(st.integers(0, 500), min_size=1, max_size=4),
    unscored=st.integers(0, 300),
    keep=st.floats(0.01, 1),
)
def test_no_stratum_is_kept_less_than_half_as_often_as_the_next(
    scored, unscored, keep
):
    if not sum(scored):
        scored = [*scored, 1]
    *ratios, last = ratios_to_keep([*scored, unscored], keep)
    shares = 1 - np.array(ratios)
    factors = shares[:-1] / shares[1:]
    total = unscored + np.dot(scored, shares)
    wanted = keep * (sum(scored) + unscored)
    assert last == 0 and shares[0] > 0 and shares[-1] <= 1
    assert factors == pytest.approx(
        np.full_like(factors, factors.max(initial=0))
    )
    assert np.all((factors > 0.5 - 1e-9) & (factors < 1 + 1e-9))
    # The highest is thinned only where the others are kept half as often.
    thins = shares[-1] < 1 - 1e-9
    assert not thins or factors == pytest.approx(np.full_like(factors, 0.5))
    # Too many are kept where those without a score leave no choice alone.
    assert total == pytest.approx(wanted) or (
        total > wanted and shares[-1] == pytest.approx(keep / 2)
    )


def test_below_the_mean_the_ratio_follows_from_the_share():
    scores = [*range(60), *range(1000, 1040)]  # 60 % are below the mean
    asked = plan_of(InfoBatchPolicy(keep=0.7), scores)
    assert asked.digest() == plan_of(InfoBatchPolicy(0.5), scores).digest()
    assert asked.threshold == mean_threshold(torch.tensor(scores).float())


@pytest.mark.parametrize('below', [0, 1, 60, 99])
def test_a_smaller_share_thins_all_in_the_same_proportion(below):
    # A score below the mean is kept half as often as one above it.
    scores = [0] * below + [1] * (100 - below)
    plan = plan_of(InfoBatchPolicy(keep=0.35), [*scores * 100, NAN])
    assert len(plan) == pytest.approx(3500, abs=2)
    high = (100 - below / 2) / 35
    expected = {1.0, high} | ({2 * high} if below else set())
    weights = sorted(set(plan.weights.tolist()))
    assert weights == pytest.approx(sorted(expected), rel=0.03)


def test_too_many_without_a_score_do_not_raise_the_weights_without_end():
    plan = plan_of(InfoBatchPolicy(keep=0.4), [*range(100), *[NAN] * 900])
    assert len(plan) == 900 + 15 and max(plan.weights) == 10


def test_the_authors_quantiles_follow_from_what_they_keep():
    asked = plan_of(QuantilePolicy(keep=0.525), range(40))
    assert asked.digest() == plan_of(QuantilePolicy(), range(40)).digest()
    fewer = weight_of(plan_of(QuantilePolicy(keep=0.7), range(400)))
    assert len(fewer) == 280
    low, middle = fewer[min(fewer)], max(w for i, w in fewer.items() if i > 80)
    assert low == pytest.approx(middle**2, rel=0.02)
    plan = plan_of(QuantilePolicy(keep=0.525 / 2), range(4000))
    weights = sorted(set(plan.weights.tolist()))
    assert weights == pytest.approx([2, 4, 8], rel=0.01)


def test_a_share_is_kept_until_annealing_begins():
    policy = InfoBatchPolicy(keep=0.7, delta=0.5)
    assert len(plan_of(policy, range(100), progress=0.499)) == 70
    assert len(plan_of(policy, range(100), progress=0.5)) == 100
    assert len(plan_of(policy, [NAN] * 100)) == 100
    assert repr(policy) == 'InfoBatchPolicy(keep 0.7 until 0.5)'


@pytest.mark.parametrize('keep', [0.1, 0.3, 0.5])
@pytest.mark.parametrize(
    'limits', [dict(at_least=500), dict(multiple_of=500)], ids=str
)
def test_what_batches_need_beyond_the_share_is_not_taken_from_the_easy(
    keep, limits
):
    scores = [*range(670), *range(10_000, 10_330)]
    plan = plan_of(InfoBatchPolicy(keep=keep), scores, **limits)
    assert len(plan) == 500
    weights = sorted(set(plan.weights.tolist()))
    assert weights == pytest.approx([1.33, 2.66], rel=0.01)


@pytest.mark.parametrize('policy', [InfoBatchPolicy, QuantilePolicy])
def test_a_share_is_rounded_to_whole_batches(policy):
    plan = plan_of(policy(keep=0.7), range(1000), multiple_of=64)
    assert len(plan) == 11 * 64 and plan.asked == 700
    plan = plan_of(policy(keep=0.7), range(1000), at_least=800)
    assert len(plan) == 800


def test_with_scores_that_change_expected_weights_are_one():
    """Each sample in each round, over seeds; scores depend on no draw."""
    samples, rounds, seeds = 60, 4, 1000
    policy = InfoBatchPolicy(0.7)
    scores = torch.rand(rounds, samples, generator=generator(3))
    sums = torch.zeros(rounds, samples)
    for seed in range(seeds):
        rng = generator(seed)
        for each, row in zip(scores, sums, strict=True):
            plan = policy.plan(each, generator=rng)
            row[plan.indices] += plan.weights
    off = (sums / seeds - 1).abs().max()
    noise = (1 / 0.3 / seeds) ** 0.5  # of a weight of 1 / 0.3, or 0
    assert off < 5 * noise


# In frequency: fixed seeds, and bounds that chance passes in 1e-4 of cases


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


# The coin is even, or not; in the last case it keeps none.
@pytest.mark.parametrize(('n', 'm'), [(4, 2), (7, 1), (7, 6), (300, 1)])
def test_every_set_of_members_is_equally_likely(n, m):
    rng, drawn = np.random.default_rng(0), Counter()
    members = np.arange(2 * n) % 2 == 1
    sets = math.comb(n, m)
    for _ in range(max(1200, 10 * sets)):
        drawn[tuple(uniform_subset(members, m, rng).tolist())] += 1
    assert len(drawn) == sets
    assert all(i % 2 == 1 for ids in drawn for i in ids)
    bound = {6: 25.7, 7: 27.9, 300: 398}[sets]  # of one degree less
    assert chi_square(list(drawn.values())) < bound


def test_every_subset_of_a_stratum_is_equally_likely():
    # So each sample is in with m/n, each pair with m(m-1) / (n(n-1)).
    rng, subsets = generator(), Counter()
    scores = torch.tensor([0.0, 0.1, 0.2, 0.3, 9.0])
    for _ in range(1200):
        plan = InfoBatchPolicy(0.5).plan(scores, generator=rng)
        subsets[frozenset(plan.indices.tolist())] += 1
    assert len(subsets) == math.comb(4, 2)
    assert chi_square(list(subsets.values())) < 25.7  # 5 degrees of freedom


def test_strata_are_drawn_independently_of_each_other():
    policy = QuantilePolicy((0.5, 1.0), prune_ratios=(2 / 3, 2 / 3))
    rng, pairs = generator(), Counter()
    for _ in range(1200):
        plan = policy.plan(torch.arange(6.0), generator=rng)
        pairs[tuple(plan.indices.sort().values.tolist())] += 1
    assert len(pairs) == 9
    assert chi_square(list(pairs.values())) < 31.8  # 8 degrees of freedom


def test_every_order_of_every_subset_is_equally_likely():
    rng, rounds = generator(), Counter()
    scores = torch.tensor([0.0, 0.1, 0.2, 9.0])
    for _ in range(1800):
        plan = InfoBatchPolicy(0.4).plan(scores, generator=rng)
        rounds[tuple(plan.indices.tolist())] += 1
    assert len(rounds) == math.comb(3, 2) * math.factorial(3)
    assert chi_square(list(rounds.values())) < 47.5  # 17 degrees of freedom


def test_every_position_in_the_round_is_equally_likely():
    rng, places = generator(), torch.zeros(11, 3)
    scores = torch.tensor([*torch.arange(10.0), 99.0])
    for _ in range(2000):
        plan = InfoBatchPolicy(0.8).plan(scores, generator=rng)
        places[plan.indices, torch.arange(3)] += 1
    for sample, counts in enumerate(places.tolist()):
        assert chi_square(counts) < 23.2, f'sample {sample}: {counts}'


# Monte-Carlo: the weighted sum of a plan is the full sum in the mean

DRAWS = 800
UNBIASED = dict(
    infobatch=InfoBatchPolicy(0.5),
    infobatch_70=InfoBatchPolicy(0.7),
    ramp=InfoBatchPolicy(dict(type='linear', start=0.1, end=0.9), delta=1),
    quantile=QuantilePolicy(),
    keep=InfoBatchPolicy(keep=0.6),
    quantile_keep=QuantilePolicy(keep=0.5),
    random=RandomPolicy(0.5),
    random_90=RandomPolicy(0.9),
    none=NoPruningPolicy(),
)


def skewed_scores(num: int) -> torch.Tensor:
    """Scores of which most are below the mean, in no order."""
    scores = 2.0 ** torch.arange(num)
    return scores[torch.randperm(num, generator=torch.Generator())]


def weights_of_draws(policy, scores, *, trim=1, draws=DRAWS, **options):
    """Return the weight of each sample in each draw, zero if pruned."""
    rng = torch.Generator().manual_seed(1)
    weights = torch.zeros(draws, len(scores), dtype=torch.float64)
    for row in weights:
        plan = policy.plan(scores, generator=rng, **options).trimmed(trim)
        row[plan.indices] = plan.weights.double()
    return weights


def assert_mean(values: torch.Tensor, expected: float) -> None:
    """Assert that means over draws, axis 0, are within 4 standard errors."""
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - expected).abs() <= 4 * error + 1e-6).all()


def assert_unbiased(weights: torch.Tensor) -> None:
    vector = torch.linspace(-1, 2, weights.shape[1], dtype=torch.float64)
    assert_mean(weights, 1)
    assert_mean(weights @ vector, vector.sum())


@pytest.mark.parametrize('num', [3, 5, 7, 10])
@pytest.mark.parametrize('policy', UNBIASED.values(), ids=UNBIASED)
def test_the_weighted_sum_is_the_full_sum_in_the_mean(policy, num):
    assert_unbiased(weights_of_draws(policy, skewed_scores(num), progress=0.5))


@pytest.mark.parametrize('policy', UNBIASED.values(), ids=UNBIASED)
def test_the_variance_ratio_is_that_of_orthogonal_gradients(policy):
    # Sample i has the gradient scores[i] along an axis of its own.
    scores = torch.tensor([0.5, 1.0, 2.0, 2.5, 3.0, 8.0, 9.0, 10.0])
    weights = weights_of_draws(policy, scores, progress=0.5)
    plan = policy.plan(scores, generator=torch.Generator(), progress=0.5)
    error = ((weights - 1) * scores).square().sum(1)
    assert_mean(error / scores.square().sum(), plan.variance_ratio)


@pytest.mark.parametrize(
    'name', ['infobatch', 'quantile', 'random', 'keep', 'quantile_keep']
)
def test_it_stays_so_when_the_round_is_made_to_divide(name):
    weights = weights_of_draws(
        UNBIASED[name], skewed_scores(10), multiple_of=4
    )
    assert ((weights > 0).sum(1) % 4 == 0).all()
    assert_unbiased(weights)


def test_it_stays_so_with_unseen_samples():
    scores = skewed_scores(9)
    scores[::4] = torch.nan
    assert_unbiased(weights_of_draws(UNBIASED['infobatch'], scores))


def test_a_trimmed_round_leaves_out_each_part_of_the_sum_alike():
    scores = torch.tensor([0.0] * 10 + [9.0])
    weights = weights_of_draws(
        InfoBatchPolicy(0.8), scores, trim=2, draws=2500
    )
    assert_mean(weights * 3 / 2, 1)


@pytest.mark.parametrize('num', [3, 5, 7])
def test_the_reference_codes_rounding_fails_the_same_check(num):
    rng = torch.Generator().manual_seed(1)
    weights = torch.zeros(DRAWS, num, dtype=torch.float64)
    for row in weights:
        drawn = torch.randperm(num, generator=rng)[: int((1 - 0.5) * num)]
        row[drawn] = 1 / (1 - 0.5)
    with pytest.raises(AssertionError):
        assert_unbiased(weights)
