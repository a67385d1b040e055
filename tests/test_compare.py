"""infobatch compare, and its library: from arms to statistics and verdict."""

import copy
import io
import json
import math
import multiprocessing
import signal
import statistics
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import light
import numpy as np
import pytest
import torch
import toys
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS, PARAM_SCHEDULERS
from mmengine.runner import Runner
from scipy import stats

from infobatch_mm import enable, override
from infobatch_mm.commands import compare as command
from infobatch_mm.commands.running import build_runner
from infobatch_mm.compare import (
    arms,
    parts,
    planning,
    processes,
    running,
    summary,
)
from infobatch_mm.compare.arms import ALL_DATA, Arm, Budget
from infobatch_mm.compare.cells import (
    Study,
    append_result,
    budget_of,
    check_same,
    config_of,
    order,
    read_results,
)
from infobatch_mm.compare.parts import (
    BenchmarkHook,
    InfiniteSubsetSampler,
    UnscaledPolicy,
)
from infobatch_mm.compare.setup import (
    Setup,
    config_hash,
    samples_budget,
    samples_of_epoch,
    stock_config,
    stretch,
)
from infobatch_mm.compare.statistics import (
    Paired,
    judge,
    paired,
    pooled_deviation,
    power,
    rank_test,
    seeds_needed,
    seeds_to_decide,
    verdict,
)
from infobatch_mm.compare.stock import (
    is_higher_better,
    keep_one_checkpoint,
    metric_of,
    unpruned,
)
from infobatch_mm.compare.tables import (
    arms_table,
    class_gap,
    class_names,
    controls_table,
    differences,
    draw,
    efficiency_table,
    mean_curve,
)
from infobatch_mm.pacing import Dealing
from infobatch_mm.records import read_json_lines

ROOT = Path(__file__).parents[1]
DIGITS = Setup(ROOT / 'benchmarks/configs/digits.py', 'mIoU')
BUDGET = Budget(share=0.8, prune_ratio=0.3)


@pytest.fixture(scope='module')
def read():
    return stock_config(DIGITS)


@pytest.fixture
def stock(read):
    return copy.deepcopy(read)


def change(arm, cfg, budget=BUDGET, seed=0):
    return arm.change(cfg, budget, seed)


# What all have in common


def test_a_config_is_measured_and_otherwise_its_own(stock):
    own = Config.fromfile(DIGITS.config)
    imports = stock.custom_imports.pop('imports')
    assert imports[-1:] == [*{*DIGITS.parts}]  # one module has both
    assert stock.custom_hooks.pop() == dict(type='BenchmarkHook')
    for name in ('val_evaluator', 'test_evaluator'):
        assert stock[name].pop('type') == 'ClassIoUMetric'
        assert own[name].pop('type') == 'IoUMetric'
    for name in ('custom_imports', 'custom_hooks'):
        stock.pop(name, None), own.pop(name, None)
    assert stock.to_dict() == own.to_dict()


def test_a_config_with_several_evaluators_and_no_test(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(
        "custom_imports = dict(imports='infobatch_mm')\n"
        "val_evaluator = [dict(type='Accuracy'), dict(type='IoUMetric')]\n"
        'train_dataloader = dict(num_workers=2, persistent_workers=True)\n'
    )
    cfg = stock_config(Setup(path, 'mIoU', num_workers=0))
    types = [evaluator.type for evaluator in cfg.val_evaluator]
    assert types == ['Accuracy', 'mmseg.ClassIoUMetric']  # there is no scope
    imports = ['infobatch_mm', DIGITS.parts.hook]
    assert cfg.custom_imports.imports == imports
    loader = dict(num_workers=0, persistent_workers=False)
    assert cfg.train_dataloader == loader


def test_a_model_is_laid_out_channels_last():
    cfg = stock_config(DIGITS._replace(channels_last=True))
    hook = HOOKS.build(cfg.custom_hooks[-1])
    model = torch.nn.Conv2d(3, 4, 3)
    hub = MessageHub.get_instance('channels_last')
    hook.before_train(SimpleNamespace(model=model, message_hub=hub))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_budget_is_that_of_the_schedule():
    assert samples_budget(DIGITS, 1024) == 1920 * 32
    assert samples_budget(DIGITS._replace(length=0.5), 1024) == 960 * 32


@pytest.mark.parametrize('share', [0.1, 0.5, 0.731, 0.77777, 0.9, 1 / 3, 3])
def test_a_stretched_run_validates_as_often(stock, share):
    stretch(stock, share)
    end, interval = stock.train_cfg.max_iters, stock.train_cfg.val_interval
    assert end == round(1920 * share)
    # mmengine validates at each multiple, and at the end.
    assert len({*range(interval, end, interval), end}) == 6


def test_schedulers_of_several_optimizers_and_milestones_are_stretched():
    steps = dict(type='MultiStepLR', milestones=[60, 80], by_epoch=True)
    warmup = dict(type='LinearLR', begin=0, end=10)
    cfg = Config(
        dict(
            train_cfg=dict(max_epochs=100),
            param_scheduler=dict(a=[warmup, steps], b=dict(steps)),
        )
    )
    stretch(cfg, 0.5)
    assert cfg.train_cfg == dict(max_epochs=50, val_interval=1)
    (first, second), third = cfg.param_scheduler.values()
    assert (first.begin, first.end) == (0, 5)
    assert second.milestones == third.milestones == [30, 40]


SCHEDULES = dict(
    warmup=(
        dict(type='LinearLR', begin=0, end=1, convert_to_iter_based=True),
        dict(begin=0, end=1),
    ),
    after=(dict(type='CosineAnnealingLR', begin=1, T_max=11, end=12),
           dict(begin=1, T_max=2, end=3)),
    short=(dict(type='PolyLR', begin=5, end=6), dict(begin=1, end=2)),
    steps=(dict(type='StepLR', step_size=1), dict(step_size=1)),
    cycle=(dict(type='OneCycleLR', total_steps=40), dict(total_steps=10)),
    restarts=(
        dict(type='CosineRestartLR', periods=[10, 6, 1]),
        dict(periods=[2, 2, 1]),
    ),
)  # fmt: skip


@pytest.mark.parametrize('scheduler, expected', SCHEDULES.values())
def test_schedulers_are_stretched_but_not_away(scheduler, expected):
    train = dict(max_epochs=12, val_interval=1)
    cfg = Config(dict(train_cfg=train, param_scheduler=[scheduler]))
    stretch(cfg, 0.25)
    (found,) = cfg.param_scheduler
    assert {key: found[key] for key in expected} == expected


def rates(cfg):
    """Return the learning rates of a run by epochs, one for each."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build({**each, 'optimizer': optimizer})
        for each in cfg.param_scheduler
    ]
    found = []
    for _ in range(cfg.train_cfg.max_epochs):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


WARMUP = dict(type='LinearLR', start_factor=0.1, begin=0, end=2)


COSINE = dict(type='CosineAnnealingLR', begin=2, end=16)


@pytest.mark.parametrize(
    'schedulers, epochs, factor, expected',
    [
        ([WARMUP], 3, 0.72, [0.1, 1.0]),
        ([WARMUP, COSINE], 16, 0.25, [0.1, 1.0, 0.75, 0.25]),
        ([WARMUP | dict(end=3)], 12, 0.25, [0.1, 1.0, 1.0]),
        ([dict(type='PolyLR', begin=8, end=10)], 10, 0.4, [1, 1, 1, 0]),
        ([COSINE | dict(begin=8, end=10)], 10, 0.4, [1, 1, 1, 0.5]),
        ([dict(type='PolyLR', begin=2, end=4)], 4, 0.5, [1, 0]),
    ],
)
def test_what_begins_and_ends_still_does(schedulers, epochs, factor, expected):
    """mmengine's schedulers of one step begin, and never end."""
    train = dict(max_epochs=epochs, val_interval=1)
    cfg = Config(dict(train_cfg=train, param_scheduler=schedulers))
    stretch(cfg, factor)
    assert rates(cfg) == pytest.approx(expected)


@pytest.mark.parametrize('share', [0.65, 0.7, 0.74, 0.76, 0.8])
@pytest.mark.parametrize(
    'scheduler',
    [
        dict(type='StepLR', step_size=1, gamma=0.98),
        dict(type='StepLR', step_size=2, gamma=0.95),
        dict(type='ExponentialLR', gamma=0.98),
    ],
)
def test_a_rate_that_decays_by_a_factor_ends_where_it_did(scheduler, share):
    train = dict(max_epochs=120, val_interval=1)
    cfg = Config(dict(train_cfg=train, param_scheduler=[scheduler]))
    before = rates(cfg)
    stretch(cfg, share)
    after = rates(cfg)
    for place in 0.5, 1.0:
        full, short = (
            math.log(x[int(place * len(x)) - 1]) for x in (before, after)
        )
        assert short == pytest.approx(full, rel=0.05)


@pytest.mark.parametrize('share', [0.3, 0.62, 0.7, 0.78])
def test_periods_end_with_the_schedule(share):
    """Each rounded by itself would leave the last one unfinished."""
    train = dict(max_epochs=100, val_interval=1)
    restart = dict(
        type='CosineRestartLR',
        periods=[25] * 4,
        restart_weights=[1] * 4,
        eta_min=0.0,
    )
    cfg = Config(dict(train_cfg=train, param_scheduler=[restart]))
    stretch(cfg, share)
    assert sum(cfg.param_scheduler[0].periods) == cfg.train_cfg.max_epochs
    assert rates(cfg)[-1] < 0.05


def test_the_default_factor_of_a_decay():
    train = dict(max_epochs=10, val_interval=1)
    steps = [dict(type='StepLR', step_size=5), dict(type='ExponentialLR')]
    cfg = Config(dict(train_cfg=train, param_scheduler=steps))
    stretch(cfg, 0.5)
    step, decay = cfg.param_scheduler
    assert step == dict(type='StepLR', step_size=2, gamma=0.1 ** (2 / 2.5))
    assert decay.gamma == pytest.approx(0.1**2)


def test_edges_that_are_not_set():
    train = dict(max_epochs=12, val_interval=1)
    cosine = dict(type='CosineAnnealingLR', begin=0, end=12, T_max=None)
    cfg = Config(dict(train_cfg=train, param_scheduler=[cosine]))
    stretch(cfg, 0.5)
    assert cfg.param_scheduler[0] == {**cosine, 'end': 6}


def test_what_hooks_count_is_stretched():
    train = dict(max_epochs=300, val_interval=10, dynamic_intervals=[(280, 1)])
    switch = [dict(action_epoch=None), dict(action_epoch=280, loss=None)]
    hooks = [
        dict(type='EMAHook', begin_epoch=250),
        dict(type='EMAHook', begin_iter=1000),
        dict(type='SwitchRecipeHook', schedule=switch),
        dict(type='YOLOXModeSwitchHook', num_last_epochs=15),
    ]
    cfg = Config(dict(train_cfg=train, custom_hooks=hooks))
    stretch(cfg, 0.7, of_iters=1.0)
    assert cfg.train_cfg.dynamic_intervals == [(196, 1)]
    epochs, iters, recipe, mode = cfg.custom_hooks
    assert mode.num_last_epochs == 10
    assert (epochs.begin_epoch, iters.begin_iter) == (175, 1000)
    assert [each.action_epoch for each in recipe.schedule] == [None, 196]


def test_metrics_that_are_no_numbers_are_left_out():
    hook = BenchmarkHook()
    hook.state = dict(
        samples_seen=3, train_seconds=1.0, cpu_seconds=1.0, validations=[]
    )
    metrics = dict(top1=torch.tensor(71.23456), of_class=[1.0, 2.0], at='x')
    hook.after_val_epoch(SimpleNamespace(iter=7), metrics)
    assert hook.state['validations'] == [
        dict(
            iter=7,
            samples_seen=3,
            train_seconds=1.0,
            cpu_seconds=1.0,
            top1=71.23456,
        )
    ]


def test_an_evaluator_of_the_same_name_is_left_alone(stock, tmp_path):
    stock.val_evaluator = dict(type='light.IoUMetric', own=1)
    stock.dump(tmp_path / 'config.py')
    found = stock_config(Setup(tmp_path / 'config.py', 'mIoU'))
    assert found.val_evaluator == dict(type='light.IoUMetric', own=1)


def test_passes_of_an_iterated_loader_have_a_smaller_last_batch(
    stock, tmp_path
):
    stock.train_cfg.max_iters = 16
    stock.train_dataloader.batch_size = 8
    kinds = ('InfiniteSampler', 128), ('DefaultSampler', 80), (None, 80)
    for sampler, samples in kinds:
        if sampler:
            stock.train_dataloader.sampler.type = sampler
        else:
            del stock.train_dataloader.sampler
        stock.dump(tmp_path / f'{sampler}.py')
        setup = Setup(tmp_path / f'{sampler}.py', 'mIoU')
        assert samples_budget(setup, 10) == samples


# Arms


def test_full_is_stock(stock):
    expected = stock.to_dict()
    assert change(arms.full(), stock, ALL_DATA).to_dict() == expected


def test_only_arms_of_equal_cost_wait_for_the_pruned_run():
    waits = {name: arm.at_cost_of for name, arm in arms.core().items()}
    assert {arm for arm, needed in waits.items() if needed is None} == {
        'infobatch',
        'full',
        'infobatch-fewer-steps',
    }
    assert {*waits.values()} == {None, 'infobatch'}


def test_short_shortens_the_schedule_with_its_intervals(stock):
    cfg = change(arms.short(), stock)
    assert cfg.train_cfg.max_iters == 1536
    assert cfg.param_scheduler[0]['end'] == 1536
    assert cfg.train_cfg.val_interval == 256
    assert cfg.train_dataloader.sampler.type == 'InfiniteSampler'


def test_random_prunes_as_much_with_the_same_options(stock):
    options = dict(policy=dict(type='QuantilePolicy'), delta=0.9)
    cfg = change(arms.core(**options)['random'], stock)
    hook = cfg.custom_hooks[-1]
    policy = dict(type='RandomPolicy', prune_ratio=0.3)
    assert hook == dict(
        type='infobatch_mm.InfoBatchHook',
        pacing=None,
        score=None,
        policy=policy,
        delta=0.9,
    )
    assert cfg.train_cfg.max_iters == 1920


@pytest.mark.parametrize('arm', [arms.short_lr(), arms.infobatch_lr()])
def test_lr_of_fewer_steps(stock, arm):
    lr = stock.optim_wrapper.optimizer.lr
    cfg = change(arm, stock)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr / 0.8)


@pytest.mark.parametrize('share', [0.81, 0.5, 0.337])
def test_small_batches_make_the_steps_of_the_full_run(stock, share):
    cfg = change(arms.small_batch(), stock, Budget(share, 0.0))
    batch, iters = cfg.train_dataloader.batch_size, cfg.train_cfg.max_iters
    assert batch == round(32 * share)
    # Equal samples come first: the rounding of the batch goes to the steps.
    assert batch * iters == pytest.approx(1920 * 32 * share, abs=batch / 2)
    assert iters == pytest.approx(1920, rel=0.5 / batch)
    assert cfg.param_scheduler[0]['end'] == iters


EPOCHS = Config(
    dict(
        train_cfg=dict(max_epochs=20, val_interval=2),
        train_dataloader=dict(batch_size=16),
        param_scheduler=[
            dict(type='LinearLR', begin=0, end=50, by_epoch=False),
            dict(type='PolyLR', begin=0, end=20),
        ],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    )
)


def test_small_batches_in_iterations_by_a_scheduler_of_epochs():
    """Which has more iterations an epoch, of as many samples."""
    cfg = copy.deepcopy(EPOCHS)
    cfg.train_cfg = dict(max_iters=2000, val_interval=100)
    cfg.param_scheduler = [
        dict(
            type='MultiStepLR', milestones=[10, 15], convert_to_iter_based=True
        )
    ]
    cfg = change(arms.small_batch(), cfg, Budget(0.5, 0.0))
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_iters) == (
        8,
        2000,
    )
    assert cfg.param_scheduler[0].milestones == [5, 8]


@pytest.mark.parametrize('samples', [60, 80, 367, 1537])
@pytest.mark.parametrize('ends', ['whole', 'few'])
def test_schedules_by_iterations_are_those_of_the_small_batches(samples, ends):
    """In an epoch run, whose epochs have a smaller last batch."""
    steps = -(-samples // 16) * 20
    end = steps if ends == 'whole' else steps // 4
    cfg = copy.deepcopy(EPOCHS)
    cfg.param_scheduler = [
        dict(type='PolyLR', begin=0, end=end, by_epoch=False),
        dict(type='OneCycleLR', total_steps=end, by_epoch=False),
        dict(type='ExponentialLR', gamma=0.9, convert_to_iter_based=True),
    ]
    cfg = change(arms.small_batch(), cfg, Budget(0.73, 0.0, samples=samples))
    loader, (poly, cycle, decay) = cfg.train_dataloader, cfg.param_scheduler
    batches, rest = divmod(samples, loader.batch_size)
    batches += bool(rest) and not loader.get('drop_last')
    made = batches * cfg.train_cfg.max_epochs
    assert poly['end'] == cycle['total_steps'] == round(end * made / steps)
    # Stepped in each iteration, it ends where that of the full run does.
    assert decay['gamma'] ** made == pytest.approx(0.9**steps)


def test_small_batches_of_whole_epochs_have_the_steps_of_the_full_run():
    cfg = change(arms.small_batch(), copy.deepcopy(EPOCHS), Budget(0.73, 0.0))
    epochs, batch = cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size
    assert (epochs, batch) == (15, 12)  # both three quarters
    samples = 1536
    assert epochs * samples / batch == 20 * samples / 16
    warmup, rest = cfg.param_scheduler
    assert (warmup['end'], rest['end']) == (50, 15)
    assert cfg.train_dataloader.get('drop_last') is None


@pytest.mark.parametrize('loop', ['max_epochs', 'max_iters'])
def test_small_batches_of_slices_are_of_the_same_samples(loop):
    loader = dict(
        batch_size=10,
        num_batch_per_epoch=50,
        sampler=dict(type='InfiniteSampler'),
    )
    length = {'max_epochs': 20, 'max_iters': 1000}[loop]
    cfg = Config(
        {
            **EPOCHS.to_dict(),
            'train_cfg': {loop: length, 'val_interval': 1},
            'train_dataloader': loader,
        }
    )
    cfg = change(arms.small_batch(), cfg, Budget(0.7, 0.0, samples=1000))
    loader = cfg.train_dataloader
    assert loader.batch_size == 7
    # mmengine takes the first so many samples.
    assert loader.num_batch_per_epoch * 7 == pytest.approx(500, abs=4)
    iters = cfg.train_cfg[loop]
    if loop == 'max_epochs':
        iters *= loader.num_batch_per_epoch
    assert iters == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize('batch, words', [(2, 'of batch_size 2'), (8, '')])
def test_a_batch_that_is_too_small_to_round_is_told_of(stock, batch, words):
    stock.train_dataloader.batch_size = batch
    assert arms.caution('small-batch', stock).startswith(words)
    assert bool(arms.caution('small-batch', stock)) == bool(words)
    assert ('batch of 1' in arms.caution('small-batch', stock)) == bool(words)
    assert arms.caution('short', stock) == ''


def test_early_stopping_is_told_of(stock):
    stock.custom_hooks.append(dict(type='EarlyStoppingHook'))
    assert 'EarlyStoppingHook' in arms.caution('short', stock)


def test_epochs_that_are_too_few_to_round_are_told_of():
    cfg = Config(
        dict(
            train_cfg=dict(max_epochs=12),
            train_dataloader=dict(batch_size=4),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        )
    )
    assert arms.caution('short', cfg).endswith('differ by up to 4%')
    assert arms.caution('random', cfg) == ''
    every = arms.caution('short-lr', cfg), arms.caution('small-batch', cfg)
    assert all('; of 12 epochs' in text for text in every)  # no other is lost


def test_a_last_batch_of_one_sample_is_dropped():
    budget = Budget(0.73, 0.0, samples=12 * 128 + 1)
    cfg = change(arms.small_batch(), copy.deepcopy(EPOCHS), budget)
    assert cfg.train_dataloader.drop_last


@pytest.mark.parametrize(
    'samples, loader',
    [
        (100, dict(batch_size=32, drop_last=True)),
        (100, dict(batch_size=32, num_batch_per_epoch=2)),
        (1000, dict(batch_size=64, drop_last=True, num_batch_per_epoch=9)),
        (333, dict(batch_size=16, drop_last=True)),
        (333, dict(batch_size=16)),
    ],
)
def test_small_batches_cost_as_much_whatever_an_epoch_is(samples, loader):
    """Count what a run by epochs sees, batch by batch."""

    def steps_of(cfg):
        loader = cfg.train_dataloader
        size = loader.batch_size
        batches = [len(b) for b in torch.arange(samples).split(size)]
        if batches[-1] < size and loader.get('drop_last'):
            batches.pop()
        batches = batches[: loader.get('num_batch_per_epoch')]
        return batches * cfg.train_cfg.max_epochs

    cfg = copy.deepcopy(EPOCHS)
    cfg.train_dataloader = loader
    full = steps_of(cfg)
    assert sum(full) == 20 * samples_of_epoch(loader, samples)
    budget = Budget(0.73, 0.0, samples=samples)
    cfg = change(arms.small_batch(), cfg, budget)
    small = steps_of(cfg)
    # Whole epochs, whole batches; with small data both are coarse.
    assert sum(small) == pytest.approx(0.73 * sum(full), rel=0.05)
    assert len(small) == pytest.approx(len(full), rel=0.25)


def test_small_batches_keep_a_learning_rate_that_mmengine_scales():
    cfg = copy.deepcopy(EPOCHS)
    cfg.auto_scale_lr = dict(enable=True, base_batch_size=256)
    cfg = change(arms.small_batch(), cfg, Budget(0.75, 0.0))
    # mmengine multiplies by batch over base.
    assert 12 / cfg.auto_scale_lr.base_batch_size == 16 / 256


def test_a_batch_of_one_can_be_made_no_smaller(stock):
    stock.train_dataloader.batch_size = 1
    with pytest.raises(ValueError, match='is 1 and .* small-batch'):
        change(arms.small_batch(), stock)


def test_infobatch_in_fewer_steps_has_its_options(stock):
    options = dict(
        policy=dict(type='QuantilePolicy'), pacing='smaller_batches'
    )
    cfg = change(arms.core(**options)['infobatch-fewer-steps'], stock)
    hook = cfg.custom_hooks[-1]
    assert hook['policy'] == dict(type='QuantilePolicy')
    assert hook['pacing'] == 'fewer_steps'


def test_the_digest_of_a_cell_tells_how_rounds_are_drawn_and_spent(stock):
    """The way of the paper is none, as it was the default once."""

    def digest(arm=arms.infobatch, **options):
        return config_hash(change(arm(delta=0.9, **options), stock))

    paper = digest(arms.infobatch_fewer_steps)
    assert paper == config_hash(enable(stock, delta=0.9))
    by_norm = digest(arms.infobatch_fewer_steps, score='gradient_norm')
    assert by_norm != paper
    others = [
        digest(**settings)
        for settings in (
            {},
            dict(score='image_mean'),
            dict(score='gradient_norm'),
            dict(pacing='smaller_batches'),
        )
    ]
    assert len({paper, *others}) == 5


def test_every_learning_rate_is_raised(stock):
    stock.optim_wrapper = dict(
        constructor='Two',
        a=dict(optimizer=dict(type='SGD', lr=0.4)),
        b=dict(optimizer=dict(type='AdamW', lr=0.2)),
    )
    stock.param_scheduler = [dict(type='OneCycleLR', eta_max=0.8)]
    cfg = change(arms.short_lr(), stock)
    wrapper = cfg.optim_wrapper
    assert wrapper.a.optimizer.lr == pytest.approx(0.5)
    assert wrapper.b.optimizer.lr == pytest.approx(0.25)
    assert cfg.param_scheduler[0].eta_max == pytest.approx(1.0)
    stock.optim_wrapper = dict(constructor='Own')
    with pytest.raises(ValueError, match='no optimizer with a learning rate'):
        change(arms.short_lr(), stock)


def test_adaptive_optimizers_are_told_of(stock):
    assert arms.caution('short-lr', stock) == ''
    stock.optim_wrapper.optimizer.type = 'AdamW'
    assert arms.caution('short-lr', stock).startswith('AdamW makes steps')
    assert arms.caution('short', stock) == ''


def test_a_subset_is_fixed():
    def first(count, seed):
        sampler = InfiniteSubsetSampler(
            range(20), share=0.4, subset_seed=seed, seed=5
        )
        return [i for i, _ in zip(sampler, range(count), strict=False)]

    passes = [set(first(8, 1)), set(first(16, 1)[8:])]
    assert passes[0] == passes[1] and len(passes[0]) == 8
    assert set(first(8, 2)) != passes[0]


def test_without_rescaling_the_same_samples_have_weight_one():
    policy = dict(type='InfoBatchPolicy')
    plans = [
        p.plan(torch.arange(100.0), generator=torch.Generator().manual_seed(0))
        for p in (
            UnscaledPolicy(policy, delta=0.875),
            UnscaledPolicy(policy, delta=0.875).policy,
        )
    ]
    assert torch.equal(plans[0].indices, plans[1].indices)
    assert plans[0].weights.unique().tolist() == [1.0]
    assert plans[1].weights.max() == 2
    dealing = Dealing(10, 10)
    plan = UnscaledPolicy(policy, delta=0.875).plan(
        torch.arange(100.0), generator=torch.Generator(), **dealing.limits
    )
    paced = dealing.paced(plan, 100)
    assert paced.weights.tolist() == pytest.approx([1.0] * len(plan))


# The file of finished runs


def result(arm, seed):
    return dict(
        suite='s', arm=arm, seed=seed, value=0.1 + seed, threshold=None
    )


def test_results_are_read_by_arm_and_seed(tmp_path):
    path = tmp_path / 'new' / 'results.jsonl'
    assert read_results(path, 's', ['full']) == {}
    for arm, seed in [('b', 2), ('a', 1), ('other', 0), ('b', 1)]:
        append_result(path, result(arm, seed))
    append_result(path, result('a', 3) | dict(suite='another'))
    found = read_results(path, 's', ['a', 'c', 'b'])
    assert list(found) == ['a', 'b'] and list(found['b']) == [1, 2]
    assert found['b'][2] == result('b', 2)


def test_a_torn_last_line_is_left_out_and_replaced(tmp_path):
    path = tmp_path / 'results.jsonl'
    append_result(path, result('a', 0))
    torn = json.dumps(result('a', 1))[:-9]
    for _ in range(2):
        with path.open('a') as file:
            file.write(torn)
        assert len(read_json_lines(path)) == 1
    append_result(path, result('a', 2))
    assert read_json_lines(path) == [result('a', 0), result('a', 2)]


def test_a_file_that_was_torn_at_its_first_line(tmp_path):
    path = tmp_path / 'results.jsonl'
    path.write_text('{"arm": "a", ')
    assert read_json_lines(path) == []
    append_result(path, result('a', 0))
    assert read_json_lines(path) == [result('a', 0)]


def test_a_broken_line_before_the_last_is_an_error(tmp_path):
    path = tmp_path / 'results.jsonl'
    path.write_text('{}\n{"arm": \n{}\n')
    with pytest.raises(ValueError, match='line 2'):
        read_json_lines(path)


def append_many(path, arm):
    for seed in range(50):
        append_result(path, result(arm, seed))


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / 'results.jsonl'
    context = multiprocessing.get_context('fork')
    writers = [
        context.Process(target=append_many, args=(path, arm)) for arm in 'abc'
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = read_results(path, 's', 'abc')
    for arm in 'abc':
        assert found[arm] == {s: result(arm, s) for s in range(50)}


# Intervals, verdicts and power over seeds


def test_the_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(70, 1, 8), rng.normal(70.3, 1, 8)
    gap = paired(ours - theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.9)
    assert (gap.low, gap.high) == pytest.approx(tuple(expected))
    assert gap.mean == pytest.approx((ours - theirs).mean())


@pytest.mark.parametrize(
    ('differences', 'expected'),
    [
        ([0.1, -0.1, 0.0, 0.05], 'lossless'),
        ([-0.3, -0.31, -0.29], 'lossless'),
        ([-2.0, -2.1, -1.9], 'lossy'),
        ([-2.0, 2.0, 0.0], 'inconclusive'),
        ([0.0], 'inconclusive'),
    ],
)
def test_verdict(differences, expected):
    assert verdict(paired(differences)) == expected


def test_power_is_the_share_of_lossless_verdicts():
    rng = np.random.default_rng(0)
    found = [
        verdict(paired(rng.normal(0, 0.6, 8))) == 'lossless'
        for _ in range(4000)
    ]
    assert power(0.6, 8) == pytest.approx(np.mean(found), abs=0.03)
    count = seeds_needed(0.6, 0.8)
    assert power(0.6, count - 1) < 0.8 <= power(0.6, count)


def test_rank_test_is_the_exact_permutation_test():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=6), rng.normal(size=6)

    def statistic(x):
        return stats.spearmanr(x, y).statistic

    exact = stats.permutation_test(
        [x], statistic, permutation_type='pairings', n_resamples=np.inf
    )
    expected = pytest.approx((exact.statistic, exact.pvalue))
    assert rank_test([(x, y)]) == expected


def test_ranks_are_compared_within_groups():
    rises = ([1, 2, 3], [4, 5, 6])
    # Two of the 36 pairs of orders are as far: both right, both reversed.
    assert rank_test([rises, rises]) == pytest.approx((1.0, 2 / 36))
    falls = ([1, 2, 3], [60, 50, 40])
    assert rank_test([rises, falls]) == pytest.approx((0.0, 1.0))
    for silent in [1, 1, 1], [1, math.nan, 2]:
        assert np.isnan(rank_test([rises, (silent, [4, 5, 6])])).all()


# Tables and pictures, from results that are known


def runs(*values, seen=100):
    return {
        seed: dict(value=value, samples_seen=seen, samples_budget=100)
        for seed, value in enumerate(values)
    }


def test_arms_are_compared_seed_by_seed():
    results = dict(
        infobatch=runs(70.0, 71.0, 72.5, seen=75),
        full=runs(70.1, 71.1),
        other=runs(60.0, 61.1, seen=75),
    )
    lines = arms_table(results, core=['infobatch', 'full']).splitlines()
    assert lines[2] == (
        '| `infobatch` | 3 | 71.17 ± 1.26 | -0.10 [-0.10, -0.10] | 75.0% '
        '| lossless |'
    )
    assert lines[3] == '| `full` | 2 | 70.60 ± 0.71 |  | 100.0% |  |'
    assert lines[4].startswith('| `other` (exploratory) | 2 ')
    assert lines[4].endswith('-10.05 [-10.37, -9.73] | 75.0% | lossy |')
    assert differences(results, 'full', 'missing') == []


def test_controls_that_were_not_run_are_named():
    results = dict(full=runs(1.0), infobatch=runs(1.0))
    text = controls_table(results)
    assert text.endswith('`random` and `short`: not run.')


def test_a_class_is_compared_at_the_last_validation():
    def run(first, last):
        return dict(validations=[{'IoU/sky': first}, {'IoU/sky': last}])

    results = dict(
        full={0: run(1.0, 50.0), 1: run(1.0, 60.0)},
        infobatch={0: run(9.0, 48.0), 1: run(9.0, 57.0), 2: run(9.0, 9.0)},
    )
    assert class_names(results) == ['sky']
    gap = class_gap(results, 'infobatch', 'sky')
    assert (gap.seeds, gap.mean) == (2, -2.5)
    assert gap.deviation == pytest.approx(statistics.stdev([-2.0, -3.0]))


def test_efficiency_is_time_saved_over_samples_saved():
    def run(samples, cpu, wall):
        return dict(samples_seen=samples, cpu_seconds=cpu, train_seconds=wall)

    results = dict(
        full={0: run(100, 50.0, 100.0), 1: run(100, 40.0, 80.0)},
        infobatch={
            0: run(80, 41.0, 90.0),
            1: run(75, 30.0, 60.0),
            2: run(75, 30.0, 60.0),  # not yet a pair
        },
    )
    text = efficiency_table({'digits': results})
    assert '| `digits` | 2 | 22.5% | 21.5% | 0.95 [' in text
    assert '] | 17.5% | 0.75 [' in text


# A small study, run to the end: cells, their results, and going on


def small_study(folder):
    setup = Setup(
        ROOT / 'benchmarks/configs/digits.py',
        'mIoU',
        options={
            'train_dataloader.dataset.num_scenes': 64,
            'train_dataloader.batch_size': 8,
            'val_dataloader.dataset.num_scenes': 8,
            'train_cfg.max_iters': 40,
            'train_cfg.val_interval': 16,
            'default_hooks.checkpoint.interval': 4,
        },
    )
    return Study(
        'small',
        setup,
        arms.core(),
        results=folder / 'small.jsonl',
        work_dir=folder / 'runs',
        train=(sys.executable, str(ROOT / 'tools/train.py')),
        env=dict(OMP_NUM_THREADS='1', PYTHONPATH=f'{folder}:{ROOT}'),
    )


def told(*argv):
    """Run the command as from a terminal; return what it printed."""
    args = command.build_parser().parse_args([*map(str, argv), '--yes'])
    with redirect_stdout(io.StringIO()) as out:
        assert command.compare(args, *command.load_study(args)) == 0
    return args, out.getvalue()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """What the command says of three arms that are really trained."""
    folder = tmp_path_factory.mktemp('study')
    options = [
        f'{k}={v}' for k, v in small_study(folder).setup.options.items()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', str(ROOT))
        args, out = told(
            *(DIGITS.config, '--arms', 'full', 'short', '--seeds', 1),
            *('--jobs', 2, '--seconds', 60, '--work-dir', folder),
            *('--cfg-options', *options),
        )
        return command.load_study(args)[0], out


@pytest.fixture(scope='module')
def study(trained):
    """The study of three arms, all with seed 0, that are finished."""
    return trained[0]


def test_one_seed_gives_no_verdict(trained, cells):
    study, out = trained
    share = cells['infobatch']['samples_seen'] / 320
    said = f'One seed: no verdict. InfoBatch saves {1 - share:.0%} of the samp'
    assert said in out
    found = json.loads((study.work_dir / 'compare.json').read_text())
    assert found['verdict'] is None
    assert {gap['n'] for gap in found['differences']} == {1}
    assert {gap['low'] for gap in found['differences']} == {None}


@pytest.fixture(scope='module')
def cells(study):
    return {arm: runs[0] for arm, runs in study.finished().items()}


def rounds_of(study, cell):
    path = study.folder(cell) / 'infobatch.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_cells_hold_costs_and_metrics(study, cells):
    assert list(cells) == ['infobatch', 'full', 'short']
    full, pruned = cells['full'], cells['infobatch']
    assert full['samples_seen'] == full['samples_budget'] == 320
    assert full['iters'] == 40 and full['rounds'] == []
    rounds = rounds_of(study, study.cell('infobatch', 0))
    assert pruned['samples_seen'] == sum(r['kept'] for r in rounds) < 320
    assert [r['kept'] for r in pruned['rounds']] == [r['kept'] for r in rounds]
    # Pruned or not, each batch is of eight samples or fewer.
    assert pruned['iters'] == 40
    assert abs(8 * cells['short']['iters'] - pruned['samples_seen']) < 8
    for cell in cells.values():
        assert cell['value'] == cell['validations'][-1]['mIoU']
        assert 'IoU/background' in cell['validations'][-1]
        assert cell['train_seconds'] > 0 and cell['cpu_seconds'] > 0


def test_mean_iou_is_that_of_the_classes(cells):
    for val in cells['full']['validations']:
        iou = [v for name, v in val.items() if name.startswith('IoU/')]
        assert val['mIoU'] == pytest.approx(np.nanmean(iou), abs=0.006)


def test_a_cell_of_another_config_is_refused(study, cells):
    ours = [study.cell('full', 0), study.cell('full', 4)]
    check_same(study, ours, study.finished())
    options = {'train_cfg.max_iters': 48}
    other = replace(study, setup=study.setup._replace(options=options))
    with pytest.raises(ValueError, match='full-s0 in .* by another config'):
        check_same(other, ours, other.finished())


def test_a_metric_that_was_not_measured_is_named(study, cells):
    other = replace(study, setup=study.setup._replace(metric='mDice'))
    with pytest.raises(ValueError, match="'mDice' is not among .* mIoU"):
        running.read_run(other, study.cell('full', 0), None)


def test_a_study_of_one_seed_is_drawn(study, cells, tmp_path):
    assert draw(study.finished(), 'small', tmp_path / 'small.png').exists()


def test_a_curve_is_a_mean_over_runs_of_different_length():
    """By the last validations, which a shorter schedule has as well."""
    runs = [
        dict(validations=[dict(at=at, mIoU=value) for at, value in curve])
        for curve in ([(1, 10), (2, 30), (3, 50)], [(1, 20), (2, 40)])
    ]
    assert mean_curve(runs, 'at') == [1.5, 2.5]
    assert mean_curve(runs, 'mIoU') == [25, 45]


STOP_HOOK = """
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class StopHook(Hook):
    priority = 'LOWEST'

    def after_train_iter(self, runner, *args, **kwargs):
        stopped = Path(runner.work_dir) / 'stopped'
        if runner.iter + 1 == 20 and not stopped.exists():
            stopped.touch()
            raise SystemExit(9)
"""


def test_a_cell_that_was_cut_off_goes_on(tmp_path):
    """As if killed after a checkpoint: a start that ends at iteration 20."""

    def change(cfg, budget, seed):
        cfg = arms.infobatch().change(cfg, budget, seed)
        cfg.custom_hooks.append(dict(type='StopHook'))
        cfg.custom_imports.imports.append('stop_hook')
        return cfg

    (tmp_path / 'stop_hook.py').write_text(STOP_HOOK)
    study = replace(small_study(tmp_path), arms=dict(infobatch=Arm(change)))
    cell = study.cell('infobatch', 4)
    ((_, error),) = running.run_all(study, [cell], jobs=1)
    assert isinstance(error, RuntimeError) and 'run.log' in str(error)
    assert study.finished() == {}
    result = running.run(study, cell, ALL_DATA)
    assert result['starts'] == 2
    rounds = rounds_of(study, cell)
    assert result['samples_seen'] == sum(r['kept'] for r in rounds)


def test_a_fine_tuning_that_was_cut_off_goes_on(study, cells, tmp_path):
    """With its own checkpoint, and not with the one that it began with."""

    def change(cfg, budget, seed):
        cfg.custom_hooks.append(dict(type='StopHook'))
        cfg.custom_imports.imports.append('stop_hook')
        return cfg

    (tmp_path / 'stop_hook.py').write_text(STOP_HOOK)
    pretrained = study.folder(study.cell('full', 0)) / 'last_checkpoint'
    fine = small_study(tmp_path)
    options = {**fine.setup.options, 'load_from': pretrained.read_text()}
    options['train_cfg.max_iters'] = 32  # where the other had 40
    setup = fine.setup._replace(options=options)
    fine = replace(fine, setup=setup, arms=dict(full=Arm(change)))
    cell = fine.cell('full', 4)
    list(running.run_all(fine, [cell], jobs=1))
    result = running.run(fine, cell, ALL_DATA)
    assert (result['starts'], result['samples_seen']) == (2, 32 * 8)


# Without training


def test_a_checkpoint_of_another_config_is_not_gone_on_with(tmp_path, stock):
    study = of_study(tmp_path)
    folder = tmp_path / 'run'
    made = folder / 'benchmark.json'

    def write(*given):
        return processes.write_config(*given, folder, made)[1:]

    assert write(study, stock) == (False, '')
    # The folder was moved since, or copied.
    (folder / 'iter_8.pth').write_text('')
    (folder / 'last_checkpoint').write_text('/elsewhere/iter_8.pth')
    made.write_text('{}')
    assert write(study, stock) == (True, str(folder / 'iter_8.pth'))
    for other in stock, replace(study, processes=2):
        given = (study, other) if other is stock else (other, stock)
        stock.optim_wrapper.optimizer.lr *= 2
        (folder / 'last_checkpoint').write_text('iter_8.pth')
        made.write_text('{}')
        # It dies before its first checkpoint, and is started again.
        assert write(*given) == (False, '')
        assert write(*given) == (True, '')
        assert not made.exists()  # nor is what the other has come to


def test_an_arm_waits_for_what_it_needs(tmp_path):
    study = small_study(tmp_path)
    cells = order(study, [study.cell('short', 1), study.cell('full', 0)])
    assert [cell.name for cell in cells] == [
        'full-s0',
        'infobatch-s1',
        'short-s1',
    ]


def test_a_cell_has_its_seed_and_the_config_s_other_randomness(tmp_path):
    options = {'randomness.deterministic': True, 'randomness.seed': 9}
    study = replace(of_study(tmp_path), setup=DIGITS._replace(options=options))
    cfg = config_of(study, study.cell('full', 4), ALL_DATA)
    assert cfg.randomness == dict(deterministic=True, seed=4)


def test_what_needs_a_failed_cell_is_not_run(tmp_path, monkeypatch):
    def run(study, cell, budget, place):
        raise RuntimeError(f'{cell.name} failed')

    monkeypatch.setattr(running, 'run', run)
    study = small_study(tmp_path)
    cells = order(study, [study.cell('short', 1), study.cell('full', 1)])
    ended = running.run_all(study, cells, jobs=2)
    assert {cell.arm for cell, _ in ended} == {'infobatch', 'full'}
    assert not study.results.exists()


def test_the_remainder_of_a_full_round_is_not_pruned():
    rounds = [  # scored, pruned, annealed
        dict(kept=364, total=367, variance_ratio=0.0),
        dict(kept=252, total=367, variance_ratio=0.4),
        dict(kept=260, total=367, variance_ratio=0.4),
        dict(kept=364, total=367, variance_ratio=0.0),
    ]
    result = dict(
        samples_seen=1240, samples_budget=1456, rounds=rounds, dataset_size=367
    )
    budget = budget_of(result)
    assert budget.prune_ratio == pytest.approx(1 - 256 / 367)
    assert budget.share == pytest.approx(1240 / 1456)
    # A policy of the user's need not tell the variance that it adds.
    drawn = [367, 252, 260, 367]
    for line, number in zip(rounds, drawn, strict=True):
        line.update(drawn=number, variance_ratio=0.0)
    assert budget_of(result) == budget


def test_a_budget_is_the_same_with_every_python():
    """From 3.12 on sum() rounds otherwise, which made other digests."""
    rounds = [dict(kept=2, total=3, variance_ratio=0.1)] * 6
    result = dict(
        samples_seen=1, samples_budget=1, rounds=rounds, dataset_size=10
    )
    one_by_one = 0.0
    for _ in rounds:
        one_by_one += 1 - 2 / 3
    assert one_by_one != math.fsum([1 - 2 / 3] * 6)
    assert budget_of(result).prune_ratio == one_by_one / 6


# The stock form of a pruned config, and its metric


def ways_in(stock, options):
    """Yield the same pruned config, as each way in writes it."""
    yield enable(stock, **options)
    for imports in (['infobatch_mm.override'], 'infobatch_mm.override'):
        cfg = copy.deepcopy(stock)
        cfg.custom_imports = dict(imports=imports)
        cfg.train_cfg.infobatch = options
        yield cfg
    cfg = copy.deepcopy(stock)
    kind = 'infobatch_mm.override.PruneHook'
    cfg.default_hooks.infobatch = dict(type=kind, **options)
    yield cfg
    name = stock.train_cfg.type
    for kind in (f'infobatch_mm.override.{name}', getattr(override, name)):
        cfg = copy.deepcopy(stock)
        cfg.train_cfg.infobatch = options
        cfg.train_cfg.type = kind
        yield cfg


@pytest.mark.parametrize('by_iter', [False, True])
def test_what_prunes_is_taken_out_again(by_iter, tmp_path):
    stock = toys.config(tmp_path, pruned=False)
    stock.pop('custom_hooks')
    stock.model.decode_head = [stock.model.decode_head] * 2  # a cascade
    stock.train_dataloader.sampler.update(shuffle=True, seed=3)
    if by_iter:
        stock.custom_hooks = []  # for the helper
        toys.make_iter_based(stock, max_iters=9)
        stock.train_dataloader.sampler.shuffle = True
        stock.custom_hooks = [dict(type='EMAHook')]
    expected = stock.to_dict()
    options = dict(policy=dict(type='RandomPolicy', prune_ratio=0.4), delta=1)
    for cfg in ways_in(stock, options):
        given = cfg.to_dict()
        found, taken = unpruned(cfg)
        assert found.to_dict() == expected
        assert taken == options
        assert cfg.to_dict() == given
    assert unpruned(stock)[1] == {}
    assert unpruned(stock)[0].to_dict() == expected


@pytest.mark.parametrize(
    'name',
    [
        'camvid/{}upernet_r18_1xb4-4k_camvid-120x160.py',
        'camvid/{}upernet_r18_1xb4-50e_camvid-120x160.py',
        'quickstart/{}upernet_tiny_1xb16-20e_digits-48x48.py',
    ],
)
def test_an_overlay_becomes_its_unpruned_twin(name):
    overlay, twin = (
        Config.fromfile(ROOT / 'configs' / name.format(prefix))
        for prefix in ('infobatch_', '')
    )
    found, options = unpruned(overlay)
    assert found.to_dict() == twin.to_dict()
    policy = dict(type='InfoBatchPolicy', prune_ratio=0.5)
    pacing = 'smaller_batches'
    assert options == dict(policy=policy, delta=0.875, pacing=pacing)


def test_what_cannot_be_taken_out_is_refused(tmp_path):
    cfg = toys.config(tmp_path)
    parts = [cfg.train_dataloader.dataset, cfg.train_dataloader.dataset]
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    with pytest.raises(ValueError, match='IndexedDataset .* the stock config'):
        unpruned(cfg)


def test_a_type_may_be_none(tmp_path):
    stock = toys.config(tmp_path, pruned=False)
    stock.pop('custom_hooks')
    stock.train_dataloader.dataset.extra = dict(type=None)
    assert unpruned(stock)[0].to_dict() == stock.to_dict()


def judged(evaluator=None, **checkpoint):
    return Config(
        dict(
            val_evaluator=evaluator,
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', **checkpoint)
            ),
        )
    )


@pytest.mark.parametrize(
    ('cfg', 'expected'),
    [
        (judged(dict(type='IoUMetric'), save_best='mAcc'), 'mAcc'),
        (judged(save_best=['b', 'a']), 'b'),
        (judged(save_best='auto'), 'auto'),
        (judged(dict(type='IoUMetric')), 'mIoU'),
        (judged(dict(type='IoUMetric', iou_metrics=['mDice'])), 'mDice'),
        (judged([dict(type='mmseg.IoUMetric'), dict(type='A')]), 'mIoU'),
        (judged(dict(type='Accuracy', topk=(1, 5))), 'accuracy/top1'),
        (judged(dict(type='Accuracy')), 'accuracy/top1'),
        (judged(dict(type='Accuracy', topk=5)), None),
        (judged(dict(type='Accuracy', thrs=(0.1, 0.9))), None),
        (judged(dict(type='IoUMetric', prefix='val')), None),
        (judged(dict(type='OwnMetric')), None),
    ],
)
def test_the_metric_of_a_config(cfg, expected):
    if expected is not None:
        assert metric_of(cfg) == expected
        return
    with pytest.raises(ValueError, match='--metric'):
        metric_of(cfg)


@pytest.mark.parametrize(
    ('cfg', 'metric', 'expected'),
    [
        (judged(), 'mIoU', True),
        (judged(), 'accuracy/top1', True),
        (judged(), 'val_loss', False),
        (judged(save_best='error', rule='less'), 'error', False),
        (judged(save_best='mIoU', rule='less'), 'mIoU', False),
        (judged(save_best='mIoU', rule='less'), 'aAcc', True),
        (judged(save_best='auto', rule='less'), 'mIoU', False),
        (judged(save_best=['a', 'b'], rule=['less', 'greater']), 'b', True),
        (judged(save_best=['a', 'b'], rule='less'), 'b', False),
        (judged(less_keys=['error']), 'error', False),
        (judged(), 'mFscore', None),
    ],
)
def test_which_way_a_metric_is_better(cfg, metric, expected):
    if expected is not None:
        assert is_higher_better(cfg, metric) is expected
        return
    with pytest.raises(ValueError, match='--lower-is-better'):
        is_higher_better(cfg, metric)


def test_rules_are_as_many_as_names():
    cfg = judged(save_best=['a', 'b', 'c'], rule=['less', 'greater'])
    with pytest.raises(ValueError, match='3 names in save_best and 2 in rule'):
        is_higher_better(cfg, 'a')


def test_a_run_keeps_its_last_checkpoint():
    cfg = judged(interval=4000)
    keep_one_checkpoint(cfg, 0.25)
    saves = dict(type='CheckpointHook', interval=1000, max_keep_ckpts=1)
    assert cfg.default_hooks.checkpoint == saves
    cfg = Config(dict())
    keep_one_checkpoint(cfg, 0.25)
    assert cfg.default_hooks.checkpoint == saves | dict(interval=1)
    cfg = judged(by_epoch=False)
    cfg.train_cfg = dict(max_iters=8000, val_interval=800)
    keep_one_checkpoint(cfg, 0.25)
    assert cfg.default_hooks.checkpoint.interval == 200
    cfg = judged(interval=-1, max_keep_ckpts=3)
    keep_one_checkpoint(cfg, 0.25)
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 3


# The verdict, from results that are known


def test_a_gain_is_judged_by_its_interval():
    kinds = {
        (1.0, 1.2, 0.9): 'better',
        (-1.0, -1.2, -0.9): 'worse',
        (1.0, -1.2, 0.9): 'indistinguishable',
        (7.0,): '',
        (10.0, 10.0): '',
        (0.3, 0.1 + 0.2): '',  # but for the last bit
        (0.0, 0.0): 'indistinguishable',
        (1.0, math.nan): '',
    }
    for values, kind in kinds.items():
        assert judge(paired(values)) == kind


def test_spreads_are_pooled():
    groups = [0.1, 0.4, 0.3], [1.0, 2.0], [5.0]
    centred = [x - np.mean(group) for group in groups for x in group]
    expected = np.sqrt(np.sum(np.square(centred)) / (2 + 1))
    found = pooled_deviation([paired(group) for group in groups])
    assert found == pytest.approx(expected)
    assert np.isnan(pooled_deviation([paired([5.0])]))
    # One with a run that diverged says nothing of the others.
    diverged = paired([1.0, math.nan, 2.0])
    gaps = [paired(group) for group in groups]
    assert pooled_deviation([*gaps, diverged]) == pytest.approx(expected)
    assert np.isnan(pooled_deviation([diverged]))
    assert seeds_to_decide(gaps[0], math.nan) is None


def test_so_many_more_seeds_would_decide():
    gain = Paired(3, 0.5, 0.7, -0.2, 1.2)
    more = seeds_to_decide(gain, 0.6)
    rng = np.random.default_rng(0)
    for seeds, wanted in ((3 + more, 1), (3 + more - 1, -1)):
        samples = rng.normal(0.5, 0.6, (20000, seeds))
        low = stats.ttest_1samp(samples, 0, axis=1, alternative='greater')
        share = np.mean(low.pvalue < 0.05)
        assert (share - 0.8) * wanted > -0.006
    assert seeds_to_decide(gain._replace(mean=0.01), 0.6) is None
    assert seeds_to_decide(gain._replace(mean=0.0), 0.0) is None


def of_study(tmp_path, *, higher=True, length=1.0):
    setup = DIGITS._replace(higher_is_better=higher, length=length)
    return Study('x', setup, arms.core(), tmp_path / 'x', tmp_path)


def costing(values, seen, seconds):
    return {
        seed: dict(
            value=value,
            samples_seen=seen,
            samples_budget=100,
            train_seconds=seconds,
        )
        for seed, value in enumerate(values)
    }


KNOWN = {
    'infobatch': costing([70.0, 71.1, 72.0, 70.4], 74, 81.0),
    'full': costing([70.2, 71.0, 72.1, 70.52], 100, 100.0),
    'short': costing([68.0, 69.3, 70.1, 68.2], 74, 74.0),
    'small-batch': costing([71.0, 72.0, 73.1, 71.5], 74, 76.0),
    'random': costing([69.0], 74, 80.0),
    'infobatch-fewer-steps': costing([70.1, 71.0, 72.1, 70.4], 74, 80.0),
}


def test_the_verdict_is_what_a_person_can_act_on(tmp_path):
    gap = stats.ttest_rel(
        *(
            [run['value'] for run in KNOWN[arm].values()]
            for arm in ('infobatch', 'full')
        )
    ).confidence_interval(0.9)
    text = summary.verdict_text(of_study(tmp_path), KNOWN)
    assert text.startswith(
        'InfoBatch saves 26% of the samples and 19% of the time. mIoU '
        f'against all data: -0.08 [{gap.low:+.2f}, {gap.high:+.2f}], '
        'indistinguishable (4 seeds). At equal cost: better than short; '
        'worse than small-batch; no verdict from one seed on random. At '
        'their own cost: indistinguishable from infobatch-fewer-steps. '
    )
    more = text.partition('stay as they are: ')[2].partition('. ')[0]
    named = [part.split(' for ')[1] for part in more.split(', ')]
    assert named == ['full', 'random', 'infobatch-fewer-steps']
    assert text.endswith(summary.BY_CHANCE)


def test_costs_that_are_not_equal_are_not_called_so(tmp_path):
    short = costing([68.0, 69.3, 70.1, 68.2], 50, 50.0)
    random = costing([68.0, 69.3, 70.1, 68.2], 73, 73.0)
    results = KNOWN | dict(short=short, random=random)
    text = summary.verdict_text(of_study(tmp_path), results)
    assert 'At equal cost: better than random; worse than small-batch.' in text
    assert 'their own cost: better than short; indistinguishable from' in text
    assert 'short saw 50.0% of the samples, not 74.0%.' in text
    results = {arm: results[arm] for arm in ('infobatch', 'short')}
    text = summary.verdict_text(of_study(tmp_path), results)
    assert 'nothing was run' not in text
    assert 'At their own cost: better than short.' in text


def test_what_nobody_trained_is_not_saved(tmp_path):
    """Both were stopped early, all data at half of its schedule."""
    ours = costing([70.0, 71.1], 40, 50.0)
    results = dict(infobatch=ours, full=costing([70.2, 71.0], 50, 50.0))
    text = 'InfoBatch saves 20% of the samples and 0% of the time.'
    assert summary.savings_text(results) == text
    text = 'InfoBatch saves 60% of the samples.'
    assert summary.savings_text(dict(infobatch=ours)) == text


def test_less_may_be_better(tmp_path):
    text = summary.verdict_text(of_study(tmp_path, higher=False), KNOWN)
    assert 'At equal cost: better than small-batch; worse than short;' in text
    assert 'against all data: -0.08 [' in text  # as the metric counts


def test_a_verdict_takes_two_seeds(tmp_path):
    one = {arm: {0: runs[0]} for arm, runs in KNOWN.items()}
    assert summary.verdict_text(of_study(tmp_path), one) is None
    two = one | dict(short=KNOWN['short'], infobatch=KNOWN['infobatch'])
    text = summary.verdict_text(of_study(tmp_path), two)
    assert '-0.20, one seed: no verdict (1 seed).' in text
    assert 'better than short' in text


def test_a_run_that_diverged_has_no_verdict(tmp_path):
    lost = {seed: dict(run) for seed, run in KNOWN['short'].items()}
    lost[1]['value'] = math.nan
    text = summary.verdict_text(of_study(tmp_path), KNOWN | dict(short=lost))
    assert 'no verdict from a run that diverged on short.' in text
    assert 'nan' not in text and 'for short' not in text
    lost[2]['value'] = math.inf
    both = dict(infobatch=KNOWN['infobatch'], full=lost, short=lost)
    study = of_study(tmp_path)
    said = summary.write(study, both, 'config.py')
    assert 'against all data: a run that diverged: no verdict (4 se' in said
    assert 'More seeds' not in said  # their spread is not known
    table = (tmp_path / 'compare.md').read_text()
    assert '| `full` | 4 | 68.10 ± 0.14 (2 diverged) |' in table
    text = (tmp_path / 'compare.json').read_text()
    assert 'NaN' not in text and 'Infinity' not in text
    first, *_ = json.loads(text)['differences']
    assert first == dict(
        arm='infobatch', against='full', mean=None, low=None, high=None, n=4
    )
    shown = Path(summary.write_page(tmp_path)).read_text()
    assert 'a run that diverged: no verdict' in shown


def test_the_same_difference_with_each_seed_has_no_verdict(tmp_path):
    results = dict(
        infobatch=costing([60.0, 70.0], 74, 80.0),
        full=costing([50.0, 60.0], 100, 100.0),
    )
    text = summary.verdict_text(of_study(tmp_path), results)
    assert 'differences that are all the same: no verdict (2 seeds)' in text


def test_seeds_without_another_arm_have_no_verdict(tmp_path):
    alone = dict(infobatch=KNOWN['infobatch'])
    text = summary.write(of_study(tmp_path), alone, 'config.py')
    assert text.startswith('No other arm to compare with: no verdict. Info')


def test_a_metric_between_0_and_1_has_more_digits(tmp_path):
    def small(values):
        runs = costing(values, 74, 80.0)
        return {seed: run for seed, run in runs.items()}

    results = dict(infobatch=small([0.61, 0.622]), full=small([0.613, 0.624]))
    text = summary.verdict_text(of_study(tmp_path), results)
    assert 'against all data: -0.0025 [' in text
    table = summary.comparison_table(of_study(tmp_path), results)
    assert '| `full` | 2 | 0.6185 ± 0.0078 |' in table


def test_the_file_of_a_comparison(tmp_path):
    study = of_study(tmp_path, length=0.25)
    said = summary.write(study, KNOWN, 'my_config.py')
    found = json.loads((tmp_path / 'compare.json').read_text())
    assert {k: v for k, v in found.items() if k[0] not in 'cd'} == dict(
        metric='mIoU',
        higher_is_better=True,
        length=0.25,
        policy='InfoBatchPolicy(0.5 until 0.875)',
        verdict=said,
    )
    assert found['config'] == 'my_config.py'
    assert len(found['cells']) == 21
    assert found['cells'][-5] == dict(
        arm='random',
        seed=0,
        work_dir='random/0',
        value=69.0,
        samples_share=0.74,
        train_seconds=80.0,
        at_cost_of='infobatch',
    )
    by_pair = {(g['arm'], g['against']): g for g in found['differences']}
    assert len(by_pair) == 9
    assert by_pair['small-batch', 'full']['mean'] == pytest.approx(0.945)
    gap = by_pair['infobatch', 'short']
    differences = np.array([2.0, 1.8, 1.9, 2.2])
    assert gap['mean'] == pytest.approx(differences.mean())
    assert (gap['n'], gap['low'] < gap['mean'] < gap['high']) == (4, True)
    page = (tmp_path / 'compare.md').read_text()
    assert said in page and 'This is a pilot, at 0.25 of' in page


# Processes: where they run, and what happens to them


def test_runs_at_a_time_have_gpus_of_their_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert processes.devices(1, 4) == []
    assert processes.devices(2, 2) == ['0,1', '2,3']
    assert processes.devices(3, 2) == ['0,1', '2,3', '0,1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert processes.devices(2, 1) == ['5', '7']


def test_processes_of_a_run_need_a_launcher():
    assert processes.train_command('pytorch', 3)[1:5] == [
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node=3',
    ]
    with pytest.raises(ValueError, match='--launcher pytorch'):
        processes.train_command('none', 2)


def test_a_stopped_comparison_stops_its_runs(tmp_path, monkeypatch):
    """As Ctrl-C would: the runs would otherwise go on by themselves."""
    study = replace(
        small_study(tmp_path),
        train=(sys.executable, '-c', 'import time; time.sleep(60)'),
    )
    places = [processes.Place(), processes.Place()]

    def wait(running, **options):
        while not all(place.process for place in places):
            for future in filter(Future.done, running):
                future.result()  # raises what kept it from starting
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, 'places_of', lambda *_: places)
    monkeypatch.setattr(running, 'wait', wait)
    cells = [study.cell('full', 0), study.cell('infobatch', 0)]
    with pytest.raises(KeyboardInterrupt):
        list(running.run_all(study, cells, jobs=2))
    codes = [place.process.wait() for place in places]
    assert codes == [-signal.SIGTERM] * 2


def test_what_has_not_begun_does_not_begin_any_more(tmp_path, monkeypatch):
    """A cell whose config is still being made when a comparison stops."""
    began = tmp_path / 'began'
    study = replace(small_study(tmp_path), train=('touch', str(began)))
    is_stopped, made = threading.Event(), running.config_of

    def make(*args):
        is_stopped.wait(60)
        return made(*args)

    def wait(running, **options):
        raise KeyboardInterrupt

    class Place(processes.Place):
        def close(self):
            super().close()
            is_stopped.set()

    monkeypatch.setattr(running, 'config_of', make)
    monkeypatch.setattr(running, 'places_of', lambda *_: [Place()])
    monkeypatch.setattr(running, 'wait', wait)
    with pytest.raises(KeyboardInterrupt):
        list(running.run_all(study, [study.cell('full', 0)], jobs=1))
    assert not began.exists()


def test_configs_are_read_one_at_a_time(tmp_path, monkeypatch):
    """Python 3.11 fails now and then where two threads parse at once."""
    study = replace(small_study(tmp_path), train=('true',))
    reading = []

    def read(*args):
        reading.append(args)
        time.sleep(0.1)
        assert reading == [args]
        reading.clear()
        raise ValueError('read')

    monkeypatch.setattr(running, 'config_of', read)
    cells = [study.cell('full', seed) for seed in (0, 1)]
    errors = [error for _, error in running.run_all(study, cells, jobs=2)]
    assert [str(error) for error in errors] == ['read', 'read']


def test_a_folder_is_trained_in_by_one_process_at_a_time(tmp_path):
    study = replace(small_study(tmp_path), train=('false',))
    cell = study.cell('full', 0)
    for held, said in (
        (processes._held(study.folder(cell)), 'another process trains'),
        (nullcontext(), 'failed, and said last: nothing'),
    ):
        with held, pytest.raises(RuntimeError, match=said):
            running.run(study, cell, ALL_DATA)


def test_a_probe_times_and_validates_once(tmp_path):
    loop = dict(type='EpochBasedTrainLoop', max_epochs=9)
    cfg = light.config(tmp_path, loop, val=True, pruned=False)
    cfg.custom_hooks = [dict(type='ProbeHook', iters=8)]
    runner = Runner.from_cfg(cfg)
    with pytest.raises(SystemExit) as stopped:
        runner.train()
    assert not stopped.value.code
    found = json.loads((tmp_path / 'probe.json').read_text())
    assert found['metrics'] == dict(count=4)
    assert found['iters'] == runner.max_iters == 63
    assert runner.iter == 7 and 0 < found['seconds'] < 1
    assert found['val_seconds'] > 0


def test_a_last_validation_that_was_cut_off_is_made_up_for(tmp_path):
    """Where a resumed run has nothing left to train."""
    loop = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=2)
    file, found = tmp_path / 'benchmark.json', []
    for resume in (False, True):
        cfg = light.config(
            tmp_path, dict(loop), val=True, pruned=False, resume=resume
        )
        cfg.custom_hooks = [dict(type='BenchmarkHook')]
        # The checkpoint of the last epoch is from before its validation.
        cfg.default_hooks.checkpoint.interval = 3
        build_runner(cfg).train()
        found.append(json.loads(file.read_text()))
        file.unlink()
    for state in found:
        assert [each['iter'] for each in state['validations']] == [14, 21]
        assert (state['iters'], state['world_size']) == (21, 1)
    assert [state['starts'] for state in found] == [1, 2]


class Ticking(Hook, light.LightMetric):
    """A clock: a training step takes 1 s, and a validation 100."""

    now = 0

    def after_train_iter(self, *args, **kwargs):
        Ticking.now += 1

    def compute_metrics(self, results):
        Ticking.now += 100
        return dict(count=Ticking.now)  # always better


def test_times_leave_out_what_saves_the_best(tmp_path, monkeypatch):
    """CheckpointHook saves it within the validation."""
    clock = dict.fromkeys(('perf_counter', 'process_time'))
    clock = dict.fromkeys(clock, lambda: Ticking.now)
    monkeypatch.setattr(parts, 'time', SimpleNamespace(**clock))
    monkeypatch.setattr(Ticking, 'now', 0)
    loop = dict(type='EpochBasedTrainLoop', max_epochs=4)
    cfg = light.config(tmp_path, loop, val=True, pruned=False)
    cfg.val_evaluator = dict(type=f'{__name__}.Ticking')
    cfg.default_hooks.checkpoint.update(save_best='count', rule='greater')
    cfg.custom_hooks = [
        dict(type=f'{__name__}.Ticking'),
        dict(type='BenchmarkHook'),
    ]
    Runner.from_cfg(cfg).train()
    state = json.loads((tmp_path / 'benchmark.json').read_text())
    assert list(tmp_path.glob('best_*'))
    assert [each['train_seconds'] for each in state['validations']] == [
        7,
        14,
        21,
        28,
    ]
    assert state['train_seconds'] == 28


# The command, where what trains is a stand-in

TRAINER = '''
"""Trains nothing: notes that it was started, and writes what a run does."""
import json, os, signal, sys
from pathlib import Path

config, work_dir = sys.argv[1], Path(sys.argv[3])
cfg = {}
exec(Path(config).read_text(), cfg)
arm, seed = work_dir.parts[-2:]
plan = json.loads(Path(sys.argv[0]).with_name('plan.json').read_text())
with Path(sys.argv[0]).with_name('starts').open('a') as file:
    file.write(' '.join([arm, seed, *sys.argv[4:]]) + chr(10))
if seed == 'probe':
    probe = dict(seconds=2.0, val_seconds=30.0,
                 iters=cfg['train_cfg']['max_iters'], metrics=plan['metrics'])
    (work_dir / 'probe.json').write_text(json.dumps(probe))
    raise SystemExit
if [arm, seed] == plan.get('killed') and '--resume' not in sys.argv:
    (work_dir / 'last_checkpoint').write_text('iter_1.pth')
    (work_dir / 'iter_1.pth').touch()
    os.kill(os.getpid(), signal.SIGKILL)
prunes = any('InfoBatchHook' in hook['type'] for hook in cfg['custom_hooks'])
iters, batch = cfg['train_cfg']['max_iters'], cfg['train_dataloader']
seen = iters * batch['batch_size'] * (0.7 if prunes else 1)
if prunes:
    line = dict(total=10, kept=7, threshold=1.0, variance_ratio=0.2)
    (work_dir / 'infobatch.jsonl').write_text(json.dumps(line) + chr(10))
value = plan['values'][arm][int(seed)]
last = dict(iter=iters, mIoU=value, mFscore=value)
if arm in plan.get('others', {}):
    last['aAcc'] = plan['others'][arm]
state = dict(samples_seen=seen, train_seconds=seen, cpu_seconds=seen,
             validations=[last], iters=iters, world_size=1,
             dataset_size=plan.get('size', 100))
(work_dir / 'benchmark.json').write_text(json.dumps(state))
'''
VALUES = {
    'infobatch': [70.0, 71.0, 72.0],
    'full': [70.1, 71.0, 72.1],
    'short': [66.0, 67.2, 68.1],
    'small-batch': [71.0, 72.1, 73.0],
}


class Desk:
    """Where a user gives commands, with a trainer that trains nothing."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.capsys = folder, capsys
        trainer = folder / 'trainer.py'
        trainer.write_text(TRAINER)
        self.plan(metrics=dict(mIoU=1.0, mFscore=2.0), values=VALUES)
        monkeypatch.setattr(
            command,
            'train_command',
            lambda *_: (sys.executable, '-S', '-E', str(trainer)),
        )

    def plan(self, **settings):
        (self.folder / 'plan.json').write_text(json.dumps(settings))

    def give(self, *argv, status=0, config=DIGITS.config):
        """Give the command with --yes; return what it says, and its error."""
        argv = [config, *argv, '--work-dir', self.folder / 'work']
        try:
            command.main([*map(str, argv), '--yes'], prog='compare')
            found = 0
        except SystemExit as stopped:
            found = stopped.code
        said = self.capsys.readouterr()
        assert found == status, said.err
        return said.out if not status else said.err

    def starts(self):
        """Return what was started since the last time, sorted."""
        file = self.folder / 'starts'
        found = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return sorted(found)


@pytest.fixture
def desk(tmp_path, monkeypatch, capsys):
    return Desk(tmp_path, monkeypatch, capsys)


THREE = '--arms', 'full', 'short', 'small-batch'


def test_a_comparison_from_a_config_to_a_verdict(desk):
    out = desk.give(*THREE, '--seeds', 3, '--length', 0.5)
    assert desk.starts() == sorted(
        [f'{arm} {seed}' for arm in VALUES for seed in range(3)]
        + ['work probe']
    )
    assert '12 runs, 0 done' in out and 'This is a pilot, at 0.5 of' in out
    # 960 iterations of 2 s and six validations of 30 s, twelve times over.
    probed = json.loads((desk.folder / 'work/probe/probe.json').read_text())
    hours = (960 * 2 + 6 * 30 + probed['start_seconds']) / 3600
    assert f'{12 * hours:.2g} hours if each takes the {hours * 60:.2g} ' in out
    assert 'full-s2: mIoU 72.10, 100.0% of the samples' in out
    verdict = out.splitlines()[-2]
    assert verdict.startswith('InfoBatch saves 30% of the samples and 30% of')
    assert 'against all data: -0.07 [' in verdict
    assert 'better than short; worse than small-batch.' in verdict
    found = json.loads((desk.folder / 'work/compare.json').read_text())
    assert found['verdict'] == verdict and found['length'] == 0.5
    shares = {cell['arm']: cell['samples_share'] for cell in found['cells']}
    assert shares == pytest.approx(
        dict(full=1.0, infobatch=0.7, short=0.7) | {'small-batch': 0.7},
        abs=1e-3,
    )


def test_the_time_of_a_run_counts_its_start():
    study = SimpleNamespace(setup=Setup(DIGITS.config, 'mIoU', length=0.5))
    probed = dict(seconds=2.0, val_seconds=30.0, iters=960, start_seconds=7.0)
    assert planning.run_seconds(study, probed) == 960 * 2 + 6 * 30 + 7


def test_only_what_is_missing_is_trained(desk):
    desk.give('--arms', 'full', '--seeds', 1)
    assert desk.starts() == ['full 0', 'infobatch 0', 'work probe']
    out = desk.give('--arms', 'full', 'short', '--seeds', 2)
    assert desk.starts() == ['full 1', 'infobatch 1', 'short 0', 'short 1']
    assert '6 runs, 2 done' in out
    out = desk.give('--arms', 'full', '--seeds', 2)
    assert desk.starts() == []
    assert '4 runs, 4 done' in out and 'short' not in out


def test_a_run_that_was_killed_goes_on_at_the_next_command(desk):
    desk.plan(metrics=dict(mIoU=1.0), values=VALUES, killed=['infobatch', '1'])
    err = desk.give('--arms', 'full', 'short', '--seeds', 2, status=1)
    assert 'infobatch-s1: failed, and said last: nothing; see ' in err
    assert '2 runs failed or wait for one that did' in err
    assert 'short 1' not in desk.starts()
    out = desk.give('--arms', 'full', 'short', '--seeds', 2)
    saved = desk.folder / 'work/infobatch/1/iter_1.pth'
    assert desk.starts() == [f'infobatch 1 --resume {saved}', 'short 1']
    assert 'better than short.' in out


def test_a_run_that_ended_by_itself_is_not_trained_again(desk, monkeypatch):
    """As after this process alone was killed: the run had gone on."""
    one = '--arms', 'full', '--seeds', 1
    with monkeypatch.context() as patch:
        patch.setattr(running, 'append_result', lambda *_: None)
        patch.setattr(running, 'forget', lambda *_: None)
        desk.give(*one)
    assert desk.starts() == ['full 0', 'infobatch 0', 'work probe']
    assert 'One seed: no verdict.' in desk.give(*one)
    assert desk.starts() == []


@pytest.mark.parametrize('killed', [None, ['full', '0']])
def test_a_result_that_was_deleted_is_made_anew(desk, killed):
    """As after labels were mended, which the config does not tell."""
    one = '--arms', 'full', '--seeds', 1
    desk.plan(metrics=dict(mIoU=1.0), values=VALUES, killed=killed)
    desk.give(*one, status=int(bool(killed)))
    if killed:
        desk.give(*one)
    (desk.folder / 'work/cells.jsonl').unlink()
    mended = {arm: [value + 9 for value in VALUES[arm]] for arm in VALUES}
    desk.plan(metrics=dict(mIoU=1.0), values=mended, size=120)
    desk.starts()
    assert 'full-s0: mIoU 79.10' in desk.give(*one)
    assert desk.starts() == ['full 0', 'infobatch 0']


def test_another_number_of_processes_is_refused(desk):
    desk.give('--arms', 'full', '--seeds', 1)
    argv = '--launcher', 'pytorch', '--gpus', 4, '--arms', 'full'
    err = desk.give(*argv, '--seeds', 2, status=2)
    assert 'was made by 1 processes, and now there are 4' in err


def test_runs_on_data_of_another_size_are_refused(desk):
    """Such as images that were added in between."""
    metrics = dict(mIoU=1.0)
    desk.give('--arms', 'full', '--seeds', 1)
    desk.plan(metrics=metrics, values=VALUES, size=120)
    err = desk.give('--arms', 'full', '--seeds', 2, status=2)
    assert 'sizes (full-s0 of 100, full-s1 of 120 samples)' in err


def test_results_are_shown_by_the_metric_that_is_asked_for(desk):
    """Also those that were made when it was another."""
    desk.plan(
        metrics=dict(mIoU=1.0, aAcc=2.0),
        values=VALUES,
        others={'infobatch': 81.0, 'full': 80.0},
    )
    argv = '--arms', 'full', '--seeds', 2
    assert 'mIoU against all data: -0.05' in desk.give(*argv)
    out = desk.give(*argv, '--metric', 'aAcc', '--higher-is-better')
    assert 'aAcc against all data: +1.00' in out


def test_cells_that_another_command_has_added_are_looked_at(desk, monkeypatch):
    config = ['--cfg-options', 'optim_wrapper.optimizer.lr=0.3']
    stock_cells = command.run_cells

    def run_cells(*args):
        monkeypatch.setattr(command, 'run_cells', stock_cells)
        desk.give('--arms', 'full', '--seeds', 1, *config)
        return 0

    monkeypatch.setattr(command, 'run_cells', run_cells)
    err = desk.give('--arms', 'full', '--seeds', 1, status=2)
    assert 'was made by another config' in err


def test_a_config_that_resumes_begins_anew(desk):
    argv = '--cfg-options', 'resume=True', '--arms', 'full', '--seeds', 1
    desk.give(*argv)
    assert not Config.fromfile(desk.folder / 'work/full/0/cell.py').resume


def test_another_config_in_the_folder_is_refused(desk):
    desk.give('--arms', 'full', '--seeds', 1)
    options = '--cfg-options', 'optim_wrapper.optimizer.lr=0.3'
    err = desk.give('--arms', 'full', '--seeds', 1, *options, status=2)
    assert 'was made by another config' in err and 'another work dir' in err


def test_cells_without_that_whose_cost_they_have_are_refused(desk):
    desk.give('--arms', 'full', 'short', '--seeds', 1)
    cells = desk.folder / 'work/cells.jsonl'
    lines = cells.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"arm":"infobatch"' not in line]
    assert len(kept) == len(lines) - 1
    cells.write_text(''.join(kept))
    err = desk.give('--arms', 'full', 'short', '--seeds', 1, status=2)
    assert 'cells.jsonl holds short-s0, but not the cells that they' in err


def test_a_config_of_classes_is_compared(desk, tmp_path):
    """As new-style configs have them, in place of the names of types."""
    config = tmp_path / 'of_classes.py'
    config.write_text(
        'from mmengine.config import read_base\n'
        'from mmengine.hooks import CheckpointHook\n'
        'with read_base():\n'
        '    from .base import *\n'
        'default_hooks = dict(checkpoint=dict(type=CheckpointHook, '
        'by_epoch=False, interval=9))\n'
    )
    cfg = Config.fromfile(DIGITS.config)
    cfg.pop('default_hooks')
    cfg.dump(tmp_path / 'base.py')
    desk.give('--arms', 'full', '--seeds', 1, config=config)
    found = Config.fromfile(desk.folder / 'work/full/0/cell.py')
    saves = found.default_hooks.checkpoint
    assert 'CheckpointHook' in str(saves.type) and saves.interval == 9


def test_a_metric_that_no_validation_gives_is_refused_at_once(desk):
    err = desk.give('--metric', 'mDcie', '--higher-is-better', status=2)
    assert "metric 'mDcie' is not among" in err and ': mIoU, mFscore' in err
    assert desk.starts() == ['work probe']


def test_a_metric_whose_direction_is_not_known(desk):
    argv = '--arms', 'full', 'short', '--seeds', 3, '--metric', 'mFscore'
    err = desk.give(*argv, status=2)
    assert "more of 'mFscore' is better is not known" in err
    out = desk.give(*argv, '--lower-is-better')
    assert 'mFscore against all data' in out and 'worse than short.' in out


def test_the_first_metric_of_a_validation(desk):
    options = '--cfg-options', 'default_hooks.checkpoint.save_best=auto'
    out = desk.give('--arms', 'full', '--seeds', 1, '--seconds', 7, *options)
    assert 'full-s0: mIoU 70.10' in out
    assert 'one on all data, and most take less (from --seconds)' in out


def test_a_pruned_config_gives_the_options_of_infobatch(desk, tmp_path):
    quantiles = dict(type='QuantilePolicy')
    cfg = enable(Config.fromfile(DIGITS.config), delta=0.7, policy=quantiles)
    cfg.dump(tmp_path / 'pruned.py')
    options = '--infobatch-options', 'score_momentum=0.5', 'policy.keep=0.6'
    argv = '--arms', 'full', '--seeds', 1, *options
    desk.give(*argv, config=tmp_path / 'pruned.py')
    hooks = {
        arm: Config.fromfile(
            desk.folder / f'work/{arm}/0/cell.py'
        ).custom_hooks
        for arm in ('full', 'infobatch')
    }
    assert [hook.type for hook in hooks['full']] == ['BenchmarkHook']
    assert hooks['infobatch'][-1] == dict(
        type='infobatch_mm.InfoBatchHook',
        pacing=None,
        score=None,
        delta=0.7,
        policy=dict(type='QuantilePolicy', keep=0.6),
        score_momentum=0.5,
    )


def test_without_a_terminal_it_does_not_begin(desk):
    with pytest.raises(SystemExit) as stopped:
        command.main([str(DIGITS.config)], prog='compare')
    assert stopped.value.code == 2
    assert desk.capsys.readouterr().err.endswith('begin: give --yes\n')


@pytest.mark.parametrize('answer', ['', 'n', 'yes'])
def test_it_asks_before_it_begins(desk, monkeypatch, answer):
    monkeypatch.setattr(sys.stdin, 'isatty', lambda: True)
    monkeypatch.setattr('builtins.input', lambda prompt: answer)
    argv = [DIGITS.config, '--arms', 'full', '--seeds', 1]
    argv += ['--work-dir', desk.folder / 'work']
    if answer == 'yes':
        command.main([*map(str, argv)])
    else:
        with pytest.raises(SystemExit) as stopped:
            command.main([*map(str, argv)])
        assert stopped.value.code == 1
        assert 'Nothing was trained.' in desk.capsys.readouterr().out
    assert ('full 0' in desk.starts()) == (answer == 'yes')


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['--seeds', 0], '--seeds 0: give how many'),
        (['--seeds', 3, -1], 'several that are not negative'),
        (['--length', 0], '0 is not above 0'),
        (['--arms', 'half'], "invalid choice: 'half'"),
        (['--infobatch-options', 'detla=1'], 'detla=1 is not an option'),
        (['--cfg-options', 'val_cfg=None'], 'has no validation'),
        (
            ['--cfg-options', 'train_dataloader.batch_size=1'],
            'small-batch out',
        ),
        (
            ['--cfg-options', 'train_dataloader.batch_size=None'],
            'train_dataloader.batch_size is not set',
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(desk, argv, said):
    assert said in desk.give(*argv, status=2)
    assert desk.starts() == []


def test_a_wrong_option_leaves_no_folder(desk):
    desk.give('--infobatch-options', 'delta=2', status=2)
    assert not (desk.folder / 'work').exists()


def test_another_command_does_not_change_what_a_comparison_trains(desk):
    def load(*argv):
        folder = ['--work-dir', str(desk.folder / 'work')]
        argv = [str(DIGITS.config), *folder, *argv]
        return command.load_study(command.build_parser().parse_args(argv))[0]

    study = load()
    before = stock_config(study.setup).to_dict()
    load('--cfg-options', 'optim_wrapper.optimizer.lr=0.3')
    assert stock_config(study.setup).to_dict() == before


@pytest.mark.parametrize(
    ('argv', 'folder'),
    [
        ([], 'work_dirs/digits-compare'),
        (['--length', '0.25'], 'work_dirs/digits-compare-0.25'),
        (['--length', '0.25', '--work-dir', 'here'], 'here'),
    ],
)
def test_a_pilot_has_a_folder_of_its_own(argv, folder):
    args = command.build_parser().parse_args([str(DIGITS.config), *argv])
    assert command.work_dir_of(args) == Path(folder)


def test_one_number_is_how_many_seeds_there_are():
    assert planning.seeds_of([3]) == [0, 1, 2]
    assert planning.seeds_of([7, 5, 7]) == [7, 5]


def test_the_commands_of_the_page_are_those_of_the_parser():
    text = (ROOT / 'docs/own_data.md').read_text()
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line.startswith('infobatch compare ')]
    assert len(found) == 5
    for line in found:
        args = command.build_parser().parse_args(line.split()[2:])
        assert args.config in ('my_config.py', 'my_trial.py')
        assert planning.seeds_of(args.seeds)
