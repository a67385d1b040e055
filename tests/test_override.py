"""The override prunes the runs whose config asks for it, and no other."""

import json

import light
import pytest
import torch
import toys
from mmengine.registry import LOOPS
from mmengine.runner import (
    EpochBasedTrainLoop,
    FlexibleRunner,
    IterBasedTrainLoop,
    Runner,
)
from torch.utils.data import DataLoader

import infobatch_mm.override
from infobatch_mm import InfoBatchHook, enable
from infobatch_mm.config import prune_dataloader

BY_IMPORT = {'custom_imports.imports': ['infobatch_mm.override']}
BY_HOOK = {'default_hooks.infobatch.type': 'infobatch_mm.override.PruneHook'}
BY_OPTIONS = {'train_cfg.infobatch': {}}
BY_TYPE = {'train_cfg.type': 'infobatch_mm.override.EpochBasedTrainLoop'}
WAYS = dict(imports=BY_IMPORT, hook=BY_HOOK, options=BY_OPTIONS, type=BY_TYPE)


def digests(cfg):
    rounds_file = toys.hook_of(toys.train(cfg)).records.rounds_file
    lines = map(json.loads, rounds_file.read_text().splitlines())
    return [line['digest'] for line in lines]


def with_loop(cfg, **train_cfg):
    """Set train_cfg as a whole; assigning it would merge nothing away."""
    cfg._cfg_dict['train_cfg'] = train_cfg
    return cfg


def config(folder, **settings):
    loop = dict(type='EpochBasedTrainLoop', max_epochs=4)
    return light.config(folder, loop, **settings)


def stock(folder, asking=BY_IMPORT):
    cfg = config(folder, pruned=False)
    cfg.merge_from_dict(asking)
    return cfg


LOOPS_OF_CONFIGS = dict(
    name=dict(type='EpochBasedTrainLoop'),
    by_epoch=dict(by_epoch=True),
    scope=dict(type='mmengine.EpochBasedTrainLoop'),
    path=dict(type='mmengine.runner.loops.EpochBasedTrainLoop'),
    a_class=dict(type=EpochBasedTrainLoop),
)


@pytest.mark.parametrize('asking', [BY_IMPORT, BY_HOOK], ids=['imp', 'hook'])
@pytest.mark.parametrize('by', LOOPS_OF_CONFIGS.values(), ids=LOOPS_OF_CONFIGS)
def test_a_loop_by_any_name(tmp_path, by, asking, monkeypatch):
    built = []
    monkeypatch.setattr(
        'infobatch_mm.override.take_over',
        lambda runner, dataloader, options: (
            built.append(1) or prune_dataloader(dataloader)
        ),
    )
    cfg = with_loop(stock(tmp_path, asking), max_epochs=4, **by)
    loop = Runner.from_cfg(cfg).train_loop
    assert type(loop) is infobatch_mm.override.EpochBasedTrainLoop
    assert built == [1]


@pytest.mark.parametrize('asking', WAYS.values(), ids=WAYS)
def test_the_run_is_the_explicit_run(tmp_path, asking):
    result = digests(stock(tmp_path / 'stock', asking))
    assert result == digests(config(tmp_path / 'explicit'))
    assert len(set(result)) == 4


# The runs of other configs


def states(runner):
    return list(runner.model.state_dict().values())


@pytest.mark.parametrize('asking', WAYS.values(), ids=WAYS)
def test_a_later_baseline_is_the_stock_run(tmp_path, asking):
    before = toys.train(config(tmp_path / 'before', pruned=False))
    pruned = toys.train(stock(tmp_path / 'pruned', asking))
    Runner.from_cfg(stock(tmp_path / 'not_trained', asking))
    after = toys.train(config(tmp_path / 'after', pruned=False))
    assert type(after.train_loop) is EpochBasedTrainLoop
    assert type(after.model.head) is light.LightHead
    assert pruned.iter < after.iter == before.iter == 28
    assert all(map(torch.equal, states(before), states(after)))


def test_two_runs_at_a_time(tmp_path):
    pruned = Runner.from_cfg(stock(tmp_path / 'pruned'))
    cfg = config(tmp_path / 'stock', pruned=False)
    loop = dict(by_epoch=False, max_iters=4)
    baseline = Runner.from_cfg(with_loop(cfg, **loop))
    assert type(baseline.train_loop) is IterBasedTrainLoop
    pruned_loop = infobatch_mm.override.EpochBasedTrainLoop
    assert type(pruned.train_loop) is pruned_loop


def test_the_registry_keeps_the_stock_loops():
    assert LOOPS.get('EpochBasedTrainLoop') is EpochBasedTrainLoop
    assert LOOPS.get('IterBasedTrainLoop') is IterBasedTrainLoop


def test_a_hook_that_is_there_is_kept(tmp_path):
    cfg = config(tmp_path, delta=0.5)
    cfg.merge_from_dict(BY_IMPORT)
    runner = Runner.from_cfg(cfg)
    runner.train()
    found = [h for h in runner.hooks if isinstance(h, InfoBatchHook)]
    assert [hook.delta for hook in found] == [0.5]


# Options


def test_the_options_of_a_hook_that_is_merged(tmp_path):
    cfg = stock(tmp_path, BY_HOOK)
    cfg.custom_hooks = [dict(type='EMAHook')]  # of a child config
    options = {'delta': 0.5, 'policy.prune_ratio': 0.7}
    cfg.merge_from_dict(
        {f'default_hooks.infobatch.{k}': v for k, v in options.items()}
    )
    hook = toys.hook_of(Runner.from_cfg(cfg))
    assert repr(hook.policy) == 'InfoBatchPolicy(0.7 until 0.5)'


def test_a_policy_without_a_type(tmp_path):
    cfg = stock(tmp_path)
    cfg.merge_from_dict({'train_cfg.infobatch.policy.prune_ratio': 0.7})
    runner = Runner.from_cfg(cfg)
    assert runner.train_loop.max_epochs == 4
    policy = toys.hook_of(runner).policy
    assert repr(policy) == 'InfoBatchPolicy(0.7 until 0.875)'


def test_enabling_a_config_that_asks_for_the_override(tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.merge_from_dict(BY_HOOK | BY_IMPORT)
    cfg.train_cfg.infobatch = dict(delta=0.5)
    enabled = enable(cfg, score_momentum=0.8)
    assert enabled.custom_hooks == []
    options = dict(delta=0.5, score_momentum=0.8)
    kind = 'infobatch_mm.override.PruneHook'
    assert enabled.default_hooks.infobatch == dict(type=kind, **options)
    runner = Runner.from_cfg(enabled)
    assert len(runner.train_loop.dataloader) == 6
    hook = toys.hook_of(runner)
    assert (hook.delta, hook.score_momentum) == (0.5, 0.8)


def test_options_beside_a_hook_are_an_error(tmp_path):
    cfg = config(tmp_path, delta=0.5)
    cfg.train_cfg.infobatch = dict(delta=0.9)
    message = r"train_cfg.infobatch=\{'delta': 0.9\} .* in custom_hooks"
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()


BAD = [
    (dict(prune_ratio=0.3), 'prune_ratio=0.3 is not an option'),
    (dict(delta=2), 'delta must be in .* got 2'),
    (dict(policy='QuantilePolicy'), "policy='QuantilePolicy' is not the"),
    (dict(policy=dict(prune_ration=0.3)), 'its settings: prune_ratio$'),
]


@pytest.mark.parametrize('options, message', BAD)
@pytest.mark.parametrize('at', ['train_cfg', 'default_hooks'])
def test_a_wrong_option_is_an_error(tmp_path, at, options, message):
    if at == 'train_cfg':
        cfg = stock(tmp_path)
        cfg.train_cfg.infobatch = options
    else:
        cfg = stock(tmp_path, BY_HOOK)
        cfg.default_hooks.infobatch.update(options)
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()


# Runs that cannot be taken over


def test_another_loop_is_an_error(tmp_path):
    cfg = stock(tmp_path)
    cfg.train_cfg.type = 'SelfTrainingLoop'
    with pytest.raises(ValueError, match="type is 'SelfTrainingLoop', and"):
        Runner.from_cfg(cfg).train()


def test_a_dataloader_made_by_hand_is_an_error(tmp_path):
    runner = Runner.from_cfg(stock(tmp_path))
    runner._train_dataloader = DataLoader([1])
    with pytest.raises(TypeError, match='but it is a DataLoader'):
        runner.train()


@pytest.mark.parametrize(
    'by', [dict(type='EpochBasedTrainLoop'), dict(by_epoch=True)]
)
def test_a_flexible_runner_is_an_error(tmp_path, by):
    cfg = stock(tmp_path)
    cfg.strategy = dict(type='SingleDeviceStrategy')
    cfg.env_cfg = dict()
    runner = FlexibleRunner.from_cfg(with_loop(cfg, max_epochs=4, **by))
    with pytest.raises(TypeError, match='FlexibleRunner has no model yet'):
        runner.train()
