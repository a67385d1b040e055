"""The registry override within a process that puts the registry back."""

import json

import pytest
import toys
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import DataLoader


def digests(cfg):
    rounds_file = toys.hook_of(toys.train(cfg)).records.rounds_file
    lines = map(json.loads, rounds_file.read_text().splitlines())
    return [line['digest'] for line in lines]


def with_loop(cfg, **train_cfg):
    """Set train_cfg as a whole; assigning it would merge nothing away."""
    cfg._cfg_dict['train_cfg'] = train_cfg
    return cfg


@pytest.mark.parametrize(
    'by', [dict(type='EpochBasedTrainLoop'), dict(by_epoch=True)]
)
def test_by_epochs(override, tmp_path, by):
    stock = toys.config(tmp_path / 'stock', pruned=False)
    explicit = toys.config(tmp_path / 'explicit')
    result = digests(with_loop(stock, max_epochs=4, **by))
    assert result == digests(explicit)
    assert len(set(result)) == 4


def test_a_hook_that_is_there_is_kept(override, tmp_path):
    runner = Runner.from_cfg(toys.config(tmp_path, delta=0.5))
    runner.train()
    kind = type(toys.hook_of(runner))
    assert [h.delta for h in runner.hooks if type(h) is kind] == [0.5]


def test_options_beside_a_hook_are_an_error(override, tmp_path):
    cfg = toys.config(tmp_path, delta=0.5)
    cfg.train_cfg.infobatch = dict(delta=0.9)
    message = r"train_cfg.infobatch=\{'delta': 0.9\} .* in custom_hooks"
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()


def test_an_unknown_option_is_an_error(override, tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.train_cfg.infobatch = dict(prune_ratio=0.3)
    with pytest.raises(ValueError, match='prune_ratio=0.3 is not an option'):
        Runner.from_cfg(cfg).train()


def test_a_dataloader_made_by_hand_is_an_error(override, tmp_path):
    cfg = toys.config(tmp_path, pruned=False)
    runner = Runner.from_cfg(cfg)
    runner._train_dataloader = DataLoader([1])
    with pytest.raises(TypeError, match='but it is a DataLoader'):
        runner.train()


@pytest.mark.parametrize(
    'by', [dict(type='EpochBasedTrainLoop'), dict(by_epoch=True)]
)
def test_a_flexible_runner_is_an_error(override, tmp_path, by):
    cfg = toys.config(tmp_path, pruned=False)
    cfg.strategy = dict(type='SingleDeviceStrategy')
    cfg.env_cfg = dict()
    runner = FlexibleRunner.from_cfg(with_loop(cfg, max_epochs=4, **by))
    with pytest.raises(TypeError, match='FlexibleRunner has no model yet'):
        runner.train()
