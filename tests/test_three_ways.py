"""The three ways in, and explicit components, make the same run.

Each way is a process of its own, started as a user would start it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import mmseg
import pytest
import toys

from infobatch_mm import enable

REPO = Path(__file__).parents[1]
OUR_TOOL = REPO / 'tools' / 'train.py'
MMSEG_TOOL = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'
OVERRIDE = 'infobatch_mm.override.IterBasedTrainLoop'
RATIO = 0.7
OPTIONS = dict(policy=dict(type='InfoBatchPolicy', prune_ratio=RATIO))


def stock_config(folder, *imports):
    """Return a stock config with validation, by iterations."""
    cfg = toys.config(folder, pruned=False, samples=16)
    toys.make_iter_based(cfg, max_iters=16)
    cfg.custom_imports = dict(imports=['infobatch_mm.digit_scenes', *imports])
    toys.add_validation(cfg, interval=8)
    cfg.log_level = 'INFO'
    cfg.default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
    return cfg


def read(path):
    return list(map(json.loads, path.read_text().splitlines()))


def run(tool, cfg, *arguments):
    """Train in a new process; return plans, losses, mIoU and the log."""
    folder = Path(cfg.work_dir)
    folder.mkdir(parents=True)
    path = folder / 'config.py'
    cfg.dump(path)
    done = subprocess.run(
        [sys.executable, tool, path, *arguments],
        env=os.environ | dict(PYTHONPATH=str(REPO), OMP_NUM_THREADS='1'),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (scalars,) = folder.glob('*/vis_data/scalars.json')
    rounds, lines = read(folder / 'infobatch.jsonl'), read(scalars)
    return (
        [(line['kept'], line['digest']) for line in rounds],
        [line['loss'] for line in lines if 'loss' in line],
        [line['mIoU'] for line in lines if 'mIoU' in line],
    ), done.stderr + done.stdout


@pytest.fixture(scope='module')
def explicit(tmp_path_factory):
    folder = tmp_path_factory.mktemp('explicit') / 'run'
    return run(OUR_TOOL, enable(stock_config(folder), **OPTIONS))[0]


def test_the_run_prunes(explicit):
    rounds, losses, scores = explicit
    assert [kept for kept, _ in rounds][:2] == [16, 12]
    assert len(losses) == sum(kept for kept, _ in rounds) / 4
    assert len(scores) == 2


def test_by_our_tool(explicit, tmp_path):
    result, _ = run(
        OUR_TOOL,
        stock_config(tmp_path / 'run'),
        '--infobatch',
        '--infobatch-options',
        f'policy.prune_ratio={RATIO}',
    )
    assert result == explicit


def test_by_the_registry_under_the_stock_tool(explicit, tmp_path):
    cfg = stock_config(tmp_path / 'run', 'infobatch_mm.override')
    cfg.train_cfg.infobatch = OPTIONS
    result, log = run(MMSEG_TOOL, cfg)
    assert result == explicit
    assert (
        'has taken the train loop over: the train dataloader prunes, and '
        'these heads are weighted: decode_head (UPerHead), auxiliary_head '
        '(FCNHead). Validation and test are untouched'
    ) in log


BY_HOOK = (
    'default_hooks.infobatch.type=infobatch_mm.override.PruneHook',
    f'default_hooks.infobatch.policy.prune_ratio={RATIO}',
)
BY_LOOP = (
    f'train_cfg.type={OVERRIDE}',
    f'train_cfg.infobatch.policy.prune_ratio={RATIO}',
)


@pytest.mark.parametrize('settings', [BY_HOOK, BY_LOOP], ids=['hook', 'loop'])
def test_by_the_command_line_of_the_stock_tool(explicit, settings, tmp_path):
    cfg = stock_config(tmp_path / 'run')
    result, _ = run(MMSEG_TOOL, cfg, '--cfg-options', *settings)
    assert result == explicit
