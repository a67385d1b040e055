"""plot_clock.py: iterations of a pruned run, placed on the clock."""

import sys
from pathlib import Path

import numpy as np
import pytest
import toys
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image
from test_read_run import config

sys.path.append(str(Path(__file__).parents[1] / 'benchmarks'))
import plot_clock


@HOOKS.register_module()
class ClockWitness(Hook):
    """Note the tick after each iteration."""

    priority = 'VERY_LOW'

    def before_train(self, runner):
        self.ticks = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.ticks.append(toys.hook_of(runner).clock.now)


@pytest.fixture(scope='module')
def twins(tmp_path_factory):
    """Return the work directories of two runs, and the ticks of the pruned."""
    folders = []
    for pruned in (False, True):
        folders.append(tmp_path_factory.mktemp('run'))
        # 45 is not a whole number of the passes, which are of six.
        cfg = config(folders[-1], pruned=pruned, iters=45)
        if pruned:
            cfg.custom_hooks.append(dict(type='ClockWitness'))
        runner = toys.train(cfg)
        if pruned:
            [ticks] = (
                h.ticks for h in runner.hooks if isinstance(h, ClockWitness)
            )
    return *folders, ticks


def test_iterations_are_placed_within_a_tick(twins):
    _, pruned, ticks = twins
    assert len(ticks) < ticks[-1] == 45, 'nothing was pruned'
    found = plot_clock.ticks_of(np.arange(1, len(ticks) + 1), pruned)
    # A pruned iteration passes more than one tick: the clock rounds down.
    assert (abs(found - ticks) < 1 + 1e-9).all()
    assert found[-1] == 45


def test_picture(twins, tmp_path, monkeypatch):
    stock, pruned, _ = twins
    out = tmp_path / 'clock.png'
    monkeypatch.setattr(sys, 'argv', ['', str(stock), str(pruned), str(out)])
    plot_clock.main()
    with Image.open(out) as image:
        assert image.size == (1000, 400)


def test_run_that_was_not_pruned_is_named(twins):
    stock, _, _ = twins
    with pytest.raises(FileNotFoundError, match='infobatch_summary'):
        plot_clock.ticks_of(np.arange(3), stock)
