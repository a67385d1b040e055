"""A small study, run to the end: cells, their results, and going on."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infobatch_mm.compare import arms, running
from infobatch_mm.compare.arms import ALL_DATA, Arm
from infobatch_mm.compare.cells import (
    Study,
    budget_of,
    check_same,
    order,
)
from infobatch_mm.compare.pictures import draw
from infobatch_mm.compare.setup import Setup

ROOT = Path(__file__).parents[1]


def small_study(folder):
    setup = Setup(
        ROOT / 'benchmarks/configs/digits.py',
        'mIoU',
        options={
            'train_dataloader.dataset.num_scenes': 64,
            'train_dataloader.batch_size': 8,
            'val_dataloader.dataset.num_scenes': 8,
            'train_cfg.max_iters': 40,
            'train_cfg.val_interval': 16,
            'default_hooks.checkpoint.interval': 4,
        },
    )
    return Study(
        'small',
        setup,
        arms.core(),
        results=folder / 'small.jsonl',
        work_dir=folder / 'runs',
        train=(sys.executable, str(ROOT / 'tools/train.py')),
        env=dict(OMP_NUM_THREADS='1', PYTHONPATH=f'{folder}:{ROOT}'),
    )


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """A study of which three cells, all of seed 3, are finished."""
    study = small_study(tmp_path_factory.mktemp('study'))
    cells = order(study, [study.cell(arm, 3) for arm in ('full', 'short')])
    ended = dict(running.run_all(study, cells, jobs=2))
    assert {cell.arm for cell in ended} == {'infobatch', 'full', 'short'}
    assert list(ended)[-1].arm == 'short'
    return study


@pytest.fixture(scope='module')
def cells(study):
    return {arm: runs[3] for arm, runs in study.finished().items()}


def rounds_of(study, cell):
    path = study.work_dir / cell / 'infobatch.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_cells_hold_costs_and_metrics(study, cells):
    assert list(cells) == ['infobatch', 'full', 'short']
    full, pruned = cells['full'], cells['infobatch']
    assert full['samples_seen'] == full['samples_budget'] == 320
    assert full['iters'] == 40 and full['rounds'] == []
    rounds = rounds_of(study, 'infobatch-s3')
    assert pruned['samples_seen'] == sum(r['kept'] for r in rounds) < 320
    assert [r['kept'] for r in pruned['rounds']] == [r['kept'] for r in rounds]
    assert cells['short']['iters'] == pruned['iters']
    for cell in cells.values():
        assert cell['value'] == cell['validations'][-1]['mIoU']
        assert 'IoU/background' in cell['validations'][-1]
        assert cell['train_seconds'] > 0 and cell['cpu_seconds'] > 0


def test_mean_iou_is_that_of_the_classes(cells):
    for val in cells['full']['validations']:
        iou = [v for name, v in val.items() if name.startswith('IoU/')]
        assert val['mIoU'] == pytest.approx(np.nanmean(iou), abs=0.006)


def test_a_cell_of_another_config_is_refused(study, cells):
    ours = [study.cell('full', 3), study.cell('full', 4)]
    check_same(study, ours, study.finished())
    options = {**study.setup.options, 'train_cfg.max_iters': 48}
    other = replace(study, setup=study.setup._replace(options=options))
    with pytest.raises(ValueError, match='full-s3 in .* by another config'):
        check_same(other, ours, other.finished())


def test_a_metric_that_was_not_measured_is_named(study, cells):
    other = replace(study, setup=study.setup._replace(metric='mDice'))
    with pytest.raises(ValueError, match="'mDice' is not among .* mIoU"):
        running.read_run(other, study.cell('full', 3), None)


def test_a_study_of_one_seed_is_drawn(study, cells, tmp_path):
    assert draw(study.finished(), 'small', tmp_path / 'small.png').exists()


STOP_HOOK = """
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class StopHook(Hook):
    priority = 'LOWEST'

    def after_train_iter(self, runner, *args, **kwargs):
        stopped = Path(runner.work_dir) / 'stopped'
        if runner.iter + 1 == 20 and not stopped.exists():
            stopped.touch()
            raise SystemExit(9)
"""


def test_a_cell_that_was_cut_off_goes_on(tmp_path):
    """As if killed after a checkpoint: a start that ends at iteration 20."""

    def change(cfg, budget, seed):
        cfg = arms.infobatch().change(cfg, budget, seed)
        cfg.custom_hooks.append(dict(type='StopHook'))
        cfg.custom_imports.imports.append('stop_hook')
        return cfg

    (tmp_path / 'stop_hook.py').write_text(STOP_HOOK)
    study = replace(small_study(tmp_path), arms=dict(infobatch=Arm(change)))
    cell = study.cell('infobatch', 4)
    ((_, error),) = running.run_all(study, [cell], jobs=1)
    assert isinstance(error, RuntimeError) and 'run.log' in str(error)
    assert study.finished() == {}
    result = running.run(study, cell, ALL_DATA)
    assert result['starts'] == 2
    rounds = rounds_of(study, cell.name)
    assert result['samples_seen'] == sum(r['kept'] for r in rounds)


# Without training


def test_an_arm_waits_for_what_it_needs(tmp_path):
    study = small_study(tmp_path)
    cells = order(study, [study.cell('short', 1), study.cell('full', 0)])
    assert [cell.name for cell in cells] == [
        'full-s0',
        'infobatch-s1',
        'short-s1',
    ]


def test_what_needs_a_failed_cell_is_not_run(tmp_path, monkeypatch):
    def run(study, cell, budget):
        raise RuntimeError(f'{cell.name} failed')

    monkeypatch.setattr(running, 'run', run)
    study = small_study(tmp_path)
    cells = order(study, [study.cell('short', 1), study.cell('full', 1)])
    ended = running.run_all(study, cells, jobs=2)
    assert {cell.arm for cell, _ in ended} == {'infobatch', 'full'}
    assert not study.results.exists()


def test_the_remainder_of_a_full_round_is_not_pruned():
    rounds = [  # scored, pruned, annealed
        dict(kept=364, total=367, variance_ratio=0.0),
        dict(kept=252, total=367, variance_ratio=0.4),
        dict(kept=260, total=367, variance_ratio=0.4),
        dict(kept=364, total=367, variance_ratio=0.0),
    ]
    result = dict(samples_seen=1240, samples_budget=1456, rounds=rounds)
    budget = budget_of(result)
    assert budget.prune_ratio == pytest.approx(1 - 256 / 367)
    assert budget.share == pytest.approx(1240 / 1456)
