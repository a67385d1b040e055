"""The segmentation configs that are shipped, read, built and run."""

import json
import re
import subprocess
import sys
import textwrap
from importlib import util
from pathlib import Path
from typing import Any

import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import Tensor

from infobatch_mm import enable
from infobatch_mm.clock import FullDataClock
from infobatch_mm.commands.train import load_config, parse_args
from infobatch_mm.host.packages import alias_config_bases
from infobatch_mm.pruning.registry import build_policy
from infobatch_mm.records import read_rounds

CONFIGS = Path(__file__).parents[1] / 'configs' / 'ade20k'
IMAGES, BATCH = 20210, 16
STEMS = (
    'upernet_r50_4xb4-160k_ade20k-512x512',
    'segformer_mit-b0_8xb2-160k_ade20k-512x512',
    'mask2former_r50_8xb2-160k_ade20k-512x512',
)
SAMPLE = CONFIGS / (
    'infobatch-quantile_upernet_r50_1xb2-sample_ade20k-512x512.py'
)
OVERLAYS = [CONFIGS / f'infobatch_{stem}.py' for stem in STEMS]
# With a stock config before it, as configs/README.md has it.
QUANTILES = ['--infobatch-options', 'policy.type=QuantilePolicy']
HAS_MMDET = util.find_spec('mmdet') is not None


def load(path: Any) -> Config:
    """Read a config; without mmdet, one that imports it is still read."""
    alias_config_bases()
    needs_mmdet = 'mask2former' in str(path)
    return Config.fromfile(
        path, import_custom_modules=HAS_MMDET or not needs_mmdet
    )


def without_downloads(config: Any) -> Any:
    """Drop from a model config all that would fetch weights."""
    if isinstance(config, list):
        return [without_downloads(item) for item in config]
    if not isinstance(config, dict):
        return config
    return ConfigDict(
        {
            key: without_downloads(value)
            for key, value in config.items()
            if key not in ('init_cfg', 'pretrained')
        }
    )


def test_all_files_are_tested():
    assert sorted(CONFIGS.glob('*.py')) == sorted([*OVERLAYS, SAMPLE])


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_overlay_is_what_enable_makes_of_its_stock_base(path, tmp_path):
    stem = path.stem.split('_', 1)[1]
    # Through a base, as the overlays, so that mmengine adds the same scopes.
    stock_path = tmp_path / f'{stem}.py'
    base = f'mmseg::{stem.split("_")[0]}/{stem}.py'
    stock_path.write_text(f'_base_ = {base!r}\n')
    found = load(path).to_dict()
    [hook] = found['custom_hooks']
    options = {key: hook[key] for key in hook if key != 'type'}
    assert options['delta'] == 0.875
    expected = enable(load(stock_path), **options).to_dict()
    # The overlays leave out the scope that mmengine adds to a base, and a
    # default, and spell another default out.
    kind = 'infobatch_mm.InfoBatchSampler'
    expected['train_dataloader']['sampler'] = dict(type=kind)
    expected['custom_imports'].setdefault('allow_failed_imports', False)
    assert found == expected


@pytest.mark.parametrize(
    'path', [*OVERLAYS, SAMPLE], ids=lambda path: path.stem
)
def test_overlay_builds_its_model(path):
    if 'mask2former' in path.stem and not HAS_MMDET:
        pytest.skip('needs mmdet, which this family does not have')
    config = load(path)
    init_default_scope(config.default_scope)
    model = MODELS.build(without_downloads(config.model))
    assert model.decode_head.num_classes == 150


def test_sample_uses_what_one_process_has_without_a_network():
    text = str(load(SAMPLE).model)
    assert 'SyncBN' not in text
    assert 'open-mmlab://' not in text


# The numbers in the headers


def count_iters(config: Config, losses: Tensor, batch: int) -> int:
    """Return the iterations of a run whose losses never change."""
    [hook] = config.custom_hooks
    policy = build_policy(hook.policy, hook.get('delta', 0.875))
    budget = config.train_cfg.max_iters
    clock = FullDataClock(budget, len(losses) // batch)
    scores = torch.full_like(losses, torch.nan)
    generator = torch.Generator().manual_seed(0)
    iters = rounds = 0
    while not clock.done:
        plan = policy.plan(
            scores,
            generator=generator,
            multiple_of=batch,
            progress=clock.progress,
        ).trimmed(batch)
        clock.begin_round(len(plan) // batch)
        for _ in range(clock.iters_left_in_round):
            clock.tick()
            iters += 1
        clock.end_round(rounds)
        rounds += 1
        scores[plan.indices] = losses[plan.indices]
    return iters


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_header_tells_the_iterations(path):
    config = load(path)
    # 60 % lie below the mean
    losses = (torch.arange(IMAGES) / IMAGES >= 0.6).float()
    budget = config.train_cfg.max_iters
    iters = count_iters(config, losses, BATCH)
    header = ' '.join(
        re.match('"""(.*?)"""', path.read_text(), re.S)[1].split()
    )
    saved = f'{100 * (1 - iters / budget):.1f} %'
    assert f'{budget:,} iterations of 16 images' in header
    assert f'{iters:,} iterations and saves {saved}' in header


@pytest.mark.parametrize('stem', STEMS)
def test_quantiles_are_one_option_on_the_stock_config(stem, tmp_path):
    if 'mask2former' in stem and not HAS_MMDET:
        pytest.skip('needs mmdet, which this family does not have')
    name = f'mmseg::{stem.split("_")[0]}/{stem}.py'
    args = parse_args([name, '--work-dir', str(tmp_path), *QUANTILES])
    config = load_config(args)
    iters = count_iters(config, torch.arange(IMAGES) / IMAGES, BATCH)
    assert iters == 0.5875 * config.train_cfg.max_iters
    page = Path(__file__).parents[1] / 'docs' / 'ade20k.md'
    assert f'{iters:,} (41.25 %)' in page.read_text()
    [hook], [sample] = config.custom_hooks, load(SAMPLE).custom_hooks
    policy, other = (
        build_policy(h.policy, h.get('delta', 0.875)) for h in (hook, sample)
    )
    assert repr(policy) == repr(other)


def test_the_readme_has_that_option():
    text = (CONFIGS.parent / 'README.md').read_text()
    assert f'{STEMS[0]}.py {" ".join(QUANTILES)}' in text


def test_header_of_the_sample_tells_the_iterations():
    config = load(SAMPLE)
    assert config.train_cfg.max_iters == 32
    assert count_iters(config, torch.arange(8.0), 2) == 26


# configs/camvid

CAMVID = Path(__file__).parents[1] / 'configs' / 'camvid'


@pytest.mark.parametrize('schedule', ['50e', '4k'])
def test_overlay_is_what_enable_makes_of_its_stock_twin(schedule):
    name = f'upernet_r18_1xb4-{schedule}_camvid-120x160.py'
    stock = Config.fromfile(CAMVID / name)
    found = Config.fromfile(CAMVID / f'infobatch_{name}').to_dict()
    [hook] = found['custom_hooks']
    options = {key: hook[key] for key in hook if key != 'type'}
    expected = enable(stock, **options).to_dict()
    # The overlays leave defaults out, and mmengine's own loop by epochs in.
    kind = 'infobatch_mm.InfoBatchSampler'
    expected['train_dataloader']['sampler'] = dict(type=kind)
    expected['custom_imports']['allow_failed_imports'] = False
    if schedule == '50e':
        expected['train_cfg'] = stock.train_cfg.to_dict()
    assert found == expected


# Short real runs from the command line

REPO = CONFIGS.parents[1]
TRAIN = REPO / 'tools/train.py'
MMSEG_TRAIN = Path(mmseg.__file__).parent / '.mim/tools/train.py'
ARCHIVE = REPO.parent / 'shared/data/camvid_120x160.tar'
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
            PYTHONPATH=str(REPO), PATH='/usr/bin:/bin', OMP_NUM_THREADS='1'
        ),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check_run(work_dir, total):
    """It pruned, improved mIoU and wrote the files of the contract."""
    summary = json.loads((work_dir / 'infobatch_summary.json').read_text())
    assert list(summary) == CONTRACT + WITH_METRIC
    assert summary['total'] == total
    assert summary['samples_seen'] < summary['samples_budget']
    assert summary['iters_run'] == summary['iters_budget']
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
    (config,) = (REPO / 'configs/quickstart').glob('infobatch_*.py')
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
    check_run(tmp_path / 'run', 256)


@pytest.mark.skipif(
    not ARCHIVE.exists(), reason='the CamVid archive is not in ../shared/data'
)
def test_camvid(tmp_path):
    command(REPO / 'tools/prepare_data.py', 'camvid', ARCHIVE, cwd=tmp_path)
    config = next(CAMVID.glob('infobatch_*4k*.py'))
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
    check_run(tmp_path / 'run', limit)


def test_the_configs_of_the_page_on_own_data_train(tmp_path):
    page = (REPO / 'docs/own_data.md').read_text()
    configs = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    for name, text in zip(('my_config', 'my_trial'), configs, strict=True):
        (tmp_path / f'{name}.py').write_text(textwrap.dedent(text))
    generator = np.random.default_rng(0)
    for part, count in dict(training=40, validation=2).items():
        for number in range(count):
            names = (
                f'images/{part}/{number}.jpg',
                f'annotations/{part}/{number}.png',
            )
            for name, shape in zip(
                names, [(40, 60, 3), (40, 60)], strict=True
            ):
                path = tmp_path / 'data/mine' / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(4, size=shape, dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    options = ['train_cfg.max_iters=15', 'train_cfg.val_interval=15']
    argv = ['my_trial.py', '--infobatch', '--work-dir', 'trial']
    command(TRAIN, *argv, '--cfg-options', *options, cwd=tmp_path)
    rounds = read_rounds(tmp_path / 'trial')
    assert rounds[0]['kept'] == 40 and min(r['kept'] for r in rounds) < 40
    summary = json.loads(
        (tmp_path / 'trial/infobatch_summary.json').read_text()
    )
    assert summary['metric'] == 'mIoU'
