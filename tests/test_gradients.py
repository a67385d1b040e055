"""The weighted gradient, against gradients of single images by hand."""

from collections import Counter

import pytest
import torch
import toys
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from infobatch_mm import InfoBatchPolicy, QuantilePolicy
from infobatch_mm.heads import WeightedHeadMixin
from infobatch_mm.ledger import Ledger

SCORES = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.6, 0.8, 3.0])
POLICIES = dict(
    infobatch=InfoBatchPolicy(prune_ratio=0.5),
    infobatch_most=InfoBatchPolicy(prune_ratio=0.8),
    quantile=QuantilePolicy(),
)
DRAWS = 400


def build_model(*, pruned):
    """Build the toy segmentor, its batch norms frozen."""
    torch.manual_seed(0)
    config = dict(toys.model(pruned=pruned), _scope_='mmseg')
    model = MODELS.build(config).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def batch(size, pixels=32):
    """Return images and samples, of which one is partly ignored."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, pixels, pixels, generator=generator)
    maps = torch.randint(11, (size, 1, pixels, pixels), generator=generator)
    maps[0, :, : pixels // 3] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=m)) for m in maps]
    return images, samples


def gradient(model, images, samples):
    """Return the gradient of a training step as one vector."""
    losses = model(images, samples, mode='loss')
    loss, _ = model.parse_losses(losses)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def weighted_gradient(model, images, samples, weights):
    ledger = Ledger()
    for module in model.modules():
        if isinstance(module, WeightedHeadMixin):
            module.infobatch_ledger = ledger
    ledger.open(torch.arange(len(weights)), weights)
    grads = gradient(model, images, samples)
    ledger.close()
    return grads


def single_gradients(images, samples):
    """Return the gradient of each image alone by the stock model."""
    model = build_model(pruned=False)
    singles = [slice(i, i + 1) for i in range(len(samples))]
    grads = [gradient(model, images[i], samples[i]) for i in singles]
    return torch.stack(grads)


@pytest.mark.parametrize(
    'weights', [[1.0, 1.0, 1.0, 1.0], [0.5, 2.0, 0.0, 4 / 3]]
)
def test_it_is_the_weighted_mean_of_the_single_images_gradients(weights):
    images, samples = batch(4)
    weights = torch.tensor(weights)
    found = weighted_gradient(
        build_model(pruned=True), images, samples, weights
    )
    singles = single_gradients(images, samples)
    expected = (weights[:, None] * singles).sum(0) / 4
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def draw_plans(policy):
    """Return the different plans of many seeds and how often each came."""
    counts = Counter()
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        plan = policy.plan(SCORES, generator=generator)
        pairs = zip(plan.indices.tolist(), plan.weights.tolist(), strict=True)
        counts[tuple(sorted(pairs))] += 1
    return list(counts), torch.tensor(list(counts.values()))


def standard_errors(sums, counts, truth):
    """Return how far the mean of draws is off, in its standard errors."""
    share = counts[:, None] / counts.sum()
    mean = (share * sums).sum(0)
    variance = (share * (sums - mean) ** 2).sum()
    return (mean - truth).norm() / (variance / counts.sum()).sqrt()


@pytest.mark.parametrize('policy', POLICIES.values(), ids=POLICIES)
def test_over_all_plans_it_is_the_full_gradient(policy):
    """Monte Carlo: off by no more than the standard error allows.

    What a round adds up is the sum over its samples, so here a round is one
    batch, and its mean gradient is multiplied by its size.
    """
    images, samples = batch(len(SCORES), pixels=16)
    model = build_model(pruned=True)

    def round_sum(kept, weights):
        chosen = [samples[i] for i in kept]
        mean = weighted_gradient(model, images[list(kept)], chosen, weights)
        return len(kept) * mean

    plans, counts = draw_plans(policy)
    rounds = [tuple(zip(*plan, strict=True)) for plan in plans]
    weighted = [round_sum(kept, torch.tensor(w)) for kept, w in rounds]
    plain = [round_sum(kept, torch.ones(len(kept))) for kept, _ in rounds]
    truth = single_gradients(images, samples).sum(0)
    assert standard_errors(torch.stack(weighted), counts, truth) < 3
    assert standard_errors(torch.stack(plain), counts, truth) > 10
