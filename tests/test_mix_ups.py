"""Runs that are mistaken for each other: on resume, and in a work dir."""

import itertools
import json
import time

import light
import pytest
import toys
from mmengine.hooks import Hook
from mmengine.runner import Runner

from infobatch_mm.commands import train
from infobatch_mm.report import runs

EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=8)


class Stop(Hook):
    """Cut a run off at an iteration, or end it early after an epoch."""

    def __init__(self, iters=None, epochs=None):
        self.iters, self.epochs = iters, epochs

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.iters:
            raise KeyboardInterrupt

    def after_train_epoch(self, runner):
        if runner.epoch + 1 == self.epochs:
            runner.train_loop.stop_training = True


def config_file(folder, *, pruned):
    """Write a config of the light run, for the command line."""
    cfg = light.config(
        folder / 'run',
        EPOCHS,
        pruned=pruned,
        default_hooks=dict(checkpoint=dict(interval=2)),
    )
    file = folder / f'{"pruned" if pruned else "stock"}.py'
    cfg.dump(file)
    return file


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    """A pruned run that was stopped within its fourth epoch."""
    folder = tmp_path_factory.mktemp('mix')
    cfg = light.config(
        folder / 'run', EPOCHS, default_hooks=dict(checkpoint=dict(interval=2))
    )
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Stop(iters=20))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    return folder


def test_a_pruned_run_is_not_resumed_without_pruning(stopped, capsys):
    file = config_file(stopped, pruned=False)
    with pytest.raises(SystemExit) as end:
        train.main([str(file), '--resume'])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert 'checkpoint is that of a pruned run' in line
    assert '--resume-unpruned' in line
    file = config_file(stopped, pruned=False)  # another name for the run
    train.main([str(file), '--resume', '--resume-unpruned'])


def test_records_of_another_run_are_kept_and_not_mixed(tmp_path, monkeypatch):
    """A pruned run, a stock run and a pruned run in one work dir."""
    found = []
    # mmengine names the folder of a start after its second.
    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr(time, 'time', lambda: float(next(seconds)))
    for pruned in (True, False, True):
        cfg = toys.config(tmp_path, epochs=3, pruned=pruned, log_level='INFO')
        toys.train(cfg)
        found.append((runs.prunes(tmp_path), len(runs.rounds(tmp_path))))
    assert found == [(True, 3), (False, 0), (True, 3)]
    assert runs.summary(tmp_path) is not None
    kept = (tmp_path / 'infobatch.jsonl.1').read_text().splitlines()
    assert [json.loads(line)['round'] for line in kept] == [0, 1, 2]
    assert (tmp_path / 'infobatch_summary.json.1').exists()


def test_what_an_early_stop_leaves_out_is_not_saved(tmp_path):
    cfg = light.config(tmp_path, dict(EPOCHS, max_epochs=16))
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Stop(epochs=4))
    runner.train()
    summary = json.loads((tmp_path / 'infobatch_summary.json').read_text())
    lines = (tmp_path / 'infobatch.jsonl').read_text().splitlines()
    kept = sum(json.loads(line)['kept'] for line in lines)
    assert len(lines) == 4
    assert summary['samples_budget'] == 4 * 26
    assert summary['samples_seen'] == kept < 4 * 26
    assert summary['saved_ratio'] == pytest.approx(1 - kept / (4 * 26))
