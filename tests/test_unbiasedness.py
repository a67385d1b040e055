"""Monte-Carlo: the weighted sum of a plan is the full sum in the mean."""

import pytest
import torch

from infobatch_mm.pruning import (
    InfoBatchPolicy,
    NoPruningPolicy,
    QuantilePolicy,
    RandomPolicy,
)

DRAWS = 800
POLICIES = dict(
    infobatch=InfoBatchPolicy(0.5),
    infobatch_70=InfoBatchPolicy(0.7),
    ramp=InfoBatchPolicy(dict(type='linear', start=0.1, end=0.9), delta=1),
    quantile=QuantilePolicy(),
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
@pytest.mark.parametrize('policy', POLICIES.values(), ids=POLICIES)
def test_the_weighted_sum_is_the_full_sum_in_the_mean(policy, num):
    assert_unbiased(weights_of_draws(policy, skewed_scores(num), progress=0.5))


@pytest.mark.parametrize('policy', POLICIES.values(), ids=POLICIES)
def test_the_variance_ratio_is_that_of_orthogonal_gradients(policy):
    # Sample i has the gradient scores[i] along an axis of its own.
    scores = torch.tensor([0.5, 1.0, 2.0, 2.5, 3.0, 8.0, 9.0, 10.0])
    weights = weights_of_draws(policy, scores, progress=0.5)
    plan = policy.plan(scores, generator=torch.Generator(), progress=0.5)
    error = ((weights - 1) * scores).square().sum(1)
    assert_mean(error / scores.square().sum(), plan.variance_ratio)


@pytest.mark.parametrize('name', ['infobatch', 'quantile', 'random'])
def test_it_stays_so_when_the_round_is_made_to_divide(name):
    weights = weights_of_draws(
        POLICIES[name], skewed_scores(10), multiple_of=4
    )
    assert ((weights > 0).sum(1) % 4 == 0).all()
    assert_unbiased(weights)


def test_it_stays_so_with_unseen_samples():
    scores = skewed_scores(9)
    scores[::4] = torch.nan
    assert_unbiased(weights_of_draws(POLICIES['infobatch'], scores))


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
