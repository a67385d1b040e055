"""Smaller batches: a pruned round makes all steps of a full pass."""

import json
import math
from collections import Counter
from functools import cache, partial

import light
import numpy as np
import pytest
import torch
import toys
from mmengine.registry import DATA_SAMPLERS, MODELS
from processes import Child
from test_distributed import Diary, rounds_of
from test_distributed import run as run_on_ranks
from test_gradients import (
    RUNS,
    batch,
    build_model,
    single_gradients,
    standard_errors,
    weighted_gradient,
)
from test_loops import SCHEDULES
from test_loops import train as train_and_note
from test_resume import StopAfter, assert_same_end, last_checkpoint
from test_resume import config as resumable
from test_resume import run as run_config
from torch import nn
from torch.utils.data import BatchSampler

from infobatch_mm import InfoBatchPolicy, QuantilePolicy, RandomPolicy, enable
from infobatch_mm.pacing import Dealing, next_batch
from infobatch_mm.pruning.draw import kept_counts

EPOCHS = dict(type='InfoBatchEpochBasedTrainLoop', max_epochs=8)
PLAIN_EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=8)
ITERS = dict(type='InfoBatchIterBasedTrainLoop', max_iters=50)
STOCK_ITERS = dict(type='IterBasedTrainLoop', max_iters=50)
LOOPS = pytest.mark.parametrize(
    'loop', [EPOCHS, PLAIN_EPOCHS, ITERS], ids=['epoch', 'plain', 'iter']
)


def paced(make_config, *args, pacing='smaller_batches', smallest=2, **kwargs):
    """Return the config of a run in smaller batches."""
    cfg = make_config(*args, **kwargs)
    cfg.custom_hooks[0].update(pacing=pacing, smallest_batch=smallest)
    return cfg


light_config = partial(paced, light.config)


def train(cfg):
    runner = toys.Runner.from_cfg(cfg)
    diary = Diary()
    runner.register_hook(diary)
    runner.train()
    return runner, diary.rounds


# Dealing


@pytest.mark.parametrize('steps', [1, 3, 7])
@pytest.mark.parametrize('samples', [0, 1, 7, 20, 23])
def test_samples_are_dealt_as_numpy_splits_an_array(samples, steps):
    left, sizes = samples, []
    for step in range(steps):
        sizes.append(next_batch(left, steps - step))
        left -= sizes[-1]
    parts = np.array_split(np.arange(samples), steps)
    assert sizes == [len(part) for part in parts]


@pytest.mark.parametrize('multiple', [1, 2, 4])
@pytest.mark.parametrize('at_least', range(0, 34))
def test_strata_keep_at_least_what_is_asked_for(at_least, multiple):
    sizes, ratios = [10, 14, 8], [0.8, 0.5, 0.0]
    usual = kept_counts(sizes, ratios, multiple)
    kept = kept_counts(sizes, ratios, multiple, at_least)
    assert kept[2] == 8
    assert all(u <= k <= n for u, k, n in zip(usual, kept, sizes, strict=True))
    asked = math.ceil(at_least / multiple) * multiple
    # 33 are not to be had of 32.
    assert sum(kept) == min(32, max(sum(usual), asked))


def test_the_rest_of_a_round_has_its_share_of_the_steps():
    dealing = Dealing(10, 40, world_size=2, smallest_batch=4)
    assert dealing.steps_of_rest(150, 0.5) == 5
    # Not so few that a batch would be larger than the full one,
    assert dealing.steps_of_rest(150, 0.1) == 4
    # nor so many that it would be smaller than allowed.
    assert dealing.steps_of_rest(25, 0.5) == 3


# The expected step

SCORES = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.6, 3.0])
POLICIES = dict(
    infobatch=InfoBatchPolicy(0.5),
    quantile=QuantilePolicy(),
    keep=InfoBatchPolicy(keep=0.5),
    random=RandomPolicy(0.5),
)


@pytest.mark.parametrize('policy', POLICIES.values(), ids=POLICIES)
def test_each_expected_step_is_the_full_one(policy):
    """Monte Carlo through the real heads, with batches of two sizes."""
    images, samples = batch(len(SCORES), pixels=16)
    model, dealing = build_model(pruned=True), Dealing(2, 6, 1, 1)
    truth = single_gradients(images, samples).mean(0)

    def of_step(plan, part, is_weighted):
        weights = plan.weights if is_weighted else torch.ones(len(plan))
        ids = plan.indices[part].tolist()
        pairs = zip(ids, weights[part].tolist(), strict=True)
        return tuple(zip(*sorted(pairs), strict=True))

    @cache
    def gradient(ids, weights):
        chosen = [samples[i] for i in ids]
        weights = torch.tensor(weights)
        return weighted_gradient(model, images[list(ids)], chosen, weights)

    counts = {(n, w): Counter() for n in range(2) for w in (True, False)}
    for seed in range(4000):
        options = dict(
            generator=torch.Generator().manual_seed(seed), **dealing.limits
        )
        plan = dealing.paced(policy.plan(SCORES, **options), len(SCORES))
        first = next_batch(len(plan), 2)
        for n, part in enumerate([slice(first), slice(first, None)]):
            for is_weighted in (True, False):
                key = of_step(plan, part, is_weighted)
                counts[n, is_weighted][key] += 1

    def off(counts):
        found = torch.stack([gradient(*key) for key in counts])
        return standard_errors(found, torch.tensor([*counts.values()]), truth)

    for n in range(2):
        assert off(counts[n, True]) < 3
        if policy is not POLICIES['random']:  # whose weights are all 1
            assert off(counts[n, False]) > 4


# What counts steps


@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('stock, ours', [
    (STOCK_ITERS, ITERS),
    (PLAIN_EPOCHS, EPOCHS),
    (PLAIN_EPOCHS, PLAIN_EPOCHS),
])  # fmt: skip
def test_schedules_and_validation_are_the_stock_runs(
    tmp_path, schedule, stock, ours
):
    schedulers = SCHEDULES[schedule]
    interval = dict(val_interval=7 if 'max_iters' in ours else 2)
    if 'max_epochs' in ours and schedule == 'one_cycle':
        schedulers = [dict(schedulers[0], total_steps=56)]
    settings = dict(schedulers=schedulers, val=True)
    reference, theirs = train_and_note(
        light.config(
            tmp_path / 'stock', stock | interval, pruned=False, **settings
        )
    )
    runner, curve = train_and_note(
        light_config(tmp_path / 'ours', ours | interval, **settings)
    )
    hook = toys.hook_of(runner)
    assert hook.samples_seen < hook.samples_budget
    assert runner.iter == runner.max_iters == reference.iter
    if ours is not PLAIN_EPOCHS:  # whose clock Curve cannot read
        assert list(curve.by_tick) == list(range(1, runner.iter + 1))
    assert curve.by_tick == theirs.by_tick
    assert [*curve.checked_at] == [*theirs.checked_at]


OPTIMIZERS = dict(
    adamw=dict(type='AdamW', lr=0.01, weight_decay=0.1),
    sgd=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01),
)
NOTHING = dict(type='InfoBatchPolicy', prune_ratio=0.0)


@pytest.mark.parametrize('optimizer', OPTIMIZERS.values(), ids=OPTIMIZERS)
# By iterations one round: an InfiniteSampler goes on where a round is trimmed.
@pytest.mark.parametrize(
    'loop, samples',
    [(PLAIN_EPOCHS, 24), (PLAIN_EPOCHS, 26), (dict(ITERS, max_iters=6), 24)],
)
def test_with_nothing_pruned_it_is_the_stock_run(
    tmp_path, optimizer, loop, samples
):
    stock = dict(loop, type=loop['type'].removeprefix('InfoBatch'))
    theirs = light.config(tmp_path / 'a', stock, samples=samples, pruned=False)
    ours = light_config(tmp_path / 'b', loop, samples=samples, policy=NOTHING)
    for cfg in (ours, theirs):
        cfg.optim_wrapper.optimizer = optimizer
    ours, theirs = toys.train(ours), toys.train(theirs)
    assert ours.iter == theirs.iter
    for part in (lambda r: r.model, lambda r: r.optim_wrapper.optimizer):
        torch.testing.assert_close(
            part(ours).state_dict(), part(theirs).state_dict(), rtol=0, atol=0
        )


@pytest.mark.parametrize('counts', [2, 5, 7, 100])
@pytest.mark.parametrize('loop, policy', RUNS.values(), ids=RUNS)
def test_accumulation_groups_are_the_stock_runs(
    tmp_path, loop, policy, counts
):
    wrapper = dict(type='MeanCheckingOptimWrapper', accumulative_counts=counts)
    cfg = light_config(
        tmp_path,
        loop,
        samples=24,
        policy=policy,
        delta=1.0,
        optim_wrapper=wrapper,
    )
    runner, _ = train(cfg)
    full, rest = divmod(toys.hook_of(runner).clock.budget, counts)
    sizes = [counts] * full + [rest] * (rest > 0)
    assert runner.optim_wrapper.group_sizes == sizes


# Batches


@pytest.mark.parametrize('drop_last', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('samples', [24, 26])
@LOOPS
def test_rounds_are_dealt_evenly(tmp_path, loop, samples, workers, drop_last):
    cfg = light_config(
        tmp_path,
        loop,
        samples=samples,
        workers=workers,
        train_dataloader=dict(drop_last=drop_last),
    )
    runner, rounds = train(cfg)
    hook, records = toys.hook_of(runner), rounds_of(tmp_path)
    steps = hook.clock.pass_ticks
    is_full = drop_last or loop is ITERS
    assert steps == (samples // 4 if is_full else -(-samples // 4))
    kept = [line['kept'] for line in records]
    assert min(kept) < samples
    for record, line in zip(records, rounds, strict=True):
        sizes = [len(ids) for ids in line['ids']]
        trained = [i for ids in line['ids'] for i in ids]
        assert trained == line['plan'][: len(trained)]
        assert max(sizes) <= 4
        if record['kept'] == samples or record is records[-1]:
            continue
        assert len(sizes) == steps and len(trained) == record['kept']
        assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2
        if len(trained) < steps * 4:
            assert record['mean_weight'] == pytest.approx(1)
    summary = json.loads((tmp_path / 'infobatch_summary.json').read_text())
    assert summary['iters_run'] == summary['iters_budget'] == runner.iter
    seen = sum(len(ids) for line in rounds for ids in line['ids'])
    assert summary['samples_seen'] == hook.samples_seen == seen
    assert summary['saved_ratio'] == 1 - seen / hook.samples_budget > 0.1


def test_a_round_larger_than_the_full_batches_leaves_a_remainder_out(tmp_path):
    """25 of 26 are kept, and a loop by iterations has 6 batches of 4."""
    policy = dict(type='RandomPolicy', prune_ratio=0.04)
    runner, rounds = train(light_config(tmp_path, ITERS, policy=policy))
    assert [len(ids) for ids in rounds[1]['ids']] == [4] * 6
    # Those two that the first round left out are kept for want of a score.
    weights = {w for step in rounds[1]['weights'] for w in step}
    expected = [25 / 26, 24 / 23 * 25 / 26]
    assert sorted(weights) == pytest.approx(expected)


def test_mixed_precision(tmp_path):
    cfg = paced(toys.config, tmp_path, samples=16)
    cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'
    runner = toys.train(cfg)
    hook = toys.hook_of(runner)
    assert runner.iter == 16 and hook.samples_seen < 64
    assert hook.board.scores.isfinite().all()


# The smallest batch


@pytest.mark.parametrize('smallest', [1, 2, 3])
def test_no_batch_is_smaller_than_allowed(tmp_path, smallest):
    policy = dict(type='RandomPolicy', prune_ratio=0.95)
    cfg = light_config(
        tmp_path, EPOCHS, samples=24, policy=policy, smallest=smallest
    )
    cfg.log_level = 'INFO'
    runner, rounds = train(cfg)
    sizes = {len(ids) for ids in rounds[1]['ids']}
    assert sizes == {smallest}
    (log,) = tmp_path.glob('*/*.log')
    fewest = smallest * 6
    assert f'keeps at least {fewest} of 24 samples' in log.read_text()
    assert f'round 1 keeps {fewest} of 24 samples' in log.read_text()
    assert 'round 0 keeps' not in log.read_text()


@pytest.mark.parametrize('pacing', ['fewer_steps', 'smaller_batches'])
@pytest.mark.parametrize('keep, kept', [(0.5, 12), (0.8, 20)])
def test_a_share_is_kept_in_either_pacing(tmp_path, pacing, keep, kept):
    policy = dict(type='InfoBatchPolicy', keep=keep)
    cfg = light_config(
        tmp_path, EPOCHS, samples=24, policy=policy, pacing=pacing
    )
    cfg.log_level = 'INFO'
    toys.train(cfg)
    lines = (tmp_path / 'infobatch.jsonl').read_text().splitlines()
    found = [json.loads(line)['kept'] for line in lines]
    if pacing == 'smaller_batches':
        kept = round(24 * keep)
    assert found == [24] + [kept] * (len(found) - 2) + [24]
    (log,) = tmp_path.glob('*/*.log')
    missed = f'round 1 keeps {kept} of 24 samples, where policy.keep asks'
    assert (missed in log.read_text()) == (kept != round(24 * keep))


def test_batches_that_cannot_be_smaller_are_refused(tmp_path):
    cfg = light_config(tmp_path / 'a', EPOCHS, batch_size=2)
    with pytest.raises(ValueError, match='batch_size is 2 and smallest_batch'):
        toys.train(cfg)
    # A run that prunes nothing loses nothing by it.
    none = dict(type='NoPruningPolicy')
    toys.train(light_config(tmp_path / 'b', EPOCHS, batch_size=2, policy=none))


@MODELS.register_module()
class Summing(light.LightModel):
    """A model whose head says that its loss is a sum over the batch."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head.criterion = nn.CrossEntropyLoss(reduction='sum')


def test_a_loss_that_is_a_sum_takes_fewer_steps(tmp_path):
    """Whatever the name that the head has for it."""
    cfg = light.config(tmp_path / 'a', EPOCHS, model=dict(type='Summing'))
    cfg.custom_hooks[0].pop('pacing', None)
    assert toys.hook_of(toys.train(cfg)).run.pacing == 'fewer_steps'
    cfg = light_config(tmp_path / 'b', EPOCHS, model=dict(type='Summing'))
    with pytest.raises(ValueError, match=r'CrossEntropyLoss\).*mean.*fewer'):
        toys.train(cfg)


@pytest.mark.parametrize('pacing', ['fewer_steps', 'smaller_batches'])
@pytest.mark.parametrize('begin', [0, 20])
def test_what_waits_for_an_iteration_may_wait_for_ever(
    tmp_path, pacing, begin
):
    cfg = light_config(tmp_path, EPOCHS, pacing=pacing)
    cfg.log_level = 'WARNING'
    cfg.custom_hooks.append(dict(type='EMAHook', begin_iter=begin))
    toys.train(cfg)
    (log,) = tmp_path.glob('*/*.log')
    is_told = 'or never: EMAHook (begin_iter=20). Lower' in log.read_text()
    assert is_told == (pacing == 'fewer_steps' and begin > 0)


@DATA_SAMPLERS.register_module()
class OwnBatchSampler(BatchSampler):
    """A batch sampler of the user's."""

    def __init__(self, sampler, batch_size):
        super().__init__(sampler, batch_size, False)


def test_a_batch_sampler_of_the_users_is_refused(tmp_path):
    loader = dict(batch_sampler=dict(type='OwnBatchSampler'))
    cfg = light_config(tmp_path, EPOCHS, train_dataloader=loader)
    with pytest.raises(ValueError, match='OwnBatchSampler, which decides'):
        toys.train(cfg)


@pytest.mark.parametrize('settings, pacing, said', [
    ({}, 'smaller_batches', "pacing='smaller_batches': a round has the 6"),
    (
        dict(batch_size=2),
        'fewer_steps',
        "pacing='fewer_steps' is taken: train_dataloader.batch_size is 2",
    ),
    (
        dict(train_dataloader=dict(batch_sampler=dict(type='OwnBatchSampler'))),
        'fewer_steps',
        "pacing='fewer_steps' is taken: train_dataloader.batch_sampler is Own",
    ),
])  # fmt: skip
def test_by_default_batches_are_smaller_where_they_can_be(
    tmp_path, settings, pacing, said
):
    cfg = light.config(tmp_path, EPOCHS, samples=24, **settings)
    cfg.custom_hooks[0].pop('pacing', None)  # what the environment may ask
    cfg.log_level = 'INFO'
    hook = toys.hook_of(toys.train(cfg))
    assert hook.run.pacing == pacing and hook.run.rounds_pruned
    (log,) = tmp_path.glob('*/*.log')
    assert said in log.read_text()


def test_a_policy_that_keeps_too_few_is_an_error():
    plan = RandomPolicy(0.5).plan(SCORES, generator=torch.Generator())
    with pytest.raises(ValueError, match='the policy kept 3 of 6 .*at_least'):
        Dealing(2, 6).paced(plan, 6)


@pytest.mark.parametrize('name, value', [
    ('pacing', 'slower'),
    ('smallest_batch', 0),
    ('smallest_batch', 1.5),
    ('smallest_batch', True),
])  # fmt: skip
def test_settings_are_checked_before_anything_is_built(name, value):
    cfg = toys.config('unused', pruned=False)
    with pytest.raises(ValueError, match=f'{name}={value!r} is not'):
        enable(cfg, **{name: value})


# Ways in


def by_enable(cfg):
    return enable(cfg, pacing='smaller_batches')


def by_override(cfg):
    import infobatch_mm.override  # noqa: F401

    cfg.custom_imports = dict(imports=['infobatch_mm.override'])
    cfg.train_cfg.infobatch = dict(pacing='smaller_batches')
    return cfg


def by_default_hooks(cfg):
    kind = 'infobatch_mm.override.PruneHook'
    cfg.default_hooks.infobatch = dict(type=kind, pacing='smaller_batches')
    return cfg


@pytest.mark.parametrize('way', [by_enable, by_override, by_default_hooks])
def test_every_way_in_deals_the_same_batches(tmp_path, way):
    explicit = paced(toys.config, tmp_path / 'a', samples=16, epochs=3)
    _, expected = train(explicit)
    cfg = toys.config(tmp_path / 'b', pruned=False, samples=16, epochs=3)
    runner, rounds = train(way(cfg))
    assert rounds == expected and runner.iter == 12


# Resuming


@LOOPS
@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, loop, workers):
    settings = dict(every=1, workers=workers)
    reference = tmp_path / 'reference'
    run_config(partial(paced, resumable, reference, loop, **settings), False)
    assert len({line['kept'] for line in rounds_of(reference)}) > 1
    for iters in (9,) if workers else (6, 9):
        stopped = tmp_path / str(iters)
        make = partial(paced, resumable, stopped, loop, **settings)
        with pytest.raises(KeyboardInterrupt):
            run_config(make, False, [StopAfter(iters)])
        child = Child(run_config, make, True, ())
        assert child.join(timeout=300) == 0
        assert_same_end(stopped, reference)


def resumed_round(rounds, number):
    """Return what a Diary has of the round within which a run was resumed.

    It makes an entry for each of its batches, up to the round's number.
    """
    parts = rounds[: number + 1]
    return {
        name: [batch for part in parts for batch in part[name]]
        for name in ('ids', 'weights')
    }


CHANGES = [
    ('fewer_steps', 'smaller_batches'),
    ('smaller_batches', 'fewer_steps'),
]


@pytest.mark.parametrize('before, after', CHANGES)
@LOOPS
def test_a_changed_pacing_goes_on_within_the_round(
    tmp_path, loop, before, after
):
    make = partial(resumable, tmp_path, loop, every=1, samples=48)
    # A full round has 12 steps; the next one is in its middle.
    with pytest.raises(KeyboardInterrupt):
        run_config(partial(paced, make, pacing=before), False, [StopAfter(16)])
    saved = last_checkpoint(tmp_path)['infobatch']
    kept, done = len(saved['indices']), saved['samples_done']
    assert 0 < done < kept == saved['drawn'] < 48
    cfg = paced(make, pacing=after, resume=True)
    cfg.log_level = 'INFO'
    runner, rounds = train(cfg)
    rest = resumed_round(rounds, 1)
    trained = [i for ids in rest['ids'] for i in ids]
    assert trained == saved['indices'][done:].tolist()
    factor = kept / 48 if after == 'smaller_batches' else 48 / kept
    weights = torch.tensor([w for step in rest['weights'] for w in step])
    torch.testing.assert_close(weights, saved['weights'][done:] * factor)
    sizes = [len(ids) for ids in rest['ids']]
    if after == 'smaller_batches':
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == round((1 - done / kept) * 12)
    else:
        assert set(sizes[:-1]) == {4}
    hook = toys.hook_of(runner)
    assert hook.clock.now == hook.clock.budget
    assert f'pacing={before!r}; from here' in next(
        path.read_text() for path in sorted(tmp_path.glob('*/*.log'))[-1:]
    )


def ranks_config(work_dir, loop, batch_size, samples=48, overrides=None):
    return light_config(
        work_dir,
        loop,
        batch_size=batch_size,
        samples=samples,
        smallest=1,
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)
        ),
        **(overrides or {}),
    )


@pytest.mark.parametrize('samples', [48, 50])
@pytest.mark.parametrize('loop', [dict(EPOCHS, max_epochs=4), ITERS])
def test_ranks_make_equal_batches_of_one_plan(tmp_path, loop, samples):
    seen = run_on_ranks(2, tmp_path, ranks_config, loop, 4, samples)
    assert seen['iters'] == seen['now'] == seen['budget']
    pruned = 0
    for ranks in zip(*seen['diaries'], strict=True):
        plan, sizes, trained = ranks[0]['plan'], [], []
        for step in zip(*(rank['ids'] for rank in ranks), strict=True):
            assert len({len(ids) for ids in step}) == 1
            sizes.append(len(step[0]))
            trained += [i for ids in zip(*step, strict=True) for i in ids]
        assert trained[: len(plan)] == plan[: len(trained)]
        if len(trained) == len(plan) < 48:
            pruned += 1
            assert max(sizes) - min(sizes) <= 1
            weights = sum(sum(w) for rank in ranks for w in rank['weights'])
            assert weights == pytest.approx(len(plan))
    assert pruned


def test_ranks_train_as_one_process_would(tmp_path):
    # Half of 48 each time, which both numbers of ranks deal alike.
    half = dict(policy=dict(type='RandomPolicy', prune_ratio=0.5))
    loop = dict(EPOCHS, max_epochs=4)
    one = run_on_ranks(1, tmp_path / 'a', ranks_config, loop, 8, 48, half)
    two = run_on_ranks(2, tmp_path / 'b', ranks_config, loop, 4, 48, half)
    assert one['iters'] == two['iters']
    assert len(one['diaries'][0][1]['plan']) == 24
    for key, value in one['weights'].items():
        assert torch.allclose(two['weights'][key], value, atol=1e-6), key


@pytest.mark.parametrize('batch_size', [4, 8])
@pytest.mark.parametrize('loop', [dict(EPOCHS, max_epochs=4), ITERS])
@pytest.mark.parametrize('before, after', [(1, 2), (2, 1)])
def test_resumed_on_another_number_of_ranks(
    tmp_path, loop, before, after, batch_size
):
    """With batches of as many samples on each rank, or over all of them."""
    global_batch = 4 * before
    run_on_ranks(before, tmp_path, ranks_config, loop, 4)
    steps = -(-48 // global_batch)
    name = tmp_path / f'iter_{-(-(steps + 1) // 3) * 3}.pth'
    saved = torch.load(name, weights_only=False)['infobatch']
    kept, done = len(saved['indices']), saved['samples_done']
    assert 0 < done < kept < 48
    overrides = dict(load_from=str(name), resume=True)
    each = 4 if batch_size == 4 else global_batch // after
    again = run_on_ranks(
        after, tmp_path, ranks_config, loop, each, 48, overrides
    )
    diary = [resumed_round(d, saved['round']) for d in again['diaries']]
    trained = [i for rank in diary for ids in rank['ids'] for i in ids]
    rest = saved['indices'][done:].tolist()
    padding = saved['indices'][: len(trained) - len(rest)].tolist()
    assert sorted(trained) == sorted(rest + padding) and len(padding) < after
    sizes = [
        {len(ids) for ids in step}
        for step in zip(*(rank['ids'] for rank in diary), strict=True)
    ]
    assert all(len(step) == 1 for step in sizes)
    flat = [size for step in sizes for size in step]
    assert max(flat) - min(flat) <= 1
    assert again['now'] == again['budget']
