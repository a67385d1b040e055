"""InfoBatchSampler beside mmengine's DefaultSampler, and in dataloaders."""

import random
from copy import deepcopy
from unittest.mock import patch

import numpy as np
import pytest
import torch
import toys
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader

from infobatch_mm import enable
from infobatch_mm.binding import keeps_order
from infobatch_mm.pruning import InfoBatchPolicy, Plan
from infobatch_mm.sampler import InfoBatchSampler

NUM = 23
PLAN = Plan(torch.tensor([7, 2, 19, 4, 11, 0, 22, 5, 13, 8]), torch.ones(10))


def build(kind=InfoBatchSampler, *, rank=0, world_size=1, **settings):
    with patch(
        'mmengine.dataset.sampler.get_dist_info',
        return_value=(rank, world_size),
    ):
        return kind(**dict(dataset=range(NUM), seed=5) | settings)


def ranks(world_size: int, plan: Plan | None = None, start: int = 0, **kwargs):
    """Return the samplers of all ranks."""
    samplers = []
    for rank in range(world_size):
        samplers.append(build(rank=rank, world_size=world_size, **kwargs))
        if plan is not None:
            samplers[-1].begin_round(plan, start=start)
    return samplers


def interleaved(per_rank: list[list[int]]) -> list[int]:
    """Return what the ranks yield, in the order of a single process."""
    longest = max(map(len, per_rank))
    return [ids[i] for i in range(longest) for ids in per_rank if i < len(ids)]


@pytest.mark.parametrize('epoch', [0, 1, 7])
@pytest.mark.parametrize('seed', [0, 5, 2**31])
@pytest.mark.parametrize('world_size', [1, 4])
@pytest.mark.parametrize('round_up', [True, False])
def test_without_a_plan_it_is_the_default_sampler(
    seed, epoch, world_size, round_up
):
    for rank in range(world_size):
        ours, stock = (
            build(
                kind,
                rank=rank,
                world_size=world_size,
                seed=seed,
                round_up=round_up,
            )
            for kind in (InfoBatchSampler, DefaultSampler)
        )
        ours.set_epoch(epoch)
        stock.set_epoch(epoch)
        assert list(ours) == list(stock)
        assert len(ours) == len(stock) == len(list(ours))


def test_a_plan_of_everything_is_the_default_sampler():
    ours, stock = build(), build(DefaultSampler)
    for epoch in (0, 3):
        ours.set_epoch(epoch)
        stock.set_epoch(epoch)
        ours.begin_round(
            InfoBatchPolicy().plan(
                torch.full((NUM,), torch.nan), generator=ours.generator()
            )
        )
        assert list(ours) == list(stock)


def test_it_yields_the_plan_as_often_as_it_is_asked():
    sampler = build()
    sampler.begin_round(PLAN)
    first, second = iter(sampler), iter(sampler)
    assert [next(first) for _ in range(3)] == PLAN.indices[:3].tolist()
    assert list(second) == list(sampler) == PLAN.indices.tolist()
    assert all(type(index) is int for index in sampler)


def test_len_is_true_before_and_during_a_plan():
    sampler = build()
    assert len(sampler) == len(list(sampler)) == NUM
    sampler.begin_round(PLAN)
    assert len(sampler) == len(list(sampler)) == 10


def test_a_plan_ends_with_its_epoch():
    sampler, stock = build(), build(DefaultSampler)
    sampler.set_epoch(1)
    sampler.begin_round(PLAN)
    sampler.set_epoch(1)
    assert list(sampler) == PLAN.indices.tolist()
    for epoch in (2, 0):
        sampler.set_epoch(epoch)
        stock.set_epoch(epoch)
        assert list(sampler) == list(stock)
        assert len(sampler) == NUM


@pytest.mark.parametrize('world_size', [1, 2, 3, 4, 12])
def test_ranks_share_the_plan_without_overlap(world_size):
    samplers = ranks(world_size, PLAN, round_up=False)
    per_rank = [list(sampler) for sampler in samplers]
    assert interleaved(per_rank) == PLAN.indices.tolist()
    assert list(map(len, samplers)) == list(map(len, per_rank))


@pytest.mark.parametrize('world_size', [1, 2, 3, 4, 12, 25])
def test_a_round_is_padded_as_by_the_default_sampler(world_size):
    samplers = ranks(world_size, PLAN)
    stock = [
        build(
            DefaultSampler,
            rank=rank,
            world_size=world_size,
            dataset=PLAN.indices,
            shuffle=False,
        )
        for rank in range(world_size)
    ]
    for ours, theirs in zip(samplers, stock, strict=True):
        expected = [PLAN.indices[i].item() for i in theirs]
        assert list(ours) == expected
        assert len(ours) == len(expected)


@pytest.mark.parametrize('world_size', [1, 2, 3, 4])
@pytest.mark.parametrize('steps', [0, 1, 2])
@pytest.mark.parametrize('round_up', [True, False])
def test_a_resumed_round_goes_on_where_it_stopped(world_size, steps, round_up):
    whole = ranks(world_size, PLAN, round_up=round_up)
    rest = ranks(world_size, PLAN, steps * world_size, round_up=round_up)
    for before, after in zip(whole, rest, strict=True):
        assert list(after) == list(before)[steps:]
        assert len(after) == len(list(after))


@pytest.mark.parametrize('world_size', [2, 3, 4])
@pytest.mark.parametrize('start', range(11))
def test_ranks_share_what_other_ranks_left(world_size, start):
    """Another number of ranks may have trained on any number of samples."""
    samplers = ranks(world_size, PLAN, start)
    per_rank = [list(sampler) for sampler in samplers]
    rest = PLAN.indices[start:].tolist()
    assert interleaved(per_rank)[: len(rest)] == rest
    each = -(-len(rest) // world_size)
    assert (
        [*map(len, per_rank)] == [*map(len, samplers)] == [each] * world_size
    )


def test_a_round_resumed_at_its_end_is_empty():
    (sampler,) = ranks(1, PLAN, start=len(PLAN))
    assert list(sampler) == []
    assert len(sampler) == 0


def test_the_global_random_state_is_left_alone():
    def states():
        return (
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),
            random.getstate(),
        )

    sampler = build()
    before = states()
    plan = InfoBatchPolicy().plan(
        torch.arange(float(NUM)), generator=sampler.generator()
    )
    list(sampler)
    sampler.begin_round(plan)
    list(sampler)
    sampler.set_epoch(1)
    list(sampler)
    assert states() == before


def test_a_generator_is_new_and_of_its_seed_and_epoch():
    sampler = build(seed=5)
    draws = [torch.rand(1, generator=sampler.generator()) for _ in range(2)]
    assert draws[0] == draws[1]
    sampler.set_epoch(2)
    assert sampler.generator().initial_seed() == 7


def test_an_unshuffled_round_is_refused():
    with pytest.raises(ValueError, match='shuffle=False'):
        build(shuffle=False)


@pytest.mark.parametrize('drop_last', [True, False])
@pytest.mark.parametrize('own_batch_sampler', [True, False])
def test_a_dataloader_follows_the_plan(drop_last, own_batch_sampler):
    sampler, dataset = build(), torch.arange(NUM)
    if own_batch_sampler:
        batches = BatchSampler(sampler, 4, drop_last)
        loader = DataLoader(dataset, batch_sampler=batches)
    else:
        loader = DataLoader(dataset, 4, sampler=sampler, drop_last=drop_last)
    assert len(loader) == len(list(loader)) == (5 if drop_last else 6)
    sampler.begin_round(PLAN)
    planned = PLAN.indices.split(4)[: 2 if drop_last else 3]
    for _ in range(2):
        assert len(loader) == len(planned)
        for batch, expected in zip(loader, planned, strict=True):
            assert torch.equal(batch, expected)


def test_mmengine_builds_it_from_a_config_with_its_seed():
    loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=0,
            dataset=range(NUM),
            sampler=dict(type='InfoBatchSampler', shuffle=True),
        ),
        seed=42,
    )
    stock = DefaultSampler(range(NUM), seed=42)
    assert isinstance(loader.sampler, InfoBatchSampler)
    assert loader.sampler.seed == 42
    assert list(loader.sampler) == list(stock)


# Dataloaders that say less, or do more, than the usual ones


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
    hook, ids = train(enable(cfg, pacing='fewer_steps'))
    assert len(sum(ids[:6], [])) == rows
    assert hook.samples_seen == 4 * len(ids) < hook.samples_budget == 3 * 24
    assert hook.board.scores.isnan().sum() == unscored


@pytest.mark.parametrize('in_order', [True, False])
def test_workers_that_give_what_they_have_first_keep_no_order(in_order):
    loader = DataLoader(range(8), 2, num_workers=1, in_order=in_order)
    assert keeps_order(loader) == in_order
