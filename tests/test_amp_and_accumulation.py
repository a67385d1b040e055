"""Pruned runs under mixed precision and with accumulated gradients."""

from contextlib import contextmanager

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


@pytest.mark.filterwarnings('ignore:.*GradScaler:UserWarning')
@pytest.mark.filterwarnings('ignore:.*GradScaler:FutureWarning')
def test_the_amp_wrapper_itself(tmp_path, monkeypatch):
    """With its scaler disabled: it asks for a GPU, which is feigned."""
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    monkeypatch.setattr(f'{module}.is_cuda_available', lambda: True)
    cfg = toys.config(tmp_path)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    runner = toys.train(cfg)
    assert type(runner.optim_wrapper).__name__ == 'AmpOptimWrapper'
    hook = toys.hook_of(runner)
    assert hook.samples_seen < hook.samples_budget
    assert hook.board.scores.isfinite().all()
    assert runner.iter == runner.max_iters
