"""Dataloaders that say less, or do more, than the usual ones."""

from copy import deepcopy

import pytest
import toys
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS

from infobatch_mm import enable


def stock(tmp_path, **settings):
    return toys.config(tmp_path, pruned=False, epochs=3, **settings)


@pytest.mark.parametrize('has_entry', [True, False])
def test_shuffle_alone_is_a_default_sampler(tmp_path, has_entry):
    cfg = stock(tmp_path)
    expected = enable(cfg).train_dataloader.to_dict()
    loader = cfg.train_dataloader
    del loader['sampler']
    loader.shuffle = True
    if has_entry:
        loader['sampler'] = None
    assert enable(cfg).train_dataloader.to_dict() == expected


@pytest.mark.parametrize('settings', [{}, dict(shuffle=False)])
def test_no_sampler_and_no_shuffle_is_refused(tmp_path, settings):
    cfg = stock(tmp_path)
    del cfg.train_dataloader['sampler']
    cfg.train_dataloader.update(settings)
    with pytest.raises(ValueError, match='no sampler.*DefaultSampler'):
        enable(cfg)


@pytest.mark.parametrize('sampler', [None, dict(type='DefaultSampler')])
def test_shuffle_alone_trains(tmp_path, sampler):
    cfg = stock(tmp_path)
    cfg.train_dataloader.sampler = sampler
    if sampler is None:
        cfg.train_dataloader.shuffle = True
    cfg.train_cfg.type = 'infobatch_mm.override.EpochBasedTrainLoop'
    hook = toys.hook_of(toys.train(cfg))
    assert hook.samples_seen < hook.samples_budget == 3 * 24


class Trained(Hook):
    """Note what is trained on."""

    def __init__(self):
        self.ids = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        samples = data_batch['data_samples']
        self.ids.append([s.infobatch_index for s in samples])


def train(cfg):
    runner, trained = toys.Runner.from_cfg(cfg), Trained()
    runner.register_hook(trained)
    runner.train()
    return toys.hook_of(runner), trained.ids


def test_num_batch_per_epoch_takes_the_first_samples(tmp_path):
    cfg = stock(tmp_path)
    cfg.train_dataloader.num_batch_per_epoch = 4
    hook, ids = train(enable(cfg))
    assert len(hook.weights) == 16
    assert sorted(sum(ids[:4], [])) == list(range(16))
    assert {i for batch in ids for i in batch} == set(range(16))
    assert hook.samples_seen < hook.samples_budget == 3 * 16


@FUNCTIONS.register_module()
def repeating(batch):
    return pseudo_collate([deepcopy(data) for data in batch for _ in 'ab'])


@FUNCTIONS.register_module()
def dropping(batch):
    return pseudo_collate(
        [data for data in batch if data['data_samples'].infobatch_index > 1]
    )


@pytest.mark.parametrize(
    ('collate', 'rows', 'unscored'), [(repeating, 48, 0), (dropping, 22, 2)]
)
def test_a_collate_function_changes_no_count(
    tmp_path, collate, rows, unscored
):
    cfg = stock(tmp_path)
    cfg.train_dataloader.collate_fn = dict(type=collate.__name__)
    hook, ids = train(enable(cfg))
    assert len(sum(ids[:6], [])) == rows
    assert hook.samples_seen == 4 * len(ids) < hook.samples_budget == 3 * 24
    assert hook.board.scores.isnan().sum() == unscored
