"""What goes wrong in long runs has a defined end, and loses nothing."""

import os
from functools import partial

import light
import pytest
import torch
import toys
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from processes import Child
from torch.utils.data import get_worker_info

EPOCHS = dict(type='InfoBatchEpochBasedTrainLoop', max_epochs=6)
ITERS = dict(type='InfoBatchIterBasedTrainLoop', max_iters=40)
LOOPS = pytest.mark.parametrize('loop', [EPOCHS, ITERS], ids=['epoch', 'iter'])
SAVES = dict(checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=1))


@DATASETS.register_module()
class DeadlyData(light.LightData):
    """Data that kills its worker when a file says so."""

    def __init__(self, flag: str, **kwargs) -> None:
        self.flag = flag
        super().__init__(**kwargs)

    def prepare_data(self, idx: int) -> dict:
        if os.path.exists(self.flag) and get_worker_info() is not None:
            os._exit(1)
        return super().prepare_data(idx)


def train_until_the_worker_dies(make_config, flag, progress):
    """Train; exit with success only if the death of the worker is reported."""
    runner = toys.Runner.from_cfg(make_config())

    class Poison(Hook):
        def after_train_iter(self, runner, batch_idx, **kwargs):
            if runner.iter == 9:
                flag.touch()

    runner.register_hook(Poison())
    # torch's own, or that of the queue on which it was being read.
    with pytest.raises((RuntimeError, OSError, EOFError)):
        runner.train()
    assert 9 < runner.iter < runner.max_iters


# In a process of its own: torch raises the error from a signal handler, so
# in whatever line Python is at when the worker dies, pytest's own included.
@LOOPS
def test_a_worker_that_dies(tmp_path, loop):
    flag = tmp_path / 'die'
    data = dict(type='DeadlyData', flag=str(flag))
    make_config = partial(
        light.config,
        tmp_path,
        loop,
        workers=1,
        default_hooks=SAVES,
        train_dataloader=dict(dataset=dict(dataset=data)),
    )
    child = Child(train_until_the_worker_dies, make_config, flag)
    assert child.join(timeout=300) == 0
    saved = (tmp_path / 'last_checkpoint').read_text()
    assert torch.load(saved, weights_only=False)['infobatch']['round'] >= 1
    flag.unlink()
    cfg = make_config()
    cfg.resume = True
    assert toys.hook_of(toys.train(cfg)).clock.done


@LOOPS
def test_an_empty_data_set(tmp_path, loop):
    with pytest.raises(ValueError, match=r'\b0 samples'):
        toys.train(light.config(tmp_path, loop, samples=0))


def test_no_batch_because_of_drop_last(tmp_path):
    cfg = light.config(
        tmp_path, EPOCHS, samples=3, train_dataloader=dict(drop_last=True)
    )
    with pytest.raises(ValueError, match='no batch.*3 samples.*drop_last'):
        toys.train(cfg)


@LOOPS
@pytest.mark.parametrize('samples', [4, 5, 7, 9])
def test_tiny_data_sets(tmp_path, loop, samples):
    runner = toys.train(light.config(tmp_path, loop, samples=samples))
    hook = toys.hook_of(runner)
    assert hook.clock.done
    assert hook.samples_seen <= hook.samples_budget


@LOOPS
def test_all_losses_nan(tmp_path, loop):
    nans = dict(nan_at=tuple(range(26)))
    cfg = light.config(
        tmp_path, loop, train_dataloader=dict(dataset=dict(dataset=nans))
    )
    hook = toys.hook_of(toys.train(cfg))
    assert hook.board.scores.isnan().all()
    assert hook.samples_seen == hook.samples_budget


def test_samples_without_data_samples(tmp_path):
    indexed = toys.DATASETS.build(
        dict(type='IndexedDataset', dataset=toys.scenes(2, pipeline=[]))
    )
    with pytest.raises(TypeError, match='data_samples.*DigitScenes'):
        indexed[0]


def test_a_state_of_another_version(tmp_path):
    cfg = light.config(tmp_path, ITERS, default_hooks=SAVES)
    toys.train(cfg)
    name = (tmp_path / 'last_checkpoint').read_text()
    checkpoint = torch.load(name, weights_only=False)
    checkpoint['infobatch']['version'] = 99
    torch.save(checkpoint, name)
    cfg = light.config(tmp_path, ITERS, default_hooks=SAVES)
    cfg.resume = True
    with pytest.raises(ValueError, match='version 99'):
        toys.train(cfg)
