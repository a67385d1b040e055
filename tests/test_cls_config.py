"""enable(cfg), the override and tools/train.py for classification."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.runner import Runner

pytest.importorskip('mmpretrain')
import cls_toys
from mmpretrain.models import ImageClassifier
from test_tools import train as train_tool

from infobatch_mm import InfoBatchHook, enable

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
    message = r'\(TimmClassifier\) has none of the heads .*: head$'
    with pytest.raises(ValueError, match=message):
        enable(cfg)


@pytest.fixture(scope='module')
def explicit(tmp_path_factory):
    runner = train(cls_toys.config(tmp_path_factory.mktemp('explicit')))
    return digests(runner)


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
