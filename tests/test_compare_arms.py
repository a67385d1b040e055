"""The arms of a comparison, and what they have in common."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS

from infobatch_mm.compare import arms
from infobatch_mm.compare.arms import ALL_DATA, Budget
from infobatch_mm.compare.parts import (
    BenchmarkHook,
    InfiniteSubsetSampler,
    UnscaledPolicy,
)
from infobatch_mm.compare.setup import (
    Setup,
    samples_budget,
    stock_config,
    stretch,
)

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
    assert imports[-2:] == list(DIGITS.parts)
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
    assert types == ['Accuracy', 'ClassIoUMetric']
    assert cfg.custom_imports.imports == ['infobatch_mm', *DIGITS.parts]
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
            top1=71.2346,
        )
    ]


# Arms


def test_full_is_stock(stock):
    expected = stock.to_dict()
    assert change(arms.full(), stock, ALL_DATA).to_dict() == expected


def test_only_arms_of_equal_cost_wait_for_the_pruned_run():
    waits = {name: arm.at_cost_of for name, arm in arms.core().items()}
    assert waits == dict(
        infobatch=None, full=None, random='infobatch', short='infobatch'
    )


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
        type='infobatch_mm.InfoBatchHook', policy=policy, delta=0.9
    )
    assert cfg.train_cfg.max_iters == 1920


@pytest.mark.parametrize('arm', [arms.short_lr(), arms.infobatch_lr()])
def test_lr_of_fewer_steps(stock, arm):
    lr = stock.optim_wrapper.optimizer.lr
    cfg = change(arm, stock)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr / 0.8)


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
