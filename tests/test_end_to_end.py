"""Short real runs of the configs that are shipped, from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import mmseg
import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / 'tools/train.py'
MMSEG_TRAIN = Path(mmseg.__file__).parent / '.mim/tools/train.py'
CAMVID = ROOT.parent / 'shared/data/camvid_120x160.tar'
WITH_METRIC = [
    'train_seconds_budget',
    'metric',
    'metric_last',
    'metric_best',
]
CONTRACT = [
    'policy',
    'total',
    'rounds',
    'samples_budget',
    'samples_seen',
    'saved_ratio',
    'iters_budget',
    'iters_run',
    'train_seconds',
    'overhead_seconds',
]


def command(tool, *args, cwd):
    done = subprocess.run(
        [sys.executable, str(tool), *map(str, args)],
        cwd=cwd,
        env=dict(
            PYTHONPATH=str(ROOT), PATH='/usr/bin:/bin', OMP_NUM_THREADS='1'
        ),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check(work_dir, total):
    """It pruned, improved mIoU and wrote the files of the contract."""
    summary = json.loads((work_dir / 'infobatch_summary.json').read_text())
    assert list(summary) == CONTRACT + WITH_METRIC
    assert summary['total'] == total
    assert summary['samples_seen'] < summary['samples_budget']
    assert summary['iters_run'] < summary['iters_budget']
    lines = (work_dir / 'infobatch.jsonl').read_text().splitlines()
    rounds = [json.loads(line) for line in lines]
    assert len(rounds) == summary['rounds']
    assert sum(r['kept'] for r in rounds) == summary['samples_seen']
    (scalars,) = work_dir.glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    miou = [line['mIoU'] for line in logged if 'mIoU' in line]
    assert miou[-1] > miou[0]


@pytest.mark.parametrize('tool', [TRAIN, MMSEG_TRAIN], ids=['ours', 'mmseg'])
def test_digit_scenes(tmp_path, tool):
    (config,) = (ROOT / 'configs/quickstart').glob('infobatch_*.py')
    command(
        tool,
        config,
        '--work-dir',
        tmp_path / 'run',
        '--cfg-options',
        'train_dataloader.dataset.dataset.num_scenes=256',
        'val_dataloader.dataset.num_scenes=32',
        'train_cfg.max_epochs=6',
        'train_cfg.val_interval=1',
        cwd=tmp_path,
    )
    check(tmp_path / 'run', 256)


@pytest.mark.skipif(
    not CAMVID.exists(), reason='the CamVid archive is not in ../shared/data'
)
def test_camvid(tmp_path):
    command(ROOT / 'tools/prepare_data.py', 'camvid', CAMVID, cwd=tmp_path)
    config = next((ROOT / 'configs/camvid').glob('infobatch_*4k*.py'))
    limit = Config.fromfile(config).train_dataloader.batch_size * 10
    command(
        TRAIN,
        config,
        '--work-dir',
        tmp_path / 'run',
        '--cfg-options',
        f'train_dataloader.dataset.dataset.indices={limit}',
        'val_dataloader.dataset.indices=8',
        'train_cfg.max_iters=80',
        'train_cfg.val_interval=20',
        cwd=tmp_path,
    )
    check(tmp_path / 'run', limit)
