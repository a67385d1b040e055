"""Pruned runs under mixed precision and with accumulated gradients."""

from contextlib import contextmanager
from functools import partial

import light
import pytest
import torch
import toys
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner.amp import autocast

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
