"""Weighted heads: the stock head in every respect but the gradient."""

import pickle
import threading
from collections import OrderedDict
from copy import deepcopy
from typing import NamedTuple
from unittest.mock import patch

import light
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import toys
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS as ENGINE_MODELS
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from mmseg.models.losses import cross_entropy_loss
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from processes import run_code, run_ranks
from torch import nn

from infobatch_mm.binding import find_heads, silent_heads
from infobatch_mm.heads import WeightedHeadMixin, attach
from infobatch_mm.heads.decode_head import has_plain_cross_entropy
from infobatch_mm.heads.padding import own_parts
from infobatch_mm.heads.scoring import tensors_in, total_loss
from infobatch_mm.ledger import Ledger

# A deprecation that OHEMPixelSampler itself runs into.
pytestmark = [
    pytest.mark.filterwarnings('ignore:``build_pixel_sampler``'),
    pytest.mark.filterwarnings('ignore:torch.meshgrid'),  # of mmdet's making
]

IGNORED = 255
CE = dict(type='CrossEntropyLoss')
CLASS_WEIGHT = [0.2 + 0.3 * k for k in range(11)]

ONE_PASS = dict(
    plain=dict(loss_decode=CE),
    loss_weight=dict(loss_decode=dict(CE, loss_weight=0.4)),
    avg_non_ignore=dict(loss_decode=dict(CE, avg_non_ignore=True)),
    class_weight=dict(loss_decode=dict(CE, class_weight=CLASS_WEIGHT)),
    class_weight_non_ignore=dict(
        loss_decode=dict(CE, class_weight=CLASS_WEIGHT, avg_non_ignore=True)
    ),
    two_names=dict(
        loss_decode=[
            dict(CE, loss_name='loss_a', loss_weight=0.4),
            dict(CE, loss_name='loss_b', avg_non_ignore=True),
        ]
    ),
    one_name_twice=dict(loss_decode=[CE, dict(CE, loss_weight=3.0)]),
)
BY_IMAGE = dict(
    dice=dict(loss_decode=[CE, dict(type='DiceLoss')]),
    sigmoid=dict(loss_decode=dict(CE, use_sigmoid=True)),
    ohem=dict(
        sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=20),
        loss_decode=CE,
    ),
    ohem_by_loss=dict(
        sampler=dict(type='OHEMPixelSampler', min_kept=20), loss_decode=CE
    ),
)
HEADS = dict(uper=toys.uper_head, fcn=toys.fcn_head)


def build(config):
    """Build a head with the same parameters each time."""
    torch.manual_seed(0)
    return MODELS.build(config)


def pair(config):
    """Return a head twice: stock and weighted."""
    return build(config), build(toys.weighted(config))


def features(batch_size):
    """Return what the toy backbone would, with gradient."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(
            batch_size, 8 * 2**k, 16 >> k, 16 >> k, generator=generator
        ).requires_grad_()
        for k in range(4)
    ]


def labels(batch_size, ignored=True):
    """Return samples; one in part and one in whole without a label."""
    generator = torch.Generator().manual_seed(2)
    maps = torch.randint(11, (batch_size, 1, 32, 32), generator=generator)
    if ignored:
        maps[1, :, :20] = IGNORED
        maps[2] = IGNORED
    return [
        SegDataSample(gt_sem_seg=PixelData(data=single)) for single in maps
    ]


def open_ledger(head, weights):
    weights = torch.as_tensor(weights)
    head.infobatch_ledger.open(torch.arange(len(weights)), weights)


@torch.enable_grad()
def scores_of(head, logits, samples):
    open_ledger(head, torch.ones(len(samples)))
    head.loss_by_feat(logits, samples)
    return head.infobatch_ledger.close()[1]


def stock_scores(head, logits, samples):
    """Return the loss of each image as a batch of its own."""
    singles = [slice(i, i + 1) for i in range(len(samples))]
    losses = [head.loss_by_feat(logits[i], samples[i]) for i in singles]
    return torch.stack([total_loss(single) for single in losses])


def gradients(head, samples, weights=None):
    """Return losses and gradients, of the head and of what enters it."""
    inputs = features(len(samples))
    if weights is not None:
        open_ledger(head, weights)
    losses = head.loss(inputs, samples, None)
    used = [*head.parameters(), *inputs]
    grads = torch.autograd.grad(total_loss(losses), used, allow_unused=True)
    return losses, [g for g in grads if g is not None]


# Scores


@pytest.mark.parametrize('extra', [{}, dict(avg_non_ignore=True)], ids=str)
@pytest.mark.parametrize('balanced', [False, True])
def test_padding_with_the_label_of_a_class_does_not_count(extra, balanced):
    _, head = pair(toys.fcn_head(loss_decode=dict(CE, **extra)))
    head.infobatch_ledger.class_balanced = balanced
    own, padded = labels(1, ignored=False) * 2
    padded.gt_sem_seg = PixelData(data=own.gt_sem_seg.data.clone())
    padded.gt_sem_seg.data[:, 16:] = 0  # seg_pad_val=0
    padded.set_metainfo(dict(padding_size=(0, 0, 0, 16), pad_shape=(32, 32)))
    cropped = SegDataSample(
        gt_sem_seg=PixelData(data=own.gt_sem_seg.data[:, :16])
    )
    logits = 3 * head(features(1))
    logits = F.interpolate(logits, size=(32, 32), mode='bilinear')
    (score,) = scores_of(head, logits, [padded])
    (expected,) = scores_of(head, logits[..., :16, :], [cropped])
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('ignored', [False, True])
@pytest.mark.parametrize('loss', ONE_PASS | BY_IMAGE)
@torch.no_grad()
def test_a_score_is_the_stock_loss_of_a_batch_of_one(loss, ignored):
    stock, head = pair(toys.fcn_head(**(ONE_PASS | BY_IMAGE)[loss]))
    samples = labels(4, ignored)
    logits = 3 * head(features(4))
    try:
        expected = stock_scores(stock, logits, samples)
    except IndexError:
        pytest.skip('upstream: class_weight fails on ignored pixels')
    assert has_plain_cross_entropy(head) == (loss in ONE_PASS)
    scores = scores_of(head, logits, samples)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    assert scores.unique().numel() == 4
    if ignored and loss != 'dice':
        assert scores[2] == 0


@torch.no_grad()
def test_where_upstream_cannot_score_a_blank_image_it_stays_unscored():
    config = toys.fcn_head(
        loss_decode=dict(CE, use_sigmoid=True),
        num_classes=2,
        out_channels=1,
        threshold=0.5,
    )
    stock, head = pair(config)
    samples = labels(4)
    for sample in samples:
        sample.gt_sem_seg.data %= 2
        sample.gt_sem_seg.data[:, 20:] = IGNORED
    samples[2].gt_sem_seg.data[:] = IGNORED
    logits = 3 * head(features(4))
    with pytest.raises(RuntimeError):
        stock.loss_by_feat(logits[2:3], samples[2:3])
    scores = scores_of(head, logits, samples)
    others = [0, 1, 3]
    expected = stock_scores(
        stock, logits[others], [samples[i] for i in others]
    )
    torch.testing.assert_close(scores[others], expected)
    assert scores[2].isnan()


def test_an_error_of_the_loss_is_not_taken_for_a_blank_image():
    class Broken(nn.Module):
        loss_name = 'loss_broken'

        def forward(self, *args, **kwargs):
            raise RuntimeError('of its own')

    head = build(toys.weighted(toys.fcn_head()))
    head.loss_decode = Broken()
    with pytest.raises(RuntimeError, match='of its own'):
        scores_of(head, head(features(4)), labels(4))


@pytest.mark.parametrize('loss', ONE_PASS | BY_IMAGE)
def test_scoring_leaves_the_random_state_alone(loss):
    head = build(toys.weighted(toys.fcn_head(**(ONE_PASS | BY_IMAGE)[loss])))
    logits, samples = head(features(3)), labels(3, ignored=False)
    try:
        with torch.random.fork_rng():
            head.loss_by_feat(logits, samples)
    except IndexError:
        pytest.skip('upstream: class_weight with avg_non_ignore fails')
    before = torch.get_rng_state()
    scores_of(head, logits, samples)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failing_stock_loss_leaves_cross_entropy_as_it_was():
    stock = torch.nn.functional
    head = build(toys.weighted(toys.fcn_head()))
    samples = labels(4)
    samples[0].gt_sem_seg.data[:] = head.num_classes
    with pytest.raises(IndexError, match='out of bounds'):
        scores_of(head, torch.zeros(4, 11, 16, 16), samples)
    assert cross_entropy_loss.F is stock


class Outputs(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


class OutputsOfTheUser(OrderedDict):
    def __getattr__(self, name):
        return self[name]


class AdjustedHead(nn.Module):
    """Take outputs by name, and what there is one of for each class."""

    def loss_by_feat(self, outputs, labels, frequencies):
        logits = outputs.logits + frequencies.log()
        return dict(loss=F.cross_entropy(logits, labels))


@pytest.mark.parametrize('kind', [Outputs, OutputsOfTheUser])
def test_an_image_alone_comes_as_the_batch_does(kind):
    head, labels = attach(AdjustedHead()), torch.tensor([0, 2, 1, 1])
    outputs = kind(logits=torch.randn(4, 3), features=torch.randn(4, 5))
    frequencies = torch.tensor([0.7, 0.2, 0.1])
    open_ledger(head, torch.ones(4))
    head.loss_by_feat(outputs, labels, frequencies)
    logits = outputs.logits + frequencies.log()
    expected = F.cross_entropy(logits, labels, reduction='none')
    torch.testing.assert_close(head.infobatch_ledger.close()[1], expected)


class ListedHead(nn.Module):
    """Take a list: of labels an image, of metas an image, or of layers."""

    def loss_by_feat(self, logits, targets):
        if isinstance(logits, list):
            logits = sum(logits)
        if isinstance(targets[0], dict):
            targets = [torch.tensor(each['label']) for each in targets]
        elif targets[0].dim():  # of each image, one-hot, or of each layer
            dense = targets[0].shape[0] == len(logits)
            targets = targets[0] if dense else torch.stack(targets).argmax(1)
            return dict(loss=F.cross_entropy(logits, targets))
        return dict(loss=F.cross_entropy(logits, torch.stack(targets)))


LISTS = dict(
    scalars=lambda labels: list(labels),
    tuples=lambda labels: tuple(labels),
    dicts=lambda labels: [dict(label=each.item()) for each in labels],
    vectors=lambda labels: list(F.one_hot(labels, 3)),
)


@pytest.mark.parametrize('kind', LISTS)
@pytest.mark.parametrize('layers', [1, 4])
def test_a_list_with_an_item_an_image_is_cut(kind, layers):
    head, labels = attach(ListedHead()), torch.tensor([0, 2, 1, 1])
    logits = [torch.randn(4, 3, requires_grad=True) for _ in range(layers)]
    open_ledger(head, torch.ones(4))
    head.loss_by_feat(logits, LISTS[kind](labels))
    expected = F.cross_entropy(sum(logits), labels, reduction='none')
    found = head.infobatch_ledger.close()[1]
    torch.testing.assert_close(found, expected.detach())


def test_a_list_that_may_be_of_images_or_of_layers_is_an_error():
    head, logits = attach(ListedHead()), torch.randn(4, 3, requires_grad=True)
    layers = [torch.tensor([0, 2, 1, 1])] * 4
    open_ledger(head, torch.ones(4))
    with pytest.raises(ValueError, match="set score='gradient_norm'"):
        head.loss_by_feat(logits, layers)
    head.infobatch_ledger = ledger = Ledger(gradient_norm=True)
    ledger.open(torch.arange(4), torch.ones(4))
    head.loss_by_feat(logits, layers)['loss'].backward()
    assert ledger.close()[1].isfinite().all()
    # Of a batch of another size it is one for each layer.
    open_ledger(head := attach(ListedHead()), torch.ones(3))
    head.loss_by_feat(logits[:3], [layers[0][:3]] * 4)
    found = head.infobatch_ledger.close()[1]
    expected = F.cross_entropy(logits, layers[0], reduction='none')
    torch.testing.assert_close(found, expected.detach()[:3])


class CountingLoss(nn.Module):
    """A loss that counts its calls, in a buffer and in plain attributes."""

    loss_name = 'loss_counting'

    def __init__(self):
        super().__init__()
        self.register_buffer('steps', torch.zeros(()))
        self.count, self.sizes = 0, []

    def forward(self, logits, label, **kwargs):
        self.steps += 1
        self.count += 1
        self.sizes.append(len(logits))
        return logits.mean() * self.count * self.steps


def test_a_loss_that_counts_its_calls_counts_the_steps():
    stock, head = pair(toys.fcn_head())
    stock.loss_decode, head.loss_decode = CountingLoss(), CountingLoss()
    level = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    samples, logits = labels(3), level + torch.randn(3, 11, 16, 16)
    for _ in range(2):
        stock.loss_by_feat(logits, samples)
        scores = scores_of(head, logits, samples)
    for loss in stock.loss_decode, head.loss_decode:
        assert (loss.steps, loss.count, loss.sizes) == (2, 2, [3, 3])
    # Of the second call: 2 * 2 times the mean, which resizing moves a little.
    expected = 4 * logits.mean((1, 2, 3))
    torch.testing.assert_close(scores, expected, rtol=0.02, atol=0)


class NoisyLoss(nn.Module):
    """A loss that consumes random numbers."""

    loss_name = 'loss_noisy'

    def forward(self, logits, label, **kwargs):
        return (logits * torch.rand_like(logits)).mean()


def test_a_random_loss_trains_on_the_stock_random_numbers():
    stock, head = pair(toys.fcn_head())
    stock.loss_decode, head.loss_decode = NoisyLoss(), NoisyLoss()
    samples, found = labels(3), []
    for each, weights in ((stock, None), (head, [1.0, 1.0, 1.0])):
        torch.manual_seed(5)
        found.append((gradients(each, samples, weights), torch.rand(1)))
    torch.testing.assert_close(*found, rtol=0, atol=0)


# Gradients


@pytest.mark.parametrize('loss', ['plain', 'two_names', 'dice', 'ohem'])
@pytest.mark.parametrize('kind', HEADS)
def test_weights_of_one_are_stock_bit_for_bit(kind, loss):
    config = HEADS[kind](**(ONE_PASS | BY_IMAGE)[loss])
    stock, head = pair(config)
    samples = labels(3)
    expected = gradients(stock, samples)
    found = gradients(head, samples, [1.0, 1.0, 1.0])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('loss', ['plain', 'dice', 'ohem'])
@pytest.mark.parametrize('kind', HEADS)
def test_the_gradient_is_linear_in_the_weights(kind, loss):
    head = build(toys.weighted(HEADS[kind](**(ONE_PASS | BY_IMAGE)[loss])))
    samples = labels(3)
    first, second = torch.tensor([[1.0, 0.5, 3.0], [0.3, 4.0, 2.0]])
    found = gradients(head, samples, 2 * first + 5 * second)[1]
    one = gradients(head, samples, first)[1]
    other = gradients(head, samples, second)[1]
    expected = [2 * a + 5 * b for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', HEADS)
def test_weights_of_zero_give_no_gradient_and_the_stock_loss(kind):
    stock, head = pair(HEADS[kind]())
    losses, grads = gradients(head, labels(3), [0.0, 0.0, 0.0])
    assert not any(grad.any() for grad in grads)
    expected = gradients(stock, labels(3))[0]
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)


@pytest.mark.parametrize('batch_axis, weights', [(0, [1.0, 2.0]), (1, [1.0])])
def test_a_batch_that_is_not_along_the_axis_is_an_error(batch_axis, weights):
    head = attach(build(toys.fcn_head()), batch_axis=batch_axis)
    open_ledger(head, weights)
    with pytest.raises(ValueError, match=f'its axis {batch_axis} is not'):
        head.loss(features(3), labels(3), None)


# The stock head in every other respect


@pytest.mark.parametrize('kind', HEADS)
def test_it_looks_like_the_stock_head(kind):
    stock, head = pair(HEADS[kind]())
    assert list(head.state_dict()) == list(stock.state_dict())
    assert repr(head) == repr(stock)
    assert isinstance(head, type(stock))
    assert isinstance(head, WeightedHeadMixin)
    assert type(head).__name__ == type(stock).__name__
    assert type(head).__module__ == type(stock).__module__


STOCK_SIDE = """
import sys
sys.modules['infobatch_mm'] = None
import torch
import mmseg.models
from mmengine.config import Config
from mmseg.registry import MODELS
folder = sys.argv[1]
torch.manual_seed(3)
model = MODELS.build(Config.fromfile(f'{folder}/model.json').model).eval()
torch.save(model.state_dict(), f'{folder}/stock.pth')
model.load_state_dict(torch.load(f'{folder}/weighted.pth'), strict=True)
torch.save(model(torch.load(f'{folder}/image.pth')), f'{folder}/logits.pth')
"""


def test_checkpoints_load_strictly_with_and_without_the_package(tmp_path):
    stock, pruned = (
        dict(toys.model(pruned=pruned), _scope_='mmseg')
        for pruned in (False, True)
    )
    Config(dict(model=stock)).dump(tmp_path / 'model.json')
    model, image = build(pruned).eval(), torch.randn(1, 3, 32, 32)
    torch.save(model.state_dict(), tmp_path / 'weighted.pth')
    torch.save(image, tmp_path / 'image.pth')
    run_code(STOCK_SIDE, tmp_path)
    assert torch.equal(torch.load(tmp_path / 'logits.pth'), model(image))
    stock = torch.load(tmp_path / 'stock.pth')
    model.load_state_dict(stock, strict=True)
    torch.testing.assert_close(model.state_dict(), stock, rtol=0, atol=0)


COPIES = dict(
    deepcopy=deepcopy, pickle=lambda head: pickle.loads(pickle.dumps(head))
)


@pytest.mark.parametrize('copy', COPIES.values(), ids=COPIES)
@pytest.mark.parametrize('loss', ['plain', 'ohem'])
def test_a_copy_is_a_weighted_head_of_its_own(copy, loss):
    head = build(toys.weighted(toys.fcn_head(**(ONE_PASS | BY_IMAGE)[loss])))
    open_ledger(head, [2.0, 2.0, 2.0])
    twin = copy(head)
    assert isinstance(twin, WeightedHeadMixin) and type(twin) is type(head)
    assert not twin.infobatch_ledger.is_open
    assert twin.sampler is None or twin.sampler.context is twin

    twin_losses, twin_grads = gradients(twin, labels(3))
    assert head.infobatch_ledger.losses is None
    assert head.infobatch_ledger.reporters == []
    assert head.infobatch_ledger.is_open

    losses, grads = gradients(head, labels(3), [2.0, 2.0, 2.0])
    torch.testing.assert_close(twin_losses, losses)
    torch.testing.assert_close([2 * g for g in twin_grads], grads)

    with torch.no_grad():
        twin.conv_seg.weight.zero_()
    assert head.conv_seg.weight.any()


@pytest.mark.parametrize('copy', COPIES.values(), ids=COPIES)
def test_a_head_that_says_what_is_copied_of_it_is_heeded(copy):
    head = attach(Locked())
    twin = copy(head)
    assert isinstance(twin, WeightedHeadMixin) and twin.lock is None
    torch.testing.assert_close(twin.state_dict(), head.state_dict())


class Locked(light.LightHead):
    """A head with what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def __getstate__(self):
        return dict(vars(self), lock=None)


def test_settings_beside_the_head_reach_the_stock_head():
    init = dict(type='Normal', std=0.5, override=dict(name='conv_seg'))
    head = build(dict(toys.weighted(toys.fcn_head()), init_cfg=init))
    assert head.init_cfg == init


def test_building_does_not_change_the_config():
    config = toys.weighted(toys.fcn_head())
    before = deepcopy(config)
    build(dict(config, init_cfg=None))
    assert config == before


def test_a_head_without_loss_by_feat_is_an_error():
    with pytest.raises(TypeError, match='Linear has no loss_by_feat'):
        attach(nn.Linear(2, 2))


def test_a_compiled_head_is_weighted_as_the_head_within():
    for head in (light.LightHead(), attach(light.LightHead())):
        compiled = attach(torch.compile(head, backend='eager'))
        assert find_heads(compiled) == {'_orig_mod': head}
        points, samples = batch()
        open_ledger(head, torch.zeros(len(points)))
        losses = compiled.loss_by_feat(compiled.fc(points), samples)
        losses['loss_ce'].backward()
        assert head.fc.weight.grad.count_nonzero() == 0


def test_attaching_twice_changes_nothing():
    head = attach(build(toys.fcn_head()))
    kind, ledger = type(head), head.infobatch_ledger
    assert attach(head) is head
    assert type(head) is kind and head.infobatch_ledger is ledger


def test_a_loss_that_is_only_reported_is_no_score():
    """mmseg trains those that have loss in their name."""
    watch = dict(CE, loss_name='watch_ce', loss_weight=3.0)
    found = []
    for losses in [CE], [CE, watch]:
        head = build(toys.weighted(toys.fcn_head(loss_decode=losses)))
        logits = head(features(3))
        found.append(scores_of(head, logits, labels(3, ignored=False)))
    assert torch.equal(*found)


# The score of an image does not depend on the sizes of those beside it

LOSSES = dict(
    plain=[CE],
    two=[CE, dict(CE, loss_name='loss_b', avg_non_ignore=True)],
    dice=[CE, dict(type='DiceLoss')],
    sigmoid=[dict(CE, use_sigmoid=True)],
)
SIZES = [(32, 32), (64, 48), (32, 64)]


def images():
    generator = torch.Generator().manual_seed(0)
    return [
        dict(
            inputs=torch.randint(256, (3, *size), generator=generator),
            labels=torch.randint(11, (1, *size), generator=generator),
        )
        for size in SIZES
    ]


def padded(indices, **size):
    """Return what mmseg's preprocessor makes of some of the images."""
    kinds = dict(mean=[0.0] * 3, std=[1.0] * 3, seg_pad_val=255)
    preprocessor = MODELS.build(
        dict(type='SegDataPreProcessor', **kinds, **size)
    )
    chosen = [images()[i] for i in indices]
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=each['labels']))
        for each in chosen
    ]
    inputs = [each['inputs'] for each in chosen]
    return preprocessor(dict(inputs=inputs, data_samples=samples), True)


def logits_of(inputs):
    """Return logits that an image's own pixels decide, in full size."""
    channels = torch.linspace(-1, 1, 11).view(1, -1, 1, 1)
    return channels * inputs.mean(1, keepdim=True) / 64


def scores(loss, indices, balanced=False, **size):
    torch.manual_seed(0)
    head = MODELS.build(toys.weighted(toys.fcn_head(loss_decode=LOSSES[loss])))
    batch = padded(indices, **size)
    ledger = head.infobatch_ledger
    ledger.class_balanced = balanced
    ledger.open(torch.arange(len(indices)), torch.ones(len(indices)))
    head.loss_by_feat(logits_of(batch['inputs']), batch['data_samples'])
    return ledger.close()[1]


@pytest.mark.parametrize('size', [dict(size_divisor=32), dict(size=(96, 96))])
@pytest.mark.parametrize('loss', LOSSES)
def test_a_score_is_that_of_the_image_in_its_own_size(loss, size):
    together = scores(loss, [0, 1, 2], **size)
    alone = [scores(loss, [i], size_divisor=1) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert together.unique().numel() == 3


def test_so_is_a_class_balanced_one():
    together = scores('plain', [0, 1, 2], balanced=True, size_divisor=32)
    alone = [scores('plain', [i], True, size_divisor=1) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_images_that_are_resized_after_padding_are_scored_as_a_whole():
    """Where they lie in their padded form says nothing of the new one."""
    batch = padded([0, 1, 2], size_divisor=32)
    samples = batch['data_samples']
    for sample in samples:
        large = sample.gt_sem_seg.data.repeat_interleave(2, -1)
        sample.gt_sem_seg = PixelData(data=large.repeat_interleave(2, -2))
    logits = logits_of(F.interpolate(batch['inputs'], scale_factor=2.0))
    _, head = pair(toys.fcn_head())
    found = scores_of(head, logits, samples)
    for sample in samples:
        del sample.padding_size
    torch.testing.assert_close(found, scores_of(head, logits, samples))


def test_parts_of_a_batch():
    samples = padded([0, 1], size_divisor=1)['data_samples']
    small, large = own_parts((None, samples), {})
    assert (small.share, large.share) == (32 * 32 / (64 * 48), 1.0)
    assert (small.rows, small.columns) == (slice(0, 32), slice(0, 32))
    assert own_parts((), dict(metas=[s.metainfo for s in samples]))
    same = padded([1, 1], size_divisor=1)['data_samples']
    assert own_parts((None, same), {}) is None
    assert own_parts((None, [SegDataSample()]), {}) is None


# Rows of a head are matched by the id of their sample

IDS = [30, 10, 40, 20]
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 4 / 3])
# Rows of the head, as places in the batch.
ORDERS = dict(
    own=[0, 1, 2, 3],
    sorted=[1, 3, 0, 2],
    repeated=[0, 1, 2, 3, 0, 1, 2, 3],
    once_more=[2, 0, 1, 1, 3],
    left_out=[3, 1],
)


def batch():
    """Return points and their samples."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(len(IDS), 4, generator=generator)
    samples = [
        BaseDataElement(
            metainfo=dict(label=k % 3, shift=0.0, infobatch_index=index)
        )
        for k, index in enumerate(IDS)
    ]
    return points, samples


def opened(head):
    head.infobatch_ledger = ledger = Ledger()
    places = torch.arange(len(IDS))
    ledger.open(places, WEIGHTS, samples=IDS, nowhere=99)
    return ledger


@pytest.mark.parametrize('order', ORDERS.values(), ids=ORDERS)
def test_weights_and_scores_follow_the_samples(order):
    points, samples = batch()
    head = attach(light.LightHead())
    ledger = opened(head)
    rows = points[order]
    loss = head.loss_by_feat(head.fc(rows), [samples[i] for i in order])
    (gradient,) = torch.autograd.grad(loss['loss_ce'], head.fc.weight)
    where, scores = ledger.close()

    labels = torch.tensor([samples[i].label for i in order])
    losses = F.cross_entropy(head.fc(rows), labels, reduction='none')
    expected = (WEIGHTS[order] * losses).mean()
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, head.fc.weight)[0]
    )
    labels = torch.tensor([sample.label for sample in samples])
    alone = F.cross_entropy(head.fc(points), labels, reduction='none')
    seen = [i in order for i in range(4)]
    torch.testing.assert_close(scores[seen], alone.detach()[seen])
    assert where.tolist() == [i if s else 99 for i, s in enumerate(seen)]


def test_the_score_of_a_repeated_sample_is_the_mean_over_its_rows():
    points, samples = batch()
    head = attach(light.LightHead())
    ledger = opened(head)
    views = torch.cat([points, 2 * points])
    head.loss_by_feat(head.fc(views), samples + samples)
    labels = torch.tensor([sample.label for sample in samples * 2])
    losses = F.cross_entropy(head.fc(views), labels, reduction='none')
    expected = losses.detach().view(2, 4).mean(0)
    torch.testing.assert_close(ledger.close()[1], expected)


class Recursive(light.LightHead):
    """A head that takes the losses of its layers one by one, by itself."""

    def loss_by_feat(self, logits, data_samples):
        if not isinstance(logits, list):
            return super().loss_by_feat(logits, data_samples)
        layers = [self.loss_by_feat(each, data_samples) for each in logits]
        return dict(loss_ce=sum(layer['loss_ce'] for layer in layers))


@pytest.mark.parametrize('norms', [False, True])
def test_a_loss_that_calls_itself_is_weighted_once(norms):
    points, samples = batch()
    found = []
    for kind in (Recursive, light.LightHead):
        torch.manual_seed(0)
        head = attach(kind())
        head.infobatch_ledger = ledger = Ledger(gradient_norm=norms)
        ledger.open(torch.arange(4), WEIGHTS, samples=IDS)
        logits = head.fc(points)
        layers = [logits, 2 * logits]
        if kind is Recursive:
            loss = head.loss_by_feat(layers, samples)['loss_ce']
        elif norms:  # one call, whose norm is over both tensors
            found.append(norms_of(head, layers, samples))
            continue
        else:
            losses = [head.loss_by_feat(each, samples) for each in layers]
            loss = sum(each['loss_ce'] for each in losses)
        loss.backward()
        found.append((head.fc.weight.grad, ledger.close()[1]))
    torch.testing.assert_close(*found)


def norms_of(head, layers, samples):
    """Return the weighted gradient, and each image's norm at weight 1."""
    labels = torch.tensor([sample.label for sample in samples])
    each = sum(F.cross_entropy(x, labels, reduction='none') for x in layers)
    loss = (WEIGHTS * each).mean()
    (weight,) = torch.autograd.grad(loss, head.fc.weight, retain_graph=True)
    rows = [
        torch.autograd.grad(
            F.cross_entropy(x, labels, reduction='sum'), x, retain_graph=True
        )[0]
        for x in layers
    ]
    return weight, torch.cat(rows, 1).norm(dim=1)


class Calling(light.LightHead):
    """A head whose loss is also that of another head, twice."""

    def loss_by_feat(self, logits, data_samples):
        own = super().loss_by_feat(logits, data_samples)['loss_ce']
        other = self.other.loss_by_feat(logits, data_samples)['loss_ce']
        return dict(loss_ce=own + 2 * other)


def two_heads(kind, *, norms=False):
    """Return two heads of a model, of which the first knows the other."""
    torch.manual_seed(0)
    model = nn.ModuleList([kind(), light.LightHead()])
    for head in model:
        attach(head)
    object.__setattr__(model[0], 'other', model[1])  # no child of it
    ledger = Ledger(gradient_norm=norms)
    ledger.open(torch.arange(4), WEIGHTS, samples=IDS)
    model[0].infobatch_ledger = model[1].infobatch_ledger = ledger
    return model, ledger


@pytest.mark.parametrize('norms', [False, True])
@pytest.mark.parametrize('also_alone', [False, True])
def test_a_loss_that_calls_that_of_another_head(norms, also_alone):
    points, samples = batch()
    (caller, called), ledger = two_heads(Calling, norms=norms)
    logits, others = caller.fc(points), called.fc(points)
    loss = caller.loss_by_feat(logits, samples)['loss_ce']
    if also_alone:
        loss = loss + called.loss_by_feat(others, samples)['loss_ce']
    assert not silent_heads(dict(a=caller, b=called), ledger)
    loss.backward(retain_graph=True)
    found, scores = caller.fc.weight.grad, ledger.close()[1]

    labels = torch.tensor([sample.label for sample in samples])
    each = 3 * F.cross_entropy(logits, labels, reduction='none')
    expected = torch.autograd.grad(
        (WEIGHTS * each).mean(), caller.fc.weight, retain_graph=True
    )
    torch.testing.assert_close(found, expected[0])
    of_other = F.cross_entropy(others, labels, reduction='none')
    if norms:
        sums = each.sum(), of_other.sum()
        rows = [
            torch.autograd.grad(s, x, retain_graph=True)[0]
            for s, x in zip(sums, (logits, others), strict=True)
        ]
        wanted = torch.cat(rows[: 1 + also_alone], 1).norm(dim=1)
    else:
        wanted = (each + also_alone * of_other).detach()
    torch.testing.assert_close(scores, wanted)


class Keeping(light.LightHead):
    """A head that keeps its logits for another, as a distillation does."""

    def loss_by_feat(self, logits, data_samples):
        self.kept = logits
        return super().loss_by_feat(logits, data_samples)


@pytest.mark.parametrize('what', ['itself', 'something of it', 'detached'])
def test_what_another_loss_has_weighted_is_refused(what):
    points, samples = batch()
    (keeping, other), ledger = two_heads(Keeping)
    keeping.loss_by_feat(keeping.fc(points), samples)
    kept, own = keeping.kept, other.fc(points)
    if what == 'detached':
        other.loss_by_feat(own + kept.detach(), samples)
        return
    given = kept if what == 'itself' else own + (2 * kept).softmax(1)
    with pytest.raises(ValueError, match='LightHead is given a tensor that'):
        other.loss_by_feat(given, samples)
    assert not ledger.is_within
    ledger.guards_inputs = False
    other.loss_by_feat(given, samples)


def test_a_loss_that_changes_its_logits_in_place_is_told_how_not_to():
    class Adjusting(light.LightHead):
        def loss_by_feat(self, logits, data_samples):
            logits -= 1.0
            return super().loss_by_feat(logits, data_samples)

    points, samples = batch()
    head = attach(Adjusting())
    Adjusting.loss_by_feat(head, head.fc(points), samples)  # with no ledger
    ledger = opened(head)
    with pytest.raises(RuntimeError, match='Adjusting changes its logits in'):
        head.loss_by_feat(head.fc(points), samples)
    assert not ledger.is_within


def test_two_losses_of_one_step_add_up():
    points, samples = batch()
    head = attach(light.LightHead())
    ledger = opened(head)
    head.loss_by_feat(head.fc(points), samples)
    once = ledger.losses
    head.loss_by_feat(head.fc(points.flip(0)), samples[::-1])
    torch.testing.assert_close(ledger.close()[1], 2 * once)


@pytest.mark.parametrize(
    'index, message',
    [(7, r'not of its batch: infobatch_index \[7\]'), (None, 'carry no info')],
)
def test_a_sample_that_is_not_of_the_batch_is_an_error(index, message):
    points, samples = batch()
    stranger = BaseDataElement(metainfo=dict(label=0, shift=0.0))
    if index is not None:
        stranger.set_metainfo(dict(infobatch_index=index))
    head = attach(light.LightHead())
    opened(head)
    with pytest.raises(RuntimeError, match=f'LightHead .*{message}'):
        head.loss_by_feat(head.fc(points), [*samples[:3], stranger])


def test_rows_that_are_not_those_of_the_samples_are_an_error():
    points, samples = batch()
    head = attach(light.LightHead())
    opened(head)
    with pytest.raises(ValueError, match='the batch of 3 images'):
        head.loss_by_feat(head.fc(points), samples[:3])


class LabelsOnly(light.LightHead):
    """A head whose loss_by_feat gets labels, like SAN's, but no samples."""

    def loss(self, points, data_samples):
        labels = torch.tensor([sample.label for sample in data_samples])
        return self.loss_by_feat(self.fc(points), labels)

    def loss_by_feat(self, logits, labels):
        return dict(loss_ce=F.cross_entropy(logits, labels))


def test_ids_are_those_of_the_call_around_where_a_seam_gets_none():
    points, samples = batch()
    order = ORDERS['sorted']
    head = attach(LabelsOnly())
    ledger = opened(head)
    head.loss(points[order], [samples[i] for i in order])
    labels = torch.tensor([sample.label for sample in samples])
    expected = F.cross_entropy(head.fc(points), labels, reduction='none')
    torch.testing.assert_close(ledger.close()[1], expected.detach())


def test_new_samples_of_the_models_own_are_an_error():
    class Rebuilding(light.LightHead):
        def loss(self, points, data_samples):
            bare = [
                BaseDataElement(metainfo=dict(label=0, shift=0.0))
                for _ in data_samples
            ]
            return self.loss_by_feat(self.fc(points), bare)

    points, samples = batch()
    head = attach(Rebuilding())
    opened(head)
    with pytest.raises(RuntimeError, match='carry no infobatch_index'):
        head.loss(points, samples)


@ENGINE_MODELS.register_module()
class SortingModel(light.LightModel):
    """Sort the batch by label before the head, and repeat half of it."""

    def forward(self, inputs, data_samples, mode):
        order = sorted(range(len(inputs)), key=lambda i: data_samples[i].label)
        order += order[: len(order) // 2]
        inputs = [inputs[i] for i in order]
        data_samples = [data_samples[i] for i in order]
        return super().forward(inputs, data_samples, mode)


def test_a_run_of_a_model_that_sorts_its_batch(tmp_path):
    """With nothing learned, each score is the loss of its own sample."""
    cfg = light.config(
        tmp_path, dict(type='EpochBasedTrainLoop', max_epochs=3), samples=24
    )
    cfg.model.type = 'SortingModel'
    cfg.optim_wrapper.optimizer.lr = 0.0
    runner = toys.train(cfg)
    data, head = runner.train_dataloader.dataset, runner.model.head
    points = torch.stack([data[i]['inputs'] for i in range(24)])
    labels = torch.tensor([data[i]['data_samples'].label for i in range(24)])
    expected = F.cross_entropy(head.fc(points), labels, reduction='none')
    hook = toys.hook_of(runner)
    torch.testing.assert_close(hook.board.scores, expected.detach())
    assert hook.samples_seen < hook.samples_budget


# Heads that classify masks: MaskFormer and Mask2Former, with mmdet


CONFIGS = dict(
    maskformer='maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
    mask2former='mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
)
NUM_LAYERS = dict(maskformer=6, mask2former=10)
CHANNELS = (256, 512, 1024, 2048)


@pytest.fixture(scope='module', params=CONFIGS)
def kind(request):
    pytest.importorskip('mmdet')
    return request.param


def build_mask_head(kind):
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
    stock = build_mask_head(kind)
    return stock, attach(deepcopy(stock))


def mask_batch(size):
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


def mask_gradients(head, size, weights=None):
    """Return losses, mask_gradients, scores and the random state after it."""
    features, samples = mask_batch(size)
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


def test_weights_of_one_are_stock_bit_for_bit_for_masks(heads):
    stock, head = heads
    expected, expected_grads, _, state = mask_gradients(stock, 3)
    losses, grads, _, state_after = mask_gradients(head, 3, [1.0] * 3)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[k], expected[k]) for k in expected)
    assert all(map(torch.equal, grads, expected_grads))
    assert torch.equal(state, state_after)


def test_the_gradient_is_linear_in_the_weights_of_masks(heads):
    _, head = heads
    first = mask_gradients(head, 2, [1.0, 0.0])[1]
    second = mask_gradients(head, 2, [0.0, 1.0])[1]
    both = mask_gradients(head, 2, [2.5, 0.3])[1]
    expected = [2.5 * a + 0.3 * b for a, b in zip(first, second, strict=True)]
    assert distance(both, expected) < 1e-5
    assert distance(first, second) > 0.1


def test_a_batch_as_large_as_the_layers_are_many(kind, heads):
    _, head = heads
    size = NUM_LAYERS[kind]
    _, grads, scores, _ = mask_gradients(head, size, [0.0] * size)
    assert len(head.forward(*mask_batch(size))[0]) == size
    assert not any(g.any() for g in grads)
    assert scores.shape == (size,)
    weights = [0.0] * size
    weights[1] = 1.0
    features, samples = mask_batch(size)
    head.infobatch_ledger.open(torch.arange(size), torch.tensor(weights))
    total_loss(head.loss(features, samples, None)).backward()
    head.infobatch_ledger.close()
    has_gradient = [bool(g.any()) for g in features[0].grad]
    assert has_gradient == [weight > 0 for weight in weights]


def test_a_score_is_the_stock_loss_of_a_batch_of_one_mask(heads):
    stock, head = heads
    features, samples = mask_batch(3)
    head.infobatch_ledger.open(torch.arange(3), torch.ones(3))
    torch.manual_seed(3)
    head.loss(features, samples, None)
    scores = head.infobatch_ledger.close()[1]
    for i in range(3):
        torch.manual_seed(3)
        own = [feature[i : i + 1] for feature in features]
        expected = total_loss(stock.loss(own, samples[i : i + 1], None))
        torch.testing.assert_close(
            scores[i], expected.detach(), rtol=1e-3, atol=1e-4
        )
    assert scores.unique().numel() == 3


def test_the_norm_of_the_gradient_is_that_of_autograd(heads):
    """Over all layers; the number of masks is that of the mask_batch."""
    stock, head = heads
    features, samples = mask_batch(3)
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


def test_rows_are_matched_by_the_ids_of_the_samples(heads):
    """In another order than the batch's, with the same scores."""
    _, head = heads
    features, samples = mask_batch(3)
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
        return mask_gradients(head, size, [1.0] * size)[2]

    assert run_ranks(2, rank_scores, tmp_path, timeout=120) == [0, 0]
    for rank in 0, 1:
        scores = torch.load(tmp_path / f'{rank}.pt')
        assert torch.equal(scores, score(2 + rank))
