"""The snippets of docs/ways_in.md for classification."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

pytest.importorskip('mmpretrain')
import cls_toys
import mmpretrain
from snippets import snippets

from infobatch_mm import InfoBatchEpochBasedTrainLoop, enable
from infobatch_mm.config import prune_loop

MIM = Path(mmpretrain.__file__).parent / '.mim'
SCHEDULES = sorted((MIM / 'configs/_base_/schedules').glob('*.py'))
COMMAND = 'A command line for every stock config'
REPO = Path(__file__).parents[1]


@pytest.fixture
def stock(tmp_path):
    """Write a stock config with a hook and an import of its own."""
    cfg = cls_toys.config(tmp_path / 'run', pruned=False)
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.custom_imports = dict(imports=['cls_toys'])
    cfg.dump(tmp_path / 'stock.py')
    return tmp_path / 'stock.py'


def digests(folder):
    lines = Path(folder, 'infobatch.jsonl').read_text().splitlines()
    return [json.loads(line)['digest'] for line in lines]


def expected(stock, **options):
    cfg = enable(Config.fromfile(stock), **options)
    cfg.work_dir = str(stock.with_name('expected'))
    cfg.visualizer.name = f'expected_{next(cls_toys.NUMBERS)}'
    cfg.experiment_name = cfg.visualizer.name
    Runner.from_cfg(cfg).train()
    return digests(cfg.work_dir)


def test_the_command_line_of_mmpretrain(stock):
    line = snippets('ways_in.md', 'sh', COMMAND)[1]
    paths = f'{REPO}{os.pathsep}{REPO / "tests/helpers"}'
    tool = MIM / 'tools/train.py'
    flags = ['--no-persistent-workers', '--no-pin-memory']
    done = subprocess.run(
        [sys.executable, tool, stock, *flags, *shlex.split(line)],
        env=os.environ | dict(PYTHONPATH=paths, OMP_NUM_THREADS='1'),
        cwd=stock.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    options = dict(delta=0.9, policy=dict(prune_ratio=0.7))
    assert digests(stock.with_name('run')) == expected(stock, **options)


def test_components(stock):
    (snippet,) = [
        text
        for text in snippets('ways_in.md', 'python', 'Components')
        if 'WeightedClsHead' in text
    ]
    child = stock.with_name('child.py')
    child.write_text(snippet)
    runner = Runner.from_cfg(Config.fromfile(child))
    runner.train()
    assert 'EMAHook' in [type(hook).__name__ for hook in runner.hooks]
    assert digests(stock.with_name('run')) == expected(stock)


# What the schedules of mmpretrain name their loop by


def test_most_schedules_name_no_type():
    classic = [
        path.stem
        for path in SCHEDULES
        if 'type' not in Config.fromfile(path).train_cfg
    ]
    assert len(classic) > len(SCHEDULES) / 2


@pytest.mark.parametrize('path', SCHEDULES, ids=lambda path: path.stem)
def test_the_loop_of_a_schedule(path):
    train_cfg = Config.fromfile(path).train_cfg.to_dict()
    pruned = prune_loop(train_cfg, 'mmpretrain')
    by_epoch = train_cfg.pop('by_epoch', None)
    stock = train_cfg.pop('type', 'EpochBasedTrainLoop')
    assert by_epoch is not False
    assert pruned == train_cfg | dict(type=f'infobatch_mm.InfoBatch{stock}')


def test_a_run_by_the_hook_builds_its_loop(stock):
    cfg = Config.fromfile(stock)
    kind = 'infobatch_mm.override.PruneHook'
    cfg.merge_from_dict({'default_hooks.infobatch.type': kind})
    assert cfg.train_cfg == dict(by_epoch=True, max_epochs=4)
    loop = Runner.from_cfg(cfg).train_loop
    assert isinstance(loop, InfoBatchEpochBasedTrainLoop)
    assert loop.max_epochs == 4
