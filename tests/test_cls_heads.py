"""Weighted classification heads: stock in every respect but the gradient."""

import pickle
from copy import deepcopy

import pytest

pytest.importorskip('mmpretrain')
import cls_toys
import mmpretrain.models
import torch
from cls_toys import CLASSES
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from mmpretrain.models.losses import CrossEntropyLoss
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample, MultiTaskDataSample
from processes import run_code
from torch import nn

from infobatch_mm.binding import check_reported, find_heads
from infobatch_mm.heads import WeightedHeadMixin, attach, follow_samples
from infobatch_mm.heads.cls_head import is_mean_over_images
from infobatch_mm.heads.scoring import scores_in_one_pass, total_loss
from infobatch_mm.ledger import Ledger

# mmpretrain says so of its own head.
pytestmark = pytest.mark.filterwarnings('ignore:MMPretrain cannot train')

WIDTH = 6
SIZES = dict(num_classes=CLASSES, in_channels=WIDTH)
CE = dict(type='CrossEntropyLoss')
SMOOTH = dict(
    type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=CLASSES
)
CLASS_WEIGHT = [0.2 + 0.3 * k for k in range(CLASSES)]

# By what the features are, for each stock head that classifies.
SINGLE = dict(
    ClsHead=dict(),
    LinearClsHead=SIZES,
    StackedLinearClsHead=dict(SIZES, mid_channels=[7]),
    VisionTransformerClsHead=dict(SIZES, hidden_dim=4),
    EfficientFormerClsHead=dict(SIZES, distillation=False),
    LeViTClsHead=dict(SIZES, distillation=False),
    VigClsHead=dict(SIZES, hidden_dim=4),
    ArcFaceClsHead=dict(SIZES, scale=4.0),
    DeiTClsHead=SIZES,
    ConformerHead=dict(SIZES, in_channels=[WIDTH, WIDTH]),
)
MULTI_LABEL = dict(
    MultiLabelClsHead=dict(),
    MultiLabelLinearClsHead=SIZES,
    CSRAClsHead=dict(SIZES, num_heads=2, lam=0.1),
)
MULTI_TASK = dict(
    MultiTaskHead=dict(
        task_heads=dict(
            first=dict(type='LinearClsHead', **SIZES),
            second=dict(type='LinearClsHead', loss=SMOOTH, **SIZES),
        )
    )
)
HEADS = SINGLE | MULTI_LABEL | MULTI_TASK

ONE_PASS = dict(
    plain=CE,
    loss_weight=dict(CE, loss_weight=0.4),
    class_weight=dict(CE, class_weight=CLASS_WEIGHT),
    smooth=SMOOTH,
    classy_vision=dict(SMOOTH, mode='classy_vision', loss_weight=2.0),
)
MULTI_LABEL_LOSSES = dict(
    sigmoid=dict(CE, use_sigmoid=True),
    sigmoid_weights=dict(
        CE,
        use_sigmoid=True,
        class_weight=CLASS_WEIGHT,
        pos_weight=CLASS_WEIGHT[::-1],
    ),
    soft=dict(CE, use_soft=True, class_weight=CLASS_WEIGHT),
    smooth_multi_label=dict(SMOOTH, mode='multi_label', use_sigmoid=True),
    asymmetric=dict(type='AsymmetricLoss', loss_weight=0.5),
    focal=dict(type='FocalLoss'),
)
BY_IMAGE = dict(
    seesaw=dict(type='SeesawLoss', num_classes=CLASSES),
    of_the_user=dict(type='UsersLoss'),
)
LOSSES = ONE_PASS | BY_IMAGE


@MODELS.register_module()
class UsersLoss(CrossEntropyLoss):
    """Derived from a loss with one-pass scores, but no mean of them."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) ** 2


def build(config):
    """Build a head with the same parameters, none zero, its norms frozen."""
    torch.manual_seed(0)
    head = MODELS.build(config)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    return head


def pair(config):
    """Return a head twice: stock and weighted."""
    return build(config), build(cls_toys.weighted(config))


def head_config(kind, **settings):
    return dict(HEADS[kind], type=kind, **settings)


def features(kind, batch_size):
    """Return what the head's backbone would, with gradient."""
    generator = torch.Generator().manual_seed(1)
    width = CLASSES if kind in ('ClsHead', 'MultiLabelClsHead') else WIDTH
    shape = (width, 3, 3) if kind == 'CSRAClsHead' else (width,)
    one, other = (
        torch.randn(batch_size, *shape, generator=generator).requires_grad_()
        for _ in range(2)
    )
    if kind in ('DeiTClsHead', 'ConformerHead'):
        return [one, other], ([one, other],)
    return [one], (one,)


def single_samples(batch_size):
    return [
        DataSample().set_gt_label(3 * i % CLASSES) for i in range(batch_size)
    ]


def samples_of(kind, batch_size):
    singles = single_samples(batch_size)
    if kind in MULTI_LABEL:
        for i, sample in enumerate(singles):
            sample.set_gt_label([i % CLASSES, (2 * i + 1) % CLASSES])
    if kind not in MULTI_TASK:
        return singles
    tasks = []
    for i, single in enumerate(singles):
        sample = MultiTaskDataSample()
        sample.set_field(single, 'first')
        second = DataSample().set_gt_label((i + 1) % CLASSES)
        sample.set_field(second, 'second')
        tasks.append(sample)
    return tasks


def weighted_parts(head):
    return [m for m in head.modules() if isinstance(m, WeightedHeadMixin)]


def open_ledger(head, weights):
    ledger = Ledger()
    for part in weighted_parts(head):
        part.infobatch_ledger = ledger
    weights = torch.as_tensor(weights)
    ledger.open(torch.arange(len(weights)), weights)
    return ledger


def take(value, image):
    """Cut features down to one image."""
    if isinstance(value, torch.Tensor):
        return value[image : image + 1]
    return type(value)(take(item, image) for item in value)


@torch.enable_grad()
def head_scores(head, feats, samples):
    ledger = open_ledger(head, torch.ones(len(samples)))
    head.loss(feats, samples)
    return ledger.close()[1]


def stock_scores(head, feats, samples):
    """Return the loss of each image as a batch of its own."""
    state = deepcopy(head.state_dict())
    losses = []
    for i, sample in enumerate(samples):
        losses.append(total_loss(head.loss(take(feats, i), [sample])))
        head.load_state_dict(state)
    return torch.stack(losses)


def gradients(head, kind, batch_size, weights=None):
    """Return losses and gradients, of the head and of what enters it."""
    leaves, feats = features(kind, batch_size)
    if weights is not None:
        open_ledger(head, weights)
    losses = head.loss(feats, samples_of(kind, batch_size))
    used = [*head.parameters(), *leaves]
    grads = torch.autograd.grad(total_loss(losses), used, allow_unused=True)
    return losses, [g for g in grads if g is not None]


def test_every_stock_head_is_here():
    # CLIP's head does not classify, nor do the regression heads, which
    # OneDL has added and which have a test of their own.
    heads = mmpretrain.models.heads
    kinds = {
        name
        for name in heads.__all__
        if issubclass(getattr(heads, name), (ClsHead, MultiLabelClsHead))
        and 'Regression' not in name
    }
    assert kinds | {'MultiTaskHead'} == set(HEADS)


# Scores


@pytest.mark.parametrize('kind', HEADS)
@torch.no_grad()
def test_a_score_is_the_stock_loss_of_a_batch_of_one(kind):
    stock, head = pair(head_config(kind))
    _, feats = features(kind, 4)
    samples = samples_of(kind, 4)
    expected = stock_scores(stock, feats, samples)
    found = head_scores(head, feats, samples)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found.unique().numel() == 4


@pytest.mark.parametrize('loss', ONE_PASS | MULTI_LABEL_LOSSES | BY_IMAGE)
@torch.no_grad()
def test_of_every_loss(loss):
    kind = 'LinearClsHead' if loss in LOSSES else 'MultiLabelLinearClsHead'
    config = (LOSSES | MULTI_LABEL_LOSSES)[loss]
    stock, head = pair(head_config(kind, loss=config))
    _, feats = features(kind, 4)
    samples = samples_of(kind, 4)
    assert (
        is_mean_over_images(head.loss_module) == (loss not in BY_IMAGE)
        or loss == 'seesaw'
    )
    expected = stock_scores(stock, feats, samples)
    found = head_scores(head, feats, samples)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found.unique().numel() == 4


@pytest.mark.skipif(
    'LinearRegressionHead' not in MODELS, reason='only OneDL has it'
)
@pytest.mark.parametrize('loss_type', ['L1Loss', 'MSELoss'])
@torch.no_grad()
def test_a_regression_is_scored_by_its_loss(loss_type):
    """The gradients of absolute errors all have the same norm."""
    loss = dict(type='RegressionLoss', loss_type=loss_type, loss_weight=0.5)
    stock, head = pair(dict(type='LinearRegressionHead', loss=loss, **SIZES))
    _, feats = features('LinearClsHead', 4)
    values = torch.randn(
        4, CLASSES, generator=torch.Generator().manual_seed(2)
    )
    samples = [DataSample().set_gt_score(each) for each in values]
    expected = stock_scores(stock, feats, samples)
    found = head_scores(head, feats, samples)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert scores_in_one_pass(head.loss_module)


def norms_alone(head, feats, samples):
    """Return the norm for each image, a batch of its own, by autograd alone.

    It is of the gradient by all that enters the loss modules of the head.
    """
    norms = []
    for i, sample in enumerate(samples):
        entered = []
        handles = [
            part.loss_module.register_forward_pre_hook(
                lambda _, args, entered=entered: entered.append(args[0])
            )
            for part in head.modules()
            if hasattr(part, 'loss_module')
        ]
        loss = total_loss(head.loss(take(feats, i), [sample]))
        for handle in handles:
            handle.remove()
        found = torch.autograd.grad(loss, entered)
        norms.append(torch.cat([each.flatten() for each in found]).norm())
    return torch.stack(norms)


@pytest.mark.parametrize('loss', [*ONE_PASS, *MULTI_LABEL_LOSSES, *HEADS])
def test_the_norm_of_the_gradient_is_that_of_autograd(loss):
    kind, settings = loss, {}
    if loss not in HEADS:
        kind = 'LinearClsHead' if loss in LOSSES else 'MultiLabelLinearClsHead'
        settings = dict(loss=(LOSSES | MULTI_LABEL_LOSSES)[loss])
    stock, head = pair(head_config(kind, **settings))
    _, feats = features(kind, 4)
    samples = samples_of(kind, 4)
    ledger = Ledger(gradient_norm=True)
    for part in weighted_parts(head):
        part.infobatch_ledger = ledger
    ledger.open(torch.arange(4), torch.tensor([2.0, 0.0, 0.5, 1.0]))
    (1024 * total_loss(head.loss(feats, samples))).backward()
    found = ledger.close()[1]
    expected = norms_alone(stock, features(kind, 4)[1], samples)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found.unique().numel() == 4


@pytest.mark.parametrize('kind', ['LinearClsHead', 'ArcFaceClsHead'])
@torch.no_grad()
def test_of_soft_labels(kind):
    stock, head = pair(head_config(kind, loss=SMOOTH))
    _, feats = features(kind, 3)
    samples = samples_of(kind, 3)
    for i, sample in enumerate(samples):
        score = torch.full((CLASSES,), 0.1)
        score[i] = 0.6
        sample.set_gt_score(score)
    expected = stock_scores(stock, feats, samples)
    found = head_scores(head, feats, samples)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_called_without_a_factor():
    """As by TimmClassifier: then it is the mean over all entries."""
    sigmoid = dict(CE, use_sigmoid=True)
    stock = MODELS.build(sigmoid)
    head = build(head_config('MultiLabelClsHead', loss=sigmoid))
    ledger = open_ledger(attach(head), [1.0, 1.0])
    logits, labels = torch.randn(2, CLASSES), torch.ones(2, CLASSES)
    head.loss_module(logits, labels)
    expected = [stock(logits[i : i + 1], labels[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(ledger.close()[1], torch.stack(expected))


@MODELS.register_module()
class ByFactor(nn.Module):
    """A loss whose factor stands where an argument may be without a name."""

    def forward(self, cls_score, label, avg_factor=None):
        losses = nn.functional.cross_entropy(
            cls_score, label, reduction='none'
        )
        return losses.sum() / avg_factor


@pytest.mark.parametrize('as_factor', [int, torch.tensor])
def test_a_factor_is_that_of_one_image_wherever_it_stands(as_factor):
    head = build(head_config('LinearClsHead', loss=dict(type='ByFactor')))
    ledger = open_ledger(attach(head), [1.0] * 4)
    logits, labels = torch.randn(4, CLASSES), torch.arange(4)
    head.loss_module(logits, labels, avg_factor=as_factor(4))
    expected = nn.functional.cross_entropy(logits, labels, reduction='none')
    torch.testing.assert_close(ledger.close()[1], expected)


@MODELS.register_module()
class FromOne(nn.Module):
    """A loss that counts its labels from one, and says so in place."""

    def forward(self, cls_score, label, avg_factor):
        label -= 1
        return nn.functional.cross_entropy(cls_score, label)


def test_scoring_leaves_the_labels_to_the_loss():
    head = build(head_config('LinearClsHead', loss=dict(type='FromOne')))
    open_ledger(attach(head), [1.0] * 4)
    labels = torch.arange(1, 5)
    head.loss_module(torch.randn(4, CLASSES), labels, avg_factor=4)
    assert labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('loss', LOSSES)
def test_scoring_leaves_no_trace(loss):
    """Neither in the random state nor in what the loss counts."""
    stock, head = pair(head_config('LinearClsHead', loss=LOSSES[loss]))
    _, feats = features('LinearClsHead', 3)
    samples = samples_of('LinearClsHead', 3)
    before = torch.get_rng_state()
    head_scores(head, feats, samples)
    stock.loss(feats, samples)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(
        head.state_dict(), stock.state_dict(), rtol=0, atol=0
    )


@pytest.mark.parametrize('loss', ONE_PASS | MULTI_LABEL_LOSSES)
def test_a_step_does_not_wait_for_the_device(loss):
    """On meta, reading a value raises; the smoothed labels are soft."""
    config = (ONE_PASS | MULTI_LABEL_LOSSES)[loss]
    head = build(cls_toys.weighted(head_config('LinearClsHead', loss=config)))
    meta = torch.device('meta')
    logits = torch.randn(2, CLASSES, device=meta, requires_grad=True)
    labels = torch.zeros(2, CLASSES, device=meta)
    if loss in ('plain', 'loss_weight', 'class_weight'):
        labels = labels[:, 0].long()
    head.loss_module.infobatch_ledger.open(
        torch.zeros(2, dtype=torch.int64, device=meta),
        torch.ones(2, device=meta),
    )
    head.loss_module(logits, labels, avg_factor=2).backward()
    assert logits.grad.is_meta
    assert head.loss_module.infobatch_ledger.close()[1].shape == (2,)


# Gradients


@pytest.mark.parametrize('kind', HEADS)
def test_weights_of_one_are_stock_bit_for_bit(kind):
    stock, head = pair(head_config(kind))
    expected = gradients(stock, kind, 3)
    found = gradients(head, kind, 3, [1.0, 1.0, 1.0])
    assert expected[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('loss', LOSSES)
def test_with_every_loss(loss):
    stock, head = pair(head_config('LinearClsHead', loss=LOSSES[loss]))
    expected = gradients(stock, 'LinearClsHead', 3)
    found = gradients(head, 'LinearClsHead', 3, [1.0, 1.0, 1.0])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('kind', HEADS)
def test_the_gradient_is_linear_in_the_weights(kind):
    head = build(cls_toys.weighted(head_config(kind)))
    first, second = torch.tensor([[1.0, 0.5, 3.0], [0.3, 4.0, 2.0]])
    found = gradients(head, kind, 3, 2 * first + 5 * second)[1]
    one = gradients(head, kind, 3, first)[1]
    other = gradients(head, kind, 3, second)[1]
    expected = [2 * a + 5 * b for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', HEADS)
def test_it_is_the_weighted_mean_of_the_single_images_gradients(kind):
    stock, head = pair(head_config(kind))
    weights = torch.tensor([0.5, 2.0, 4 / 3])
    leaves, feats = features(kind, 3)
    samples, singles = samples_of(kind, 3), []
    used = [*stock.parameters(), *leaves]
    for i, sample in enumerate(samples):
        loss = total_loss(stock.loss(take(feats, i), [sample]))
        grads = torch.autograd.grad(loss * weights[i] / 3, used)
        singles.append(grads)
    expected = [sum(parts) for parts in zip(*singles, strict=True)]
    found = gradients(head, kind, 3, weights)[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', HEADS)
def test_weights_of_zero_give_no_gradient_and_the_stock_loss(kind):
    stock, head = pair(head_config(kind))
    losses, grads = gradients(head, kind, 3, [0.0, 0.0, 0.0])
    assert not any(grad.any() for grad in grads)
    expected = gradients(stock, kind, 3)[0]
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)


# What cannot be told apart


def test_tasks_without_a_label_for_each_sample_are_an_error():
    head = build(cls_toys.weighted(head_config('MultiTaskHead')))
    samples = samples_of('MultiTaskHead', 3)
    del samples[1].second
    open_ledger(head, [1.0, 2.0, 1.0])
    with pytest.raises(ValueError, match=r'LabelSmoothLoss got .* \(2, 5\)'):
        head.loss((torch.randn(3, WIDTH),), samples)


def test_a_task_that_no_sample_has_is_an_error():
    head = build(cls_toys.weighted(head_config('MultiTaskHead')))
    samples = samples_of('MultiTaskHead', 2)
    for sample in samples:
        del sample.second
    ledger = open_ledger(head, [1.0, 2.0])
    head.loss((torch.randn(2, WIDTH),), samples)
    with pytest.raises(RuntimeError, match=r': task_heads\.second$'):
        check_reported(find_heads(head), ledger)


def test_validation_of_a_part_of_the_tasks_is_not_an_error():
    head = build(cls_toys.weighted(head_config('MultiTaskHead')))
    samples = samples_of('MultiTaskHead', 3)
    del samples[1].second
    assert head.loss((torch.randn(3, WIDTH),), samples)


def test_a_head_that_is_not_weighted_is_an_error():
    model = nn.ModuleDict(
        dict(
            head=build(head_config('LinearClsHead')),
            other=build(cls_toys.weighted(head_config('LinearClsHead'))),
        )
    )
    with pytest.raises(ValueError, match=r': head \(LinearClsHead\)\. Wrap'):
        find_heads(model)


def test_a_head_that_pretrains_is_an_error():
    config = dict(type='ContrastiveHead', loss=CE)
    with pytest.raises(TypeError, match='ContrastiveHead has no loss_by_feat'):
        build(cls_toys.weighted(config))
    model = nn.ModuleDict(dict(head=build(config)))
    with pytest.raises(ValueError, match='found no weighted head'):
        find_heads(model)


def test_what_is_weighted_is_found_by_the_names_of_the_heads():
    model = nn.ModuleDict(
        dict(
            head=build(cls_toys.weighted(head_config('ConformerHead'))),
            tasks=build(cls_toys.weighted(head_config('MultiTaskHead'))),
        )
    )
    names = ['head', 'tasks.task_heads.first', 'tasks.task_heads.second']
    found = find_heads(model)
    assert list(found) == names
    assert list(found.values()) == weighted_parts(model)


def test_a_head_within_a_head_is_weighted_too():
    """Each calls a loss of its own, unlike heads with a loss_by_feat."""
    outer = build(head_config('LinearClsHead'))
    outer.auxiliary = build(head_config('LinearClsHead'))
    attach(outer)
    assert list(find_heads(outer)) == ['', 'auxiliary']


# The stock head in every other respect


@pytest.mark.parametrize('kind', HEADS)
def test_it_looks_like_the_stock_head(kind):
    stock, head = pair(head_config(kind))
    assert list(head.state_dict()) == list(stock.state_dict())
    assert repr(head) == repr(stock)
    assert type(head) is type(stock)
    assert weighted_parts(head)
    for part in weighted_parts(head):
        assert isinstance(part, part.infobatch_stock)
        assert type(part).__name__ == part.infobatch_stock.__name__
        assert type(part).__module__ == part.infobatch_stock.__module__


STOCK_SIDE = """
import sys
sys.modules['infobatch_mm'] = None
import torch
import mmpretrain.models
from mmengine.config import Config
from mmpretrain.registry import MODELS
folder = sys.argv[1]
torch.manual_seed(3)
model = MODELS.build(Config.fromfile(f'{folder}/model.json').model).eval()
torch.save(model.state_dict(), f'{folder}/stock.pth')
model.load_state_dict(torch.load(f'{folder}/weighted.pth'), strict=True)
torch.save(model(torch.load(f'{folder}/image.pth')), f'{folder}/logits.pth')
"""


def test_checkpoints_load_strictly_with_and_without_the_package(tmp_path):
    stock, pruned = (
        dict(cls_toys.model(pruned=pruned), _scope_='mmpretrain')
        for pruned in (False, True)
    )
    Config(dict(model=stock)).dump(tmp_path / 'model.json')
    torch.manual_seed(0)
    model, image = MODELS.build(pruned).eval(), torch.randn(1, 3, 8, 8)
    torch.save(model.state_dict(), tmp_path / 'weighted.pth')
    torch.save(image, tmp_path / 'image.pth')
    run_code(STOCK_SIDE, tmp_path)
    ours, theirs = model(image), torch.load(tmp_path / 'logits.pth')
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    stock = torch.load(tmp_path / 'stock.pth')
    model.load_state_dict(stock, strict=True)
    torch.testing.assert_close(model.state_dict(), stock, rtol=0, atol=0)


COPIES = dict(
    deepcopy=deepcopy, pickle=lambda head: pickle.loads(pickle.dumps(head))
)


# Not MultiTaskHead, whose own functions mmpretrain makes uncopyable.
@pytest.mark.parametrize('copy', COPIES.values(), ids=COPIES)
@pytest.mark.parametrize('kind', SINGLE | MULTI_LABEL)
def test_a_copy_is_a_weighted_head_of_its_own(copy, kind):
    smooth = dict(loss=SMOOTH) if kind == 'LinearClsHead' else {}
    head = build(cls_toys.weighted(head_config(kind, **smooth)))
    ledger = open_ledger(head, [2.0, 2.0, 2.0])
    twin = copy(head)
    (part,) = weighted_parts(twin)
    assert type(part) is type(head.loss_module)
    assert part is twin.loss_module and not part.infobatch_ledger.is_open

    twin_losses, twin_grads = gradients(twin, kind, 3)
    assert ledger.losses is None and ledger.reporters == []

    losses, grads = gradients(head, kind, 3, [2.0, 2.0, 2.0])
    torch.testing.assert_close(twin_losses, losses)
    torch.testing.assert_close([2 * g for g in twin_grads], grads)


def test_building_does_not_change_the_config():
    config = cls_toys.weighted(head_config('LinearClsHead'))
    before = deepcopy(config)
    head = build(dict(config, cal_acc=True))
    assert config == before
    assert head.cal_acc


@pytest.mark.parametrize(
    'beside, soft, weight',
    [
        (dict(loss_weight=0.3), True, 0.3),
        (dict(_delete_=True, type='CrossEntropyLoss'), False, 1.0),
        (dict(_delete_=False, use_soft=False), False, 2.0),
    ],
)
def test_a_child_of_a_pruned_config_sets_the_loss(beside, soft, weight):
    """As it does of a stock one."""
    loss = dict(CE, use_soft=True, loss_weight=2.0)
    base = cls_toys.weighted(head_config('LinearClsHead', loss=loss))
    config = Config(dict(model=dict(base, loss=beside))).model
    before = deepcopy(config)
    found = build(config).loss_module
    assert (found.use_soft, found.loss_weight) == (soft, weight)
    assert config == before


def test_attaching_twice_changes_nothing():
    head = attach(build(head_config('LinearClsHead')))
    loss = head.loss_module
    kind, ledger = type(loss), loss.infobatch_ledger
    assert attach(head) is head and head.loss_module is loss
    assert type(loss) is kind and loss.infobatch_ledger is ledger


# Rows by the id of their sample, and no trace

IDS = [30, 10, 40]
WEIGHTS = [0.5, 2.0, 4 / 3]
# Rows of the head, as places in the batch.
ORDERS = dict(sorted=[1, 0, 2], repeated=[0, 1, 2, 0, 1, 2], fewer=[2, 0])


class Model(nn.Module):
    """What holds a head in a run."""

    def __init__(self, head):
        super().__init__()
        self.head = head


def opened(head, weights=WEIGHTS, ids=IDS):
    ledger = Ledger()
    for part in weighted_parts(head):
        part.infobatch_ledger = ledger
    follow_samples(Model(head), ledger)
    places = torch.arange(len(weights))
    ledger.open(places, torch.tensor(weights), samples=ids, nowhere=9)
    return ledger


def numbered_samples(kind):
    samples = samples_of(kind, 3)
    for sample, index in zip(samples, IDS, strict=True):
        sample.set_field(index, 'infobatch_index', field_type='metainfo')
    return samples


def rearrange(value, order):
    if isinstance(value, torch.Tensor):
        return value[order]
    return type(value)(rearrange(item, order) for item in value)


def weight_gradients(head, feats, samples):
    loss = total_loss(head.loss(feats, samples))
    return torch.autograd.grad(loss, list(head.parameters()))


@pytest.mark.parametrize('order', ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize('kind', HEADS)
def test_weights_and_scores_follow_the_samples(kind, order):
    """As if the batch had been opened in the order of the rows."""
    by_place, by_id = (
        build(cls_toys.weighted(head_config(kind))) for _ in range(2)
    )
    _, feats = features(kind, 3)
    feats, samples = rearrange(feats, order), numbered_samples(kind)
    rows = [samples[i] for i in order]
    ledger = open_ledger(by_place, [WEIGHTS[i] for i in order])
    used = [p for p in by_id.parameters()]
    expected = weight_gradients(by_place, feats, rows) if used else ()
    if not used:
        by_place.loss(feats, rows)
    alone = ledger.close()[1]
    ledger = opened(by_id)
    found = weight_gradients(by_id, feats, rows) if used else ()
    if not used:
        by_id.loss(feats, rows)
    where, scores = ledger.close()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for row, place in enumerate(order):
        torch.testing.assert_close(scores[place], alone[row])
    assert where.tolist() == [i if i in order else 9 for i in range(3)]


def test_a_sample_that_is_not_of_the_batch_is_an_error():
    head = build(cls_toys.weighted(head_config('LinearClsHead')))
    opened(head, ids=[30, 10, 7])
    _, feats = features('LinearClsHead', 3)
    message = r'CrossEntropyLoss .* not of its batch: infobatch_index \[40\]'
    with pytest.raises(RuntimeError, match=message):
        head.loss(feats, numbered_samples('LinearClsHead'))


def test_a_loss_module_that_the_model_calls_itself_is_an_error():
    head = build(cls_toys.weighted(head_config('LinearClsHead')))
    opened(head)
    logits, labels = torch.randn(3, CLASSES), torch.arange(3)
    with pytest.raises(RuntimeError, match='past the loss.. of its head'):
        head.loss_module(logits, labels)


def test_a_sample_without_an_id_is_an_error():
    head = build(cls_toys.weighted(head_config('LinearClsHead')))
    opened(head)
    _, feats = features('LinearClsHead', 3)
    with pytest.raises(RuntimeError, match='carry no infobatch_index'):
        head.loss(feats, samples_of('LinearClsHead', 3))


@MODELS.register_module()
class SortingClassifier(ImageClassifier):
    """Sort the batch by label before the head."""

    def loss(self, inputs, data_samples):
        labels = [int(sample.gt_label) for sample in data_samples]
        order = sorted(range(len(labels)), key=labels.__getitem__)
        samples = [data_samples[i] for i in order]
        return super().loss(inputs[order], samples)


@pytest.mark.parametrize('loss', ['CrossEntropyLoss', 'CountingLoss'])
def test_a_run_of_a_classifier_that_sorts_its_batch(tmp_path, loss):
    """At a learning rate of zero scores are those of the plain one."""
    found = []
    for kind in ('ImageClassifier', 'SortingClassifier'):
        cfg = cls_toys.config(tmp_path / kind, epochs=2)
        cfg.model.type = kind
        cfg.model.head.head.loss = dict(type=loss)
        cfg.optim_wrapper.optimizer.lr = 0.0
        runner = Runner.from_cfg(cfg)
        nn.init.normal_(runner.model.head.fc.weight)
        for parameter in runner.model.backbone.parameters():
            torch.manual_seed(0)
            nn.init.normal_(parameter, std=0.1)
        runner.train()
        (hook,) = (h for h in runner.hooks if hasattr(h, 'board'))
        found.append(hook.board.scores)
    assert found[0].unique().numel() > 20
    torch.testing.assert_close(*found)


# No trace


@MODELS.register_module()
class CountingLoss(nn.Module):
    """A loss that keeps statistics of its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer('steps', torch.zeros(()))
        self.count, self.sizes = 0, []

    def forward(self, cls_score, target, avg_factor=None, **kwargs):
        self.steps += 1
        self.count += 1
        self.sizes.append(len(cls_score))
        losses = nn.functional.cross_entropy(
            cls_score, target, reduction='none'
        )
        return losses.sum() / (avg_factor or len(losses))


def test_a_loss_that_counts_its_calls_counts_the_steps(tmp_path):
    cfg = cls_toys.config(tmp_path, epochs=2, hook=dict(pacing='fewer_steps'))
    cfg.model.head.head.loss = dict(type='CountingLoss')
    runner = Runner.from_cfg(cfg)
    runner.train()
    loss = runner.model.head.loss_module
    assert loss.count == loss.steps == runner.iter
    assert loss.sizes == [4] * runner.iter
