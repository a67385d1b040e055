"""Heads that classify masks: MaskFormer and Mask2Former, with mmdet."""

from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from processes import run_ranks

from infobatch_mm.heads import attach
from infobatch_mm.heads.scoring import tensors_in, total_loss
from infobatch_mm.ledger import Ledger

pytest.importorskip('mmdet')
# Of mmdet's own making.
pytestmark = pytest.mark.filterwarnings('ignore:torch.meshgrid')

CONFIGS = dict(
    maskformer='maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
    mask2former='mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
)
NUM_LAYERS = dict(maskformer=6, mask2former=10)
CHANNELS = (256, 512, 1024, 2048)


@pytest.fixture(scope='module', params=CONFIGS)
def kind(request):
    return request.param


def build(kind):
    """Build a stock head without dropout, so that only its loss draws."""
    config = get_config(f'mmseg::{CONFIGS[kind]}').model.decode_head
    config.num_classes = 5
    config.loss_cls.class_weight = [1.0] * 5 + [0.1]
    if 'train_cfg' in config:
        config.train_cfg.num_points = 64
    torch.manual_seed(0)
    # Module fixtures are built in the scope that the last test has left.
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(config).eval()


@pytest.fixture(scope='module')
def heads(kind):
    stock = build(kind)
    return stock, attach(deepcopy(stock))


def batch(size):
    """Return features with gradient, and samples; the last one is blank."""
    generator = torch.Generator().manual_seed(1)
    features = [
        torch.randn(
            size, channels, 8 >> level, 8 >> level, generator=generator
        ).requires_grad_()
        for level, channels in enumerate(CHANNELS)
    ]
    maps = torch.randint(5, (size, 1, 32, 32), generator=generator)
    maps[:, :, :8] = 255
    maps[-1] = 255
    samples = [
        SegDataSample(
            gt_sem_seg=PixelData(data=labels),
            metainfo=dict(img_shape=(32, 32), batch_input_shape=(32, 32)),
        )
        for labels in maps
    ]
    return features, samples


def gradients(head, size, weights=None):
    """Return losses, gradients, scores and the random state after it."""
    features, samples = batch(size)
    scores = None
    if weights is not None:
        weights = torch.as_tensor(weights)
        head.infobatch_ledger.open(torch.arange(size), weights)
    torch.manual_seed(3)
    losses = head.loss(features, samples, None)
    state = torch.get_rng_state()
    if weights is not None:
        scores = head.infobatch_ledger.close()[1]
    used = [*head.parameters(), *features]
    found = torch.autograd.grad(total_loss(losses), used, allow_unused=True)
    found = [g for g in found if g is not None]
    return losses, found, scores, state


def distance(first, second):
    difference = [(a - b).norm() for a, b in zip(first, second, strict=True)]
    return (
        torch.stack(difference).norm()
        / torch.stack([g.norm() for g in second]).norm()
    )


def test_weights_of_one_are_stock_bit_for_bit(heads):
    stock, head = heads
    expected, expected_grads, _, state = gradients(stock, 3)
    losses, grads, _, state_after = gradients(head, 3, [1.0] * 3)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[k], expected[k]) for k in expected)
    assert all(map(torch.equal, grads, expected_grads))
    assert torch.equal(state, state_after)


def test_the_gradient_is_linear_in_the_weights(heads):
    _, head = heads
    first = gradients(head, 2, [1.0, 0.0])[1]
    second = gradients(head, 2, [0.0, 1.0])[1]
    both = gradients(head, 2, [2.5, 0.3])[1]
    expected = [2.5 * a + 0.3 * b for a, b in zip(first, second, strict=True)]
    assert distance(both, expected) < 1e-5
    assert distance(first, second) > 0.1


def test_a_batch_as_large_as_the_layers_are_many(kind, heads):
    _, head = heads
    size = NUM_LAYERS[kind]
    _, grads, scores, _ = gradients(head, size, [0.0] * size)
    assert len(head.forward(*batch(size))[0]) == size
    assert not any(g.any() for g in grads)
    assert scores.shape == (size,)
    weights = [0.0] * size
    weights[1] = 1.0
    features, samples = batch(size)
    head.infobatch_ledger.open(torch.arange(size), torch.tensor(weights))
    total_loss(head.loss(features, samples, None)).backward()
    head.infobatch_ledger.close()
    has_gradient = [bool(g.any()) for g in features[0].grad]
    assert has_gradient == [weight > 0 for weight in weights]


@torch.no_grad()
def test_a_score_is_the_stock_loss_of_a_batch_of_one(heads):
    stock, head = heads
    features, samples = batch(3)
    head.infobatch_ledger.open(torch.arange(3), torch.ones(3))
    torch.manual_seed(3)
    head.loss(features, samples, None)
    scores = head.infobatch_ledger.close()[1]
    for i in range(3):
        torch.manual_seed(3)
        own = [feature[i : i + 1] for feature in features]
        expected = total_loss(stock.loss(own, samples[i : i + 1], None))
        torch.testing.assert_close(scores[i], expected, rtol=1e-3, atol=1e-4)
    assert scores.unique().numel() == 3


def test_the_norm_of_the_gradient_is_that_of_autograd(heads):
    """Over all layers; the number of masks is that of the batch."""
    stock, head = heads
    features, samples = batch(3)
    stock_loss, entered = stock.loss_by_feat, []

    def loss_by_feat(*args, **kwargs):
        tensors = tensors_in([*args, *kwargs.values()])
        entered.extend(each for each in tensors if each.requires_grad)
        return stock_loss(*args, **kwargs)

    with patch.object(stock, 'loss_by_feat', loss_by_feat):
        torch.manual_seed(3)
        loss = total_loss(stock.loss(features, samples, None))
    axis = head.infobatch_batch_axis
    found = [
        each.transpose(0, axis).flatten(1)
        for each in torch.autograd.grad(loss, entered)
    ]
    expected = 3 * torch.cat(found, 1).norm(dim=1)

    own = Ledger(gradient_norm=True)
    own.open(torch.arange(3), torch.tensor([0.5, 2.0, 0.0]))
    with patch.object(head, 'infobatch_ledger', own):
        torch.manual_seed(3)
        losses = head.loss(features, samples, None)
    (64 * total_loss(losses)).backward()
    torch.testing.assert_close(own.close()[1], expected, rtol=1e-4, atol=0)
    assert expected.unique().numel() == 3


@torch.no_grad()
def test_rows_are_matched_by_the_ids_of_the_samples(heads):
    """In another order than the batch's, with the same scores."""
    _, head = heads
    features, samples = batch(3)
    for index, sample in enumerate(samples):
        sample.set_metainfo(dict(infobatch_index=7 * index))
    found = []
    for order in [0, 1, 2], [2, 0, 1]:
        head.infobatch_ledger.open(
            torch.arange(3), torch.ones(3), samples=[0, 7, 14]
        )
        torch.manual_seed(3)
        own = [feature[order] for feature in features]
        head.loss(own, [samples[i] for i in order], None)
        found.append(head.infobatch_ledger.close()[1])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_ranks_score_batches_of_different_sizes(heads, tmp_path):
    _, head = heads

    def rank_scores(folder):
        rank = torch.distributed.get_rank()
        torch.save(score(2 + rank), folder / f'{rank}.pt')

    def score(size):
        return gradients(head, size, [1.0] * size)[2]

    assert run_ranks(2, rank_scores, tmp_path, timeout=120) == [0, 0]
    for rank in 0, 1:
        scores = torch.load(tmp_path / f'{rank}.pt')
        assert torch.equal(scores, score(2 + rank))
