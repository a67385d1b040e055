"""enable(cfg): a stock config in, a pruned one out."""

import json

import pytest
import toys
from mmengine.config import Config
from mmengine.hub import get_config

import infobatch_mm
from infobatch_mm import enable

STOCK = {
    'plain': 'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    'no_auxiliary': 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'cascade': 'ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py',
    'point': 'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
    'several_auxiliary': 'icnet/icnet_r50-d8_4xb2-80k_cityscapes-832x832.py',
    'stages': 'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py',
    'concat': 'deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512.py',
    'repeat': 'unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py',
}
TRAINING = {
    'model',
    'train_dataloader',
    'train_cfg',
    'custom_hooks',
    'custom_imports',
}


@pytest.fixture(params=STOCK.values(), ids=STOCK)
def stock(request):
    return get_config(f'mmseg::{request.param}')


def test_only_what_pruning_needs_is_changed(stock):
    before = stock.to_dict()
    cfg = enable(stock, delta=0.9).to_dict()
    assert stock.to_dict() == before
    assert {k for k in cfg if cfg[k] != before.get(k)} == TRAINING
    loader = before['train_dataloader']
    assert cfg['train_dataloader'] == loader | dict(
        sampler=dict(type='InfoBatchSampler', shuffle=True),
        dataset=dict(type='IndexedDataset', dataset=loader['dataset']),
    )
    loop = dict(type='InfoBatchIterBasedTrainLoop')
    assert cfg['train_cfg'] == before['train_cfg'] | loop
    assert cfg['custom_hooks'] == [dict(type='InfoBatchHook', delta=0.9)]
    assert cfg['custom_imports'] == dict(imports=['infobatch_mm'])
    for name in 'decode_head', 'auxiliary_head':
        head, wrapped = before['model'].get(name), cfg['model'].get(name)
        if isinstance(head, list):
            assert wrapped == [toys.weighted(one) for one in head]
        elif head:
            assert wrapped == toys.weighted(head)


def test_enabling_twice_is_enabling_once(stock):
    once = enable(stock, delta=0.9)
    assert enable(once).to_dict() == once.to_dict()


def test_the_result_dumps_and_reloads(stock, tmp_path):
    cfg = enable(stock, policy=dict(type='RandomPolicy', prune_ratio=0.3))
    path = tmp_path / 'pruned.py'
    cfg.dump(path)
    assert Config.fromfile(path).to_dict() == cfg.to_dict()


def test_later_options_replace_earlier_ones(tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.custom_hooks = [dict(type='EMAHook')]
    quantile = dict(type='QuantilePolicy')
    cfg = enable(enable(cfg, delta=0.9), policy=quantile)
    assert cfg.custom_hooks == [
        dict(type='EMAHook'),
        dict(type='InfoBatchHook', delta=0.9, policy=quantile),
    ]


@pytest.mark.parametrize(
    'before, after',
    [
        (None, ['infobatch_mm']),
        ('mmdet.models', ['mmdet.models', 'infobatch_mm']),
        (['infobatch_mm', 'x'], ['infobatch_mm', 'x']),
    ],
)
def test_imports_are_appended(tmp_path, before, after):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.custom_imports = dict(imports=before, allow_failed_imports=False)
    imports = enable(cfg).custom_imports
    assert imports == dict(imports=after, allow_failed_imports=False)


@pytest.mark.parametrize(
    'train_cfg, loop',
    [
        (dict(by_epoch=True, max_epochs=3), 'InfoBatchEpochBasedTrainLoop'),
        (dict(by_epoch=False, max_iters=3), 'InfoBatchIterBasedTrainLoop'),
        (
            dict(type='mmengine.EpochBasedTrainLoop', max_epochs=3),
            'InfoBatchEpochBasedTrainLoop',
        ),
    ],
)
def test_loops_by_any_name(tmp_path, train_cfg, loop):
    cfg = toys.config(tmp_path, pruned=False)
    cfg._cfg_dict['train_cfg'] = train_cfg
    pruned = enable(cfg).train_cfg
    assert pruned.type == loop
    assert 'by_epoch' not in pruned


def test_an_enabled_run_is_the_explicit_run(tmp_path):
    explicit = toys.config(tmp_path / 'explicit')
    stock = toys.config(tmp_path / 'enabled', pruned=False)
    hook = explicit.custom_hooks[0]
    enabled = enable(stock, policy=hook.policy, delta=hook.delta)
    digests = []
    for cfg in explicit, enabled:
        rounds_file = toys.hook_of(toys.train(cfg)).records.rounds_file
        lines = map(json.loads, rounds_file.read_text().splitlines())
        digests.append([line['digest'] for line in lines])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 4


# Configs that cannot prune


def no_train_cfg(cfg):
    cfg.train_cfg = None


def other_sampler(cfg):
    cfg.train_dataloader.sampler.type = 'RepeatAugSampler'


def other_loop(cfg):
    cfg.train_cfg.type = 'SelfTrainingLoop'


def other_model(cfg):
    cfg.model = dict(type='Painter', head=None)


@pytest.mark.parametrize(
    'spoil, message',
    [
        (no_train_cfg, 'no train_cfg'),
        (other_sampler, "sampler.type is 'RepeatAugSampler'"),
        (other_loop, "train_cfg.type is 'SelfTrainingLoop'"),
        (other_model, r'the model \(Painter\) has none of the heads'),
    ],
)
def test_a_config_that_cannot_prune_is_an_error(tmp_path, spoil, message):
    cfg = toys.config(tmp_path, pruned=False)
    spoil(cfg)
    before = cfg.to_dict()
    with pytest.raises(ValueError, match=message):
        enable(cfg)
    assert cfg.to_dict() == before


def test_an_unknown_option_is_an_error(tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    with pytest.raises(ValueError, match='prune_ratio=0.3 is not an option'):
        infobatch_mm.enable(cfg, prune_ratio=0.3)
