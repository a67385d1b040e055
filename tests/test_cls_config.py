"""Classification: enable(cfg), the other ways in, and the shipped configs."""

import functools
import json
import os
import shlex
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytest.importorskip('mmpretrain')
import cls_toys
import mmpretrain
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from test_docs import snippets

from infobatch_mm import InfoBatchEpochBasedTrainLoop, InfoBatchHook, enable
from infobatch_mm.commands import train as train_tool
from infobatch_mm.compare.stock import is_higher_better, metric_of, unpruned
from infobatch_mm.config import check_options, prune_loop
from infobatch_mm.heads import WeightedHeadMixin
from infobatch_mm.policies import build_policy

STOCK = dict(
    cifar10='resnet/resnet18_8xb16_cifar10.py',
    multi_label='csra/resnet101-csra_1xb16_voc07-448px.py',
    several_outputs='conformer/conformer-tiny-p16_8xb128_in1k.py',
    batch_augments='swin_transformer/swin-tiny_16xb64_in1k.py',
    margin='arcface/resnet50-arcface_8xb32_inshop.py',
)
PRUNE_HOOK = 'infobatch_mm.override.PruneHook'
HEAD = 'infobatch_mm.WeightedClsHead'
TRAINING = {
    'model',
    'train_dataloader',
    'train_cfg',
    'custom_hooks',
    'custom_imports',
}


@pytest.fixture(params=STOCK.values(), ids=STOCK)
def stock(request):
    return get_config(f'mmpretrain::{request.param}')


def digests(runner):
    rounds = Path(runner.work_dir, 'infobatch.jsonl').read_text()
    return [json.loads(line)['digest'] for line in rounds.splitlines()]


def train(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_only_what_pruning_needs_is_changed(stock):
    before = stock.to_dict()
    cfg = enable(stock, delta=0.9).to_dict()
    assert stock.to_dict() == before
    changed = {k for k in cfg if cfg[k] != before.get(k)}
    assert TRAINING - changed <= {'custom_imports'} and changed <= TRAINING
    loader = before['train_dataloader']
    assert cfg['train_dataloader'] == loader | dict(
        sampler=dict(type='infobatch_mm.InfoBatchSampler', shuffle=True),
        dataset=dict(
            type='infobatch_mm.IndexedDataset', dataset=loader['dataset']
        ),
    )
    kind = 'infobatch_mm.InfoBatchEpochBasedTrainLoop'
    loop = dict(before['train_cfg'], type=kind)
    del loop['by_epoch']
    assert cfg['train_cfg'] == loop
    head = dict(type=HEAD, head=before['model']['head'])
    assert cfg['model'] == before['model'] | dict(head=head)


def test_enabling_twice_is_enabling_once(stock, tmp_path):
    once = enable(stock, delta=0.9)
    assert enable(once).to_dict() == once.to_dict()
    path = tmp_path / 'pruned.py'
    once.dump(path)
    assert Config.fromfile(path).to_dict() == once.to_dict()


def test_repeated_augmentation_is_refused():
    cfg = get_config('mmpretrain::resnet/resnet50_8xb256-rsb-a2-300e_in1k.py')
    with pytest.raises(ValueError, match="sampler.type is 'RepeatAugSampler'"):
        enable(cfg)


@pytest.mark.parametrize(
    'kind', ['mmpretrain.ImageClassifier', ImageClassifier]
)
def test_the_model_says_that_it_is_of_mmpretrain(tmp_path, kind):
    cfg = cls_toys.config(tmp_path, pruned=False)
    cfg.default_scope = 'mmengine'
    cfg._cfg_dict['model']['type'] = kind
    assert enable(cfg).model.head.type == HEAD


def test_a_head_of_another_package_is_an_error(tmp_path):
    cfg = cls_toys.config(tmp_path, pruned=False)
    cfg.default_scope = 'mmpose'
    with pytest.raises(ValueError, match='has none of the heads that can'):
        enable(cfg)


def test_a_classifier_without_a_head_is_an_error(tmp_path):
    cfg = cls_toys.config(tmp_path, pruned=False)
    cfg.model = dict(type='TimmClassifier', model_name='resnet18')
    message = r'\(TimmClassifier\) has none of the heads .*: head\. .*Hook$'
    with pytest.raises(ValueError, match=message):
        enable(cfg)


@pytest.fixture(scope='module')
def explicit(tmp_path_factory):
    cfg = cls_toys.config(tmp_path_factory.mktemp('explicit'))
    cfg.custom_hooks[-1].pop('pacing', None)  # what the environment may ask
    return digests(train(cfg))


def test_an_enabled_run_is_the_explicit_run(explicit, tmp_path):
    stock = cls_toys.config(tmp_path, pruned=False)
    policy = dict(type='InfoBatchPolicy', prune_ratio=0.5)
    assert digests(train(enable(stock, policy=policy))) == explicit
    assert len(set(explicit)) == 4


ASKING = dict(
    by_hook={'default_hooks.infobatch.type': PRUNE_HOOK},
    by_import={'custom_imports.imports': ['infobatch_mm.override']},
)


@pytest.mark.parametrize('asking', ASKING.values(), ids=ASKING)
def test_an_overridden_run_is_the_explicit_run(asking, explicit, tmp_path):
    cfg = cls_toys.config(tmp_path, pruned=False)
    assert 'type' not in cfg.train_cfg  # as mmpretrain's schedules are
    cfg.merge_from_dict(asking)
    runner = train(cfg)
    assert digests(runner) == explicit
    assert sum(isinstance(h, InfoBatchHook) for h in runner.hooks) == 1


def test_a_config_by_name_on_our_command_line(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    args = train_tool.parse_args(
        [f'mmpretrain::{STOCK["cifar10"]}', '--infobatch']
    )
    cfg = train_tool.load_config(args)
    assert cfg.model.head.type == HEAD
    assert cfg.model.head.head.type == 'LinearClsHead'
    assert cfg.train_dataloader.sampler.type == 'infobatch_mm.InfoBatchSampler'
    assert cfg.work_dir == './work_dirs/resnet18_8xb16_cifar10'
    for loader in cfg.train_dataloader, cfg.val_dataloader:
        # What mmpretrain's own tool adds.
        assert loader.persistent_workers
        assert loader.collate_fn == dict(type='default_collate')


def test_a_run_from_our_command_line(tmp_path, explicit):
    cfg = cls_toys.config(tmp_path / 'run', pruned=False)
    del cfg.train_dataloader.collate_fn
    cfg.custom_imports = dict(imports=['cls_toys'])
    cfg.dump(tmp_path / 'config.py')
    train_tool.main([str(tmp_path / 'config.py'), '--infobatch'])
    rounds = (tmp_path / 'run/infobatch.jsonl').read_text().splitlines()
    assert [json.loads(line)['digest'] for line in rounds] == explicit


# The snippets of docs/ways_in.md

MIM = Path(mmpretrain.__file__).parent / '.mim'
SCHEDULES = sorted((MIM / 'configs/_base_/schedules').glob('*.py'))
COMMAND = 'A command line for every stock config'
REPO = Path(__file__).parents[1]


@pytest.fixture
def stock_file(tmp_path):
    """Write a stock config with a hook and an import of its own."""
    cfg = cls_toys.config(tmp_path / 'run', pruned=False)
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.custom_imports = dict(imports=['cls_toys'])
    cfg.dump(tmp_path / 'stock.py')
    return tmp_path / 'stock.py'


def digests_in(folder):
    lines = Path(folder, 'infobatch.jsonl').read_text().splitlines()
    return [json.loads(line)['digest'] for line in lines]


def expected(stock, **options):
    cfg = enable(Config.fromfile(stock), **options)
    cfg.work_dir = str(stock.with_name('expected'))
    cfg.visualizer.name = f'expected_{next(cls_toys.NUMBERS)}'
    cfg.experiment_name = cfg.visualizer.name
    Runner.from_cfg(cfg).train()
    return digests_in(cfg.work_dir)


def test_the_command_line_of_mmpretrain(stock_file):
    line = snippets('ways_in.md', 'sh', COMMAND)[1]
    paths = f'{REPO}{os.pathsep}{REPO / "tests/helpers"}'
    tool = MIM / 'tools/train.py'
    flags = ['--no-persistent-workers', '--no-pin-memory']
    done = subprocess.run(
        [sys.executable, tool, stock_file, *flags, *shlex.split(line)],
        env=os.environ | dict(PYTHONPATH=paths, OMP_NUM_THREADS='1'),
        cwd=stock_file.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    options = dict(delta=0.9, policy=dict(prune_ratio=0.7))
    assert digests_in(stock_file.with_name('run')) == expected(
        stock_file, **options
    )


def test_components(stock_file):
    (snippet,) = [
        text
        for text in snippets('ways_in.md', 'python', 'Components')
        if 'WeightedClsHead' in text
    ]
    child = stock_file.with_name('child.py')
    child.write_text(snippet)
    runner = Runner.from_cfg(Config.fromfile(child))
    runner.train()
    assert 'EMAHook' in [type(hook).__name__ for hook in runner.hooks]
    assert digests_in(stock_file.with_name('run')) == expected(stock_file)


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


def test_a_run_by_the_hook_builds_its_loop(stock_file):
    cfg = Config.fromfile(stock_file)
    kind = 'infobatch_mm.override.PruneHook'
    cfg.merge_from_dict({'default_hooks.infobatch.type': kind})
    assert cfg.train_cfg == dict(by_epoch=True, max_epochs=4)
    loop = Runner.from_cfg(cfg).train_loop
    assert isinstance(loop, InfoBatchEpochBasedTrainLoop)
    assert loop.max_epochs == 4


# The configs that are shipped: overlays on stock twins

CONFIGS = Path(__file__).parents[1] / 'configs'
FOLDERS = ('cifar10', 'tiny_imagenet', 'imagenet')
FILES = [
    path
    for folder in FOLDERS
    for path in sorted((CONFIGS / folder).glob('*.py'))
]
OVERLAYS = [path for path in FILES if path.stem.startswith('infobatch')]
TWINS = [path for path in FILES if path not in OVERLAYS]
# The families of mmpretrain's configs that the others are based on.
UPSTREAM = {
    'resnet50_8xb256-rsb-a3-100e_in1k': 'resnet',
    'resnet50_8xb32_in1k': 'resnet',
    'resnet18_8xb16_cifar10': 'resnet',
}


@functools.cache
def read(path):
    return Config.fromfile(path)


def load(path):
    """Read a config, of which the caller has a copy."""
    return deepcopy(read(path))


@functools.cache
def read_upstream(stem):
    """Read a config of mmpretrain through a base, as the overlays do."""
    with TemporaryDirectory() as folder:
        file = Path(folder, f'{stem}.py')
        file.write_text(f"_base_ = 'mmpretrain::{UPSTREAM[stem]}/{stem}.py'")
        return Config.fromfile(file)


def stock_of(path):
    """Return the stock twin of an overlay, ours or mmpretrain's."""
    stem = path.stem.partition('_')[2]
    if stem in UPSTREAM:
        return deepcopy(read_upstream(stem))
    return load(path.with_name(f'{stem}.py'))


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_is_what_enable_makes_of_its_twin(path):
    found = load(path).to_dict()
    stock = stock_of(path)
    (hook,) = found['custom_hooks']
    options = {k: v for k, v in hook.items() if k != 'type'}
    expected = enable(stock, **options).to_dict()
    # mmengine's own loop by epochs will do.
    expected['train_cfg'] = stock.train_cfg.to_dict()
    # The scope is what mmengine adds to a base in another package.
    kind = 'infobatch_mm.InfoBatchSampler'
    expected['train_dataloader']['sampler'] = dict(type=kind)
    imports = found.pop('custom_imports')
    assert 'infobatch_mm' in imports['imports']
    assert set(expected.pop('custom_imports')['imports']) == set(
        imports['imports']
    )
    assert found == expected


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_becomes_its_twin_again(path):
    """For the arms of a comparison that do not prune."""
    found, options = unpruned(load(path))
    expected = stock_of(path)
    expected.train_dataloader.sampler.pop('_scope_', None)
    assert found.to_dict() == expected.to_dict()
    assert options['policy']['type'] in str(load(path).custom_hooks)
    assert metric_of(found) == 'accuracy/top1'
    assert is_higher_better(found, 'accuracy/top1')


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_its_hook_is_set_as_its_name_says(path):
    (hook,) = load(path).custom_hooks
    check_options({k: v for k, v in hook.items() if k != 'type'})
    policy = build_policy(hook.policy, hook.delta)
    assert type(policy).__name__ == 'InfoBatchPolicy'
    is_smoothed = 'score_momentum' in hook
    assert is_smoothed == ('rsb' in path.stem)


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_it_builds_its_head(path):
    cfg = load(path)
    init_default_scope(cfg.default_scope)
    head = MODELS.build(cfg.model.head)
    assert isinstance(head.loss_module, WeightedHeadMixin)
    assert head.num_classes == cfg.data_preprocessor.num_classes


@pytest.mark.parametrize('path', TWINS, ids=lambda path: path.stem)
def test_a_twin_of_ours_gives_class_scores(path):
    cfg = load(path)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        scores = model(torch.zeros(1, 3, 32, 32))
    assert scores.shape == (1, cfg.data_preprocessor.num_classes)


@pytest.mark.parametrize(
    'file, name',
    [
        ('cifar10/resnet18-w8_1xb512-lars-100e_cifar10-10k.py', 'LARS'),
        ('cifar10/resnet18-w8_1xb512-lamb-100e_cifar10-10k.py', 'Lamb'),
        ('imagenet/infobatch_resnet50_8xb256-rsb-a3-100e_in1k.py', 'Lamb'),
    ],
)
def test_large_batches_have_their_optimizer(file, name):
    """Also what mmpretrain excludes of it: norms, of LARS's trust ratio."""
    cfg = load(CONFIGS / file)
    init_default_scope('mmpretrain')
    assert cfg.optim_wrapper.optimizer.type == name
    assert cfg.train_dataloader.batch_size >= 256
    backbone = dict(cfg.model.backbone, depth=18, norm_cfg=dict(type='BN'))
    model = MODELS.build(backbone)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    norm = next(
        group
        for group in optimizer.param_groups
        if group['params'][0] is model.norm1.weight
    )
    assert norm['weight_decay'] == 0
    assert norm.get('lars_exclude', False) == (name == 'LARS')
