"""Only the training step weights and records; hooks see stock heads."""

import json
from copy import deepcopy

import light
import pytest
import torch
import toys
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import EpochBasedTrainLoop

LOOPS = dict(
    epochs=dict(type='EpochBasedTrainLoop', max_epochs=3),
    iters=dict(type='InfoBatchIterBasedTrainLoop', max_iters=18),
)


@HOOKS.register_module()
class Onlooker(Hook):
    """Compute losses of other data around each step, in many ways."""

    def __init__(self, size, mode):
        self.size, self.mode = size, mode
        self.losses = []

    def before_train(self, runner):
        self.data = DATASETS.build(dict(type='LightData', size=9))

    def look(self, runner):
        model, ledger = runner.model, toys.hook_of(runner).ledger
        batch = pseudo_collate([self.data[i] for i in range(self.size)])
        before = ledger.losses
        model.train(self.mode == 'train')
        self.losses.append(sum(model(**batch, mode='loss').values()).item())
        model.train()
        assert ledger.losses is before

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.look(runner)

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        self.look(runner)


@HOOKS.register_module()
class Copier(Hook):
    """Copy the model where its train_step is bracketed."""

    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        twin = deepcopy(runner.model)
        before = deepcopy(runner.model.state_dict())
        optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
        wrapper = type(runner.optim_wrapper)(optimizer)
        twin.train_step(data_batch, optim_wrapper=wrapper)
        assert not torch.equal(twin.head.fc.weight, before['head.fc.weight'])
        torch.testing.assert_close(
            runner.model.state_dict(), before, rtol=0, atol=0
        )
        assert toys.hook_of(runner).ledger.losses is None


def run(work_dir, loop, *hooks):
    """Return a run's scores, weights and plans."""
    cfg = light.config(work_dir, loop, samples=24)
    cfg.custom_hooks += hooks
    runner = toys.train(cfg)
    with open(work_dir / 'infobatch.jsonl') as file:
        plans = [json.loads(line)['digest'] for line in file]
    scores = toys.hook_of(runner).board.scores
    return scores, runner.model.state_dict(), plans, runner


def check_same(found, expected):
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)
    assert found[2] == expected[2]


@pytest.mark.parametrize(
    'loop, size, mode, priority',
    [
        ('epochs', 4, 'train', 'VERY_HIGH'),
        ('epochs', 1, 'eval', 'LOWEST'),
        ('iters', 7, 'eval', 'NORMAL'),
        ('iters', 4, 'train', 'LOWEST'),
    ],
)
def test_a_loss_of_a_hook_is_a_stock_one(tmp_path, loop, size, mode, priority):
    onlooker = dict(type='Onlooker', size=size, mode=mode, priority=priority)
    *expected, _ = run(tmp_path / 'alone', LOOPS[loop])
    *found, runner = run(tmp_path / 'watched', LOOPS[loop], onlooker)
    check_same(found, expected)
    (hook,) = (h for h in runner.hooks if isinstance(h, Onlooker))
    assert len(hook.losses) == 2 * runner.iter and min(hook.losses) > 0


def test_a_copy_of_the_model_trains_itself(tmp_path):
    loop = LOOPS['epochs']
    *expected, _ = run(tmp_path / 'alone', loop)
    *found, runner = run(tmp_path / 'copied', loop, dict(type='Copier'))
    check_same(found, expected)
    assert 'train_step' not in vars(runner.model)


@HOOKS.register_module()
class OtherStep(Hook):
    """Train on other data before each step, as by a second data loader."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.data = DATASETS.build(dict(type='LightData', size=9))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        batch = pseudo_collate([self.data[i] for i in range(3)])
        runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        assert toys.hook_of(runner).ledger.losses is None


def test_a_step_on_other_data_is_a_stock_one(tmp_path):
    scores, _, plans, runner = run(
        tmp_path, LOOPS['epochs'], dict(type='OtherStep')
    )
    assert scores.isfinite().all() and len(plans) == 3


def test_a_loop_that_goes_around_train_step_is_an_error(tmp_path, monkeypatch):
    """Its heads would be stock heads, and nothing would be weighted."""

    def run_iter(self, idx, data_batch):
        self.runner.call_hook(
            'before_train_iter', batch_idx=0, data_batch=data_batch
        )
        losses = self.runner.model(**data_batch, mode='loss')
        self.runner.optim_wrapper.update_params(sum(losses.values()))
        self.runner.call_hook(
            'after_train_iter', batch_idx=0, data_batch=data_batch
        )

    monkeypatch.setattr(EpochBasedTrainLoop, 'run_iter', run_iter)
    with pytest.raises(RuntimeError, match='train_step'):
        run(tmp_path, LOOPS['epochs'])
