"""The weighted gradient: by hand, in mixed precision, and accumulated."""

import copy
import pickle
from collections import Counter, namedtuple
from contextlib import contextmanager
from functools import partial

import light
import pytest
import torch
import toys
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from mmengine.structures import PixelData
from mmseg.models.losses import cross_entropy_loss
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from infobatch_mm import InfoBatchPolicy, QuantilePolicy
from infobatch_mm.heads import WeightedHeadMixin
from infobatch_mm.heads.decode_head import (
    PixelLosses,
    class_balanced_means,
    image_means,
    keep_pixel_losses,
)
from infobatch_mm.ledger import Ledger
from infobatch_mm.rescale import scale_gradient
from infobatch_mm.scores import ScoreBoard

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


# Ledger: open during a training step, closed otherwise

IDS, WEIGHTS = torch.tensor([4, 1]), torch.tensor([2.0, 1.0])


def opened() -> Ledger:
    ledger = Ledger()
    ledger.open(IDS, WEIGHTS)
    return ledger


def test_it_is_open_from_open_to_close():
    ledger = Ledger()
    assert not ledger.is_open
    ledger.open(IDS, WEIGHTS)
    assert ledger.is_open
    assert ledger.weights is WEIGHTS
    ledger.record('head', torch.zeros(2))
    ledger.close()
    assert not ledger.is_open
    assert ledger.ids is ledger.weights is ledger.losses is None


def test_it_adds_up_the_losses_of_the_heads():
    ledger = opened()
    ledger.record(
        'decode', torch.tensor([1.0, 2.0]).bfloat16().requires_grad_()
    )
    ledger.record('auxiliary', torch.tensor([2**-12, 0.5]).bfloat16())
    assert ledger.reporters == ['decode', 'auxiliary']
    ids, losses = ledger.close()
    assert ids.tolist() == [4, 1]
    assert losses.tolist() == [1 + 2**-12, 2.5]  # in float32
    assert losses.dtype == torch.float32
    assert not losses.requires_grad


def test_a_batch_knows_nothing_of_the_one_before():
    ledger = opened()
    ledger.record('decode', torch.ones(2))
    ledger.open(IDS, WEIGHTS)  # after a step that raised
    assert ledger.losses is None
    assert ledger.reporters == []
    ledger.record('decode', torch.zeros(2))
    assert ledger.close()[1].tolist() == [0, 0]


def test_recording_leaves_the_losses_as_they_were():
    ledger, losses = opened(), torch.ones(2)
    ledger.record('decode', losses)
    ledger.record('auxiliary', losses)
    assert losses.tolist() == [1, 1]


def test_it_can_be_open_within_a_block_alone():
    ledger = opened()
    ledger.record('decode', torch.ones(2))
    ledger.is_open = False
    with pytest.raises(KeyError), ledger.open_again():
        assert ledger.is_open and ledger.losses is None
        ledger.record('decode', torch.zeros(2))
        raise KeyError
    assert not ledger.is_open
    assert ledger.close()[1].tolist() == [0, 0]


def test_rows_are_found_by_sample():
    ledger = Ledger()
    slots = torch.tensor([70, 10, 40])
    weights = torch.tensor([2.0, 1.0, 3.0])
    ledger.open(slots, weights, samples=[7, 1, 4], nowhere=99)
    rows = ledger.rows([4, 7, 4])
    assert rows.weights.tolist() == [3.0, 2.0, 3.0]
    ledger.record('decode', torch.tensor([1.0, 5.0, 2.0]), rows)
    ids, losses = ledger.close()
    assert ids.tolist() == [70, 99, 40]
    assert losses.tolist() == [5.0, 0.0, 1.5]


def test_the_batch_in_its_own_order_needs_no_places():
    ledger = Ledger()
    ledger.open(IDS, WEIGHTS, samples=[4, 1])
    rows = ledger.rows([4, 1])
    assert rows.places is None and rows.weights is WEIGHTS


def test_a_sample_that_comes_twice_has_the_mean_of_its_losses():
    ledger = Ledger()
    ledger.open(torch.tensor([4, 4]), WEIGHTS, samples=[4, 4], nowhere=99)
    ledger.record('decode', torch.tensor([1.0, 2.0]), ledger.rows([4, 4]))
    ids, losses = ledger.close()
    assert ids.tolist() == [4, 99] and losses.tolist() == [1.5, 0.0]


def test_a_step_without_a_loss_is_an_error():
    with pytest.raises(RuntimeError, match='no weighted head has computed'):
        opened().close()


@pytest.mark.parametrize(
    'duplicate',
    [
        copy.copy,
        copy.deepcopy,
        lambda ledger: pickle.loads(pickle.dumps(ledger)),
    ],
    ids=['copy', 'deepcopy', 'pickle'],
)
def test_a_copy_is_a_new_and_closed_one(duplicate):
    ledger = opened()
    ledger.record('decode', torch.ones(2))
    other = duplicate(ledger)
    assert not other.is_open
    assert other.losses is None
    assert other.reporters == []
    assert ledger.is_open
    assert ledger.reporters == ['decode']


# scale_gradient: identity forward, weighted backward

FACTORS = torch.tensor([2.0, 1.0, 0.0, 4 / 3])
Pair = namedtuple('Pair', 'logits boxes')


def leaf(*shape: int, dtype=torch.float32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(len(shape))
    values = torch.randn(shape, generator=rng).to(dtype)
    return values.requires_grad_()


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return (
        logits.double().sin() * torch.arange(logits.numel()).view_as(logits)
    ).sum()


def scaled_gradient(logits: torch.Tensor, weights=None, axis: int = 0):
    """Return the gradient of a loss, weighted if weights are given."""
    scaled = logits
    if weights is not None:
        scaled = scale_gradient(logits, weights, axis=axis)
    return torch.autograd.grad(loss_of(scaled), logits)[0]


@pytest.mark.parametrize('shape', [(4,), (4, 3), (4, 3, 5, 2)])
def test_the_value_is_untouched_and_the_gradient_weighted(shape):
    logits = leaf(*shape)
    scaled = scale_gradient(logits, FACTORS)
    assert scaled.requires_grad
    assert torch.equal(scaled, logits)
    expected = scaled_gradient(logits) * FACTORS.view(
        4, *[1] * (len(shape) - 1)
    )
    assert torch.equal(scaled_gradient(logits, FACTORS), expected)


def test_it_is_the_weighted_sum_of_single_image_gradients():
    weight, images = (
        leaf(3, 5),
        torch.randn(4, 5, generator=torch.Generator().manual_seed(0)),
    )

    def grad_of(losses):
        return torch.autograd.grad(losses.sum(), weight)[0]

    def losses(logits):
        return logits.logsumexp(1)

    got = grad_of(losses(scale_gradient(images @ weight.T, FACTORS)))
    single = [grad_of(losses(image[None] @ weight.T)) for image in images]
    expected = sum(w * g for w, g in zip(FACTORS, single, strict=True))
    torch.testing.assert_close(got, expected)


def test_the_batch_may_lie_on_another_axis():
    layers = leaf(2, 4, 3)
    expected = scaled_gradient(layers) * FACTORS.view(1, 4, 1)
    assert torch.equal(scaled_gradient(layers, FACTORS, axis=1), expected)


def test_a_weight_of_one_changes_no_bit():
    values = [-0.0, 1e-45, 1e-40, 1 / 3, 3e38, torch.inf]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.half):
        incoming = torch.tensor(values, dtype=torch.float64).to(dtype)
        logits = torch.zeros(6, dtype=dtype, requires_grad=True)
        scaled = scale_gradient(logits, torch.ones(6))
        (got,) = torch.autograd.grad(scaled, logits, incoming)
        assert got.dtype == dtype
        bits = torch.uint8
        assert torch.equal(got.view(bits), incoming.view(bits))


def test_a_weight_of_zero_leaves_no_gradient():
    assert scaled_gradient(leaf(4, 3), torch.zeros(4)).count_nonzero() == 0


def test_a_penalty_on_the_gradient_is_refused():
    """It would get the square of the weights, and none of a weight of 0."""
    points = torch.randn(4, 3, requires_grad=True)
    scaled = scale_gradient(points @ torch.randn(3, 2), FACTORS)
    loss = scaled.square().mean()
    (gradient,) = torch.autograd.grad(loss, points, create_graph=True)
    assert torch.equal(gradient, torch.autograd.grad(loss, points)[0])
    with pytest.raises(RuntimeError, match='Train without that penalty'):
        gradient.square().sum().backward()


def test_half_precision_is_weighted_in_float32_and_rounded_once():
    logits = leaf(4, 50, dtype=torch.bfloat16)
    weights = torch.tensor([4 / 3, 10 / 7, 1.1, 1.7])
    plain = scaled_gradient(logits)
    expected = (plain.float() * weights[:, None]).bfloat16()
    assert torch.equal(scaled_gradient(logits, weights), expected)
    # The check can fail: rounding the weight first gives another result.
    assert not torch.equal(plain * weights[:, None].bfloat16(), expected)


def test_it_works_under_autocast():
    logits, weight = leaf(4, 3), torch.eye(3)
    with torch.autocast('cpu', torch.bfloat16):
        scaled = scale_gradient(logits @ weight, FACTORS)
        assert scaled.dtype == torch.bfloat16
    (got,) = torch.autograd.grad(scaled.sum(), logits)
    expected = FACTORS.bfloat16().float()[:, None].expand(4, 3)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    'nest',
    [
        lambda a, b: (a, b),
        lambda a, b: [a, [b]],
        lambda a, b: dict(logits=a, more=dict(boxes=(b,))),
        lambda a, b: Pair(logits=a, boxes=[b]),
        lambda a, b: ConfigDict(logits=a, more=ConfigDict(boxes=b)),
    ],
    ids=['tuple', 'list', 'dict', 'namedtuple', 'attributes'],
)
def test_nests_keep_their_shape_and_each_tensor_is_weighted(nest):
    a, b = leaf(4, 3), leaf(4, 3, 5)
    scaled = scale_gradient(nest(a, b), FACTORS)
    seen = []

    def compare(got, expected):
        assert type(got) is type(expected)
        if isinstance(got, torch.Tensor):
            seen.append(got)
            assert torch.equal(got, expected)
        elif isinstance(got, dict):
            assert got.keys() == expected.keys()
            compare(list(got.values()), list(expected.values()))
        else:
            for pair in zip(got, expected, strict=True):
                compare(*pair)

    compare(scaled, nest(a, b))
    grads = torch.autograd.grad(sum(map(loss_of, seen)), (a, b))
    for logits, got in zip((a, b), grads, strict=True):
        assert torch.equal(got, scaled_gradient(logits, FACTORS))


def test_what_carries_no_gradient_is_passed_through():
    labels, other = torch.zeros(7, dtype=torch.int64), object()
    assert scale_gradient(labels, FACTORS) is labels
    assert scale_gradient([other, None, 3], FACTORS) == [other, None, 3]


@pytest.mark.parametrize(
    ('shape', 'axis'), [((3, 4), 0), ((4, 3), 1), ((4,), 1), ((), 0)]
)
def test_a_tensor_without_the_batch_is_refused(shape, axis):
    with pytest.raises(ValueError, match=rf'axis {axis} .* 4 images'):
        scale_gradient([leaf(*shape)], FACTORS, axis=axis)


def test_it_does_not_wait_for_the_device():
    # A tensor on `meta` has no value: reading one raises.
    logits = torch.zeros(4, 3, device='meta', requires_grad=True)
    weights = torch.zeros(4, device='meta')
    scale_gradient(logits * 2, weights).sum().backward()
    assert logits.grad.is_meta


# A training step gets no device-to-host transfer from our functions: on
# the meta device `.item()`, `.cpu()`, `.tolist()` and boolean indexing raise
# by themselves.

META = torch.device('meta')


@pytest.mark.parametrize(
    'work',
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: t[t > 0],
        lambda t: t.cpu(),
    ],
)
def test_the_meta_device_notices_a_transfer(work):
    with pytest.raises((RuntimeError, NotImplementedError)):
        work(torch.ones(3, device=META))


@pytest.mark.parametrize('avg_non_ignore', [False, True])
@pytest.mark.parametrize('with_class_weight', [False, True])
def test_a_step(avg_non_ignore, with_class_weight):
    ids = torch.zeros(2, dtype=torch.int64, device=META)
    ledger, board = Ledger(), ScoreBoard(5, device=META)
    ledger.open(ids, torch.ones(2, device=META))
    logits = torch.randn(2, 3, 4, 4, device=META, requires_grad=True)
    labels = torch.zeros(2, 4, 4, dtype=torch.int64, device=META)
    class_weight = torch.ones(3, device=META) if with_class_weight else None
    with keep_pixel_losses() as kept:
        scaled = scale_gradient(logits, ledger.weights)
        pixels = cross_entropy_loss.F.cross_entropy(
            scaled,
            labels,
            weight=class_weight,
            reduction='none',
            ignore_index=255,
        )
    pixels.mean().backward()
    (pixel_losses,) = kept
    assert isinstance(pixel_losses, PixelLosses)
    ledger.record('head', image_means(pixel_losses, avg_non_ignore))
    ledger.record('other head', class_balanced_means(pixel_losses))
    board.update(*ledger.close())
    assert logits.grad.shape == logits.shape
    assert board.scores.shape == (5,)


# Mixed precision and accumulated gradients

SAMPLES, BATCH, EPOCHS = 20, 4, 5
# Rounds of 5, 4, 4, 5 and 5 iterations. 2 and 3 leave a remainder of 23.
HALF_OF_HALF = dict(
    type='QuantilePolicy', quantiles=(0.5,), prune_ratios=(0.5,)
)
BUDGET, ITERS = 25, 23


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """``AmpOptimWrapper`` with bfloat16, which mmengine refuses on a CPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


@OPTIM_WRAPPERS.register_module()
class MeanCheckingOptimWrapper(OptimWrapper):
    """Check that each step is along the mean gradient of its iterations."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gradients, self.group_sizes = [], []
        self.parameters = self.param_groups[0]['params']

    def update_params(self, loss, **kwargs):
        self.gradients.append(
            torch.autograd.grad(loss, self.parameters, retain_graph=True)
        )
        super().update_params(loss, **kwargs)

    def step(self, **kwargs):
        for parameter, of_iters in zip(
            self.parameters, zip(*self.gradients, strict=True), strict=True
        ):
            mean = torch.stack(of_iters).mean(0)
            torch.testing.assert_close(parameter.grad, mean)
        self.group_sizes.append(len(self.gradients))
        self.gradients.clear()
        super().step(**kwargs)


@HOOKS.register_module()
class StepCounter(Hook):
    """Count optimizer steps and note the learning rate of each epoch."""

    def before_train(self, runner):
        self.rates, self.step_iters = [], []
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_post_hook(
            lambda *_: self.step_iters.append(runner.iter)
        )

    def before_train_epoch(self, runner):
        self.rates.extend(runner.optim_wrapper.get_lr()['lr'])


def run(work_dir, *, pruned=True, **overrides):
    cfg = toys.config(
        work_dir,
        pruned=pruned,
        samples=SAMPLES,
        batch_size=BATCH,
        epochs=EPOCHS,
        policy=HALF_OF_HALF,
        delta=0.5,
        pacing='fewer_steps',
        **overrides,
    )
    cfg.custom_hooks.append(dict(type='StepCounter'))
    runner = toys.train(cfg)
    counter = next(h for h in runner.hooks if isinstance(h, StepCounter))
    return runner, counter


BOTH = {
    'amp': {'optim_wrapper.type': 'CpuAmpOptimWrapper'},
    'by_2': {'optim_wrapper.accumulative_counts': 2},
    'by_3': {'optim_wrapper.accumulative_counts': 3},
    'amp_by_3': {
        'optim_wrapper.type': 'CpuAmpOptimWrapper',
        'optim_wrapper.accumulative_counts': 3,
    },
}


@pytest.mark.parametrize('settings', BOTH.values(), ids=BOTH)
def test_a_pruned_run_ends_as_it_should(tmp_path, settings):
    runner, counter = run(tmp_path, **settings)
    assert runner.iter == runner.max_iters == ITERS
    assert runner.message_hub.get_info('max_iters') == ITERS
    assert toys.hook_of(runner).clock.now == BUDGET

    every = settings.get('optim_wrapper.accumulative_counts', 1)
    due = {*range(every, ITERS, every), ITERS}
    assert counter.step_iters == sorted(i - 1 for i in due)

    scores = toys.hook_of(runner).board.scores
    assert scores.dtype == torch.float32 and scores.isfinite().all()


MEAN = dict(type='InfoBatchPolicy', prune_ratio=0.5)
HALF = dict(type='RandomPolicy', prune_ratio=0.5)
# Of 24 samples in batches of 4, so that a full round has 6 iterations; in 49
# ticks the last round is a single one, after rounds of 3.
RUNS = {
    'epochs': (dict(type='EpochBasedTrainLoop', max_epochs=8), MEAN),
    'ours': (dict(type='InfoBatchEpochBasedTrainLoop', max_epochs=8), MEAN),
    'iters': (dict(type='InfoBatchIterBasedTrainLoop', max_iters=50), MEAN),
    'a_tick': (dict(type='InfoBatchIterBasedTrainLoop', max_iters=49), HALF),
}


@pytest.mark.parametrize('counts', [2, 5, 7, 100])
@pytest.mark.parametrize('loop, policy', RUNS.values(), ids=RUNS)
def test_every_step_is_along_the_mean_gradient(tmp_path, loop, policy, counts):
    wrapper = dict(type='MeanCheckingOptimWrapper', accumulative_counts=counts)
    cfg = light.config(
        tmp_path,
        loop,
        samples=24,
        policy=policy,
        delta=1.0,
        pacing='fewer_steps',
        optim_wrapper=wrapper,
    )
    runner = toys.train(cfg)
    full, rest = divmod(runner.iter, counts)
    sizes = [counts] * full + [rest] * (rest > 0)
    assert runner.optim_wrapper.group_sizes == sizes
    assert runner.iter < toys.hook_of(runner).clock.budget


def test_schedulers_by_epoch_go_as_in_the_stock_run(tmp_path):
    (stock, full), (pruned, less) = (
        run(tmp_path / str(on), pruned=on) for on in (False, True)
    )
    assert less.rates == full.rates and len(full.rates) == EPOCHS
    assert pruned.optim_wrapper.get_lr() == stock.optim_wrapper.get_lr()
    assert (pruned.iter, stock.iter) == (ITERS, BUDGET)


@pytest.fixture
def scaler_on_cpu(monkeypatch):
    """Let ``AmpOptimWrapper`` run, with PyTorch's own scaler of the CPU."""
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    scaler = partial(torch.amp.GradScaler, 'cpu')
    monkeypatch.setattr(f'{module}.is_cuda_available', lambda: True)
    monkeypatch.setattr(f'{module}.GradScaler', scaler)


def train_scaled(work_dir, accumulative_counts=1, score=None, **scaler):
    cfg = toys.config(work_dir)
    cfg.custom_hooks[0].score = score or 'image_mean'
    cfg.optim_wrapper.update(accumulative_counts=accumulative_counts)
    if scaler:
        cfg.optim_wrapper.update(
            type='AmpOptimWrapper', dtype='bfloat16', loss_scale=scaler
        )
    else:
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'
    return toys.train(cfg)


@pytest.mark.parametrize('score', ['image_mean', 'gradient_norm'])
@pytest.mark.parametrize('counts', [1, 3])
def test_scaling_the_loss_changes_nothing(
    tmp_path, scaler_on_cpu, counts, score
):
    scaled, plain = (
        train_scaled(tmp_path / str(len(scaler)), counts, score, **scaler)
        for scaler in (dict(init_scale=1024.0, growth_interval=7), {})
    )
    assert scaled.optim_wrapper.loss_scaler.get_scale() > 1024.0  # it is on
    ours, theirs = (toys.hook_of(each).board for each in (scaled, plain))
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=0)
    torch.testing.assert_close(
        scaled.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0
    )


def test_a_step_that_the_scaler_skips(tmp_path, scaler_on_cpu):
    """The loss is finite, its scaled gradient is not: the round goes on."""
    runner = train_scaled(tmp_path, init_scale=2.0**127)
    assert runner.optim_wrapper.loss_scaler.get_scale() < 2.0**127
    hook = toys.hook_of(runner)
    assert hook.samples_seen < hook.samples_budget
    assert hook.board.scores.isfinite().all()
    assert hook.clock.now == hook.clock.budget
    assert runner.iter == runner.max_iters
