"""The benchmark: arms, cells, verdicts."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS
from scipy import stats
from test_hook import read_rounds

import benchmark
import benchmark_report
from benchmark import Budget, Cell, Suite
from benchmark_parts import InfiniteSubsetSampler, UnscaledPolicy
from benchmark_statistics import (
    paired,
    power,
    rank_test,
    seeds_needed,
    verdict,
)

# Verdicts


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


# Arms


@pytest.fixture
def stock():
    return benchmark.stock_config(benchmark.SUITES['digits'])


BUDGET = Budget(share=0.8, prune_ratio=0.3)


def test_full_is_stock(stock):
    expected = stock.to_dict()
    cfg = benchmark.ARMS['full'](stock, None, 0)
    assert cfg.to_dict() == expected


def test_a_model_is_laid_out_channels_last():
    suite = benchmark.SUITES['digits']._replace(channels_last=True)
    cfg = benchmark.stock_config(suite)
    hook = HOOKS.build(cfg.custom_hooks[-1])
    model = torch.nn.Conv2d(3, 4, 3)
    hub = MessageHub.get_instance('channels_last')
    hook.before_train(SimpleNamespace(model=model, message_hub=hub))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_short_shortens_the_schedule_with_its_intervals(stock):
    cfg = benchmark.ARMS['short'](stock, BUDGET, 0)
    assert cfg.train_cfg.max_iters == 1536
    assert cfg.param_scheduler[0]['end'] == 1536
    assert cfg.train_cfg.val_interval == 256
    assert cfg.train_dataloader.sampler.type == 'InfiniteSampler'


@pytest.mark.parametrize('share', [0.1, 0.5, 0.731, 0.77777, 0.9, 1 / 3, 3])
def test_a_stretched_run_validates_as_often(stock, share):
    benchmark.stretch(stock, share)
    end, interval = stock.train_cfg.max_iters, stock.train_cfg.val_interval
    assert end == round(1920 * share)
    # mmengine validates at each multiple, and at the end.
    assert len({*range(interval, end, interval), end}) == 6


def test_arms_of_equal_cost(stock):
    cfg = benchmark.ARMS['random'](stock, BUDGET, 0)
    policy = cfg.custom_hooks[-1].policy
    assert policy == dict(type='RandomPolicy', prune_ratio=0.3)
    assert cfg.train_cfg.max_iters == 1920


@pytest.mark.parametrize('arm', ['short-lr', 'infobatch-lr'])
def test_lr_of_fewer_steps(stock, arm):
    lr = stock.optim_wrapper.optimizer.lr
    cfg = benchmark.ARMS[arm](stock, BUDGET, 0)
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


def test_an_arm_waits_for_what_it_needs():
    cells = benchmark.order([Cell('digits', 'short', 1)])
    assert [cell.arm for cell in cells] == ['infobatch', 'short']


def test_the_remainder_of_a_full_round_is_not_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'CELLS', tmp_path)
    cell = Cell('camvid', 'infobatch', 0)
    rounds = [  # scored, pruned, annealed
        dict(kept=364, total=367, variance_ratio=0.0),
        dict(kept=252, total=367, variance_ratio=0.4),
        dict(kept=260, total=367, variance_ratio=0.4),
        dict(kept=364, total=367, variance_ratio=0.0),
    ]
    result = dict(samples_seen=1240, samples_budget=1456, rounds=rounds)
    cell.file.parent.mkdir()
    cell.file.write_text(json.dumps(result))
    budget = benchmark.budget_of(cell)
    assert budget.prune_ratio == pytest.approx(1 - 256 / 367)


# A small suite, run to the end


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp('benchmark')
    options = {
        'train_dataloader.dataset.num_scenes': 64,
        'train_dataloader.batch_size': 8,
        'val_dataloader.dataset.num_scenes': 8,
        'train_cfg.max_iters': 40,
        'train_cfg.val_interval': 16,
        'default_hooks.checkpoint.interval': 4,
    }
    suite = Suite('benchmarks/configs/digits.py', 'mIoU', options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, 'CELLS', folder / 'cells')
        patch.setattr(benchmark_report, 'CELLS', folder / 'cells')
        patch.setattr(benchmark_report, 'PICTURES', folder)
        patch.setattr(benchmark, 'RUNS', folder / 'runs')
        patch.setitem(benchmark.SUITES, 'small', suite)
        yield folder


@pytest.fixture(scope='module')
def cells(small):
    args = ['small', '--arms', 'full', 'short', '--seeds', '3', '--jobs', '1']
    assert benchmark.main(args) == 0
    found = benchmark_report.read_cells('small')
    return {arm: found[arm][3] for arm in found}


def test_cells_hold_costs_and_metrics(small, cells):
    assert list(cells) == ['infobatch', 'full', 'short']
    full, pruned = cells['full'], cells['infobatch']
    assert full['samples_seen'] == full['samples_budget'] == 320
    assert full['iters'] == 40 and full['rounds'] == []
    rounds = read_rounds(small / 'runs/small/infobatch-s3')
    assert pruned['samples_seen'] == sum(r['kept'] for r in rounds) < 320
    assert [r['kept'] for r in pruned['rounds']] == [r['kept'] for r in rounds]
    assert cells['short']['iters'] == pruned['iters']
    for cell in cells.values():
        assert cell['value'] == cell['validations'][-1]['mIoU']
        assert 'IoU/background' in cell['validations'][-1]
        assert cell['train_seconds'] > 0 and cell['cpu_seconds'] > 0


def test_mean_iou_is_that_of_the_classes(cells):
    for val in cells['full']['validations']:
        iou = [v for name, v in val.items() if name.startswith('IoU/')]
        assert val['mIoU'] == pytest.approx(np.nanmean(iou), abs=0.006)


def test_a_finished_cell_is_not_run_again(small, cells, monkeypatch):
    def run(cell):
        raise AssertionError(f'{cell} was run again')

    monkeypatch.setattr(benchmark, 'run', run)
    assert benchmark.main(['small', '--arms', 'full', '--seeds', '3']) == 0


def test_a_cell_of_another_config_is_refused(small, cells, monkeypatch):
    options = benchmark.SUITES['small'].options
    monkeypatch.setitem(options, 'train_cfg.max_iters', 48)
    with pytest.raises(ValueError, match='made by another config'):
        benchmark.main(['small', '--arms', 'full', '--seeds', '3'])


def test_a_cell_that_was_cut_off_goes_on(small, monkeypatch):
    """As if killed after a checkpoint: a start that ends at iteration 20."""
    other = Cell('small', 'infobatch', 4)
    cfg = benchmark.config_of(other)
    cfg.custom_hooks.append(dict(type='StopHook', at=20))
    cfg.custom_imports.imports.append('stop_hook')
    (small / 'stop_hook.py').write_text(
        'from mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n'
        '@HOOKS.register_module()\n'
        'class StopHook(Hook):\n'
        '    priority = "LOWEST"\n'
        '    def __init__(self, at): self.at = at\n'
        '    def after_train_iter(self, runner, *args, **kwargs):\n'
        '        if runner.iter + 1 == self.at: raise SystemExit(9)\n'
    )
    monkeypatch.setenv('PYTHONPATH', str(small), prepend=os.pathsep)
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, 'config_of', lambda _: cfg)
        patch.setattr(benchmark, 'config_hash', lambda _: 'same')
        with pytest.raises(RuntimeError, match='failed'):
            benchmark.run(other)
    assert not other.file.exists()
    monkeypatch.setattr(benchmark, 'config_hash', lambda _: 'same')
    benchmark.run(other)
    result = json.loads(other.file.read_text())
    assert result['starts'] == 2
    rounds = read_rounds(other.work_dir)
    assert result['samples_seen'] == sum(r['kept'] for r in rounds)
    other.file.unlink()


def test_report(small, cells, monkeypatch):
    results = small / 'RESULTS.md'
    results.write_text(
        '# Results\n\n<!-- begin small -->\nold\n<!-- end small -->\n\nlast\n'
    )
    monkeypatch.setattr(benchmark_report, 'RESULTS', results)
    monkeypatch.setattr(benchmark_report, 'ROOT', small)
    for _ in range(2):  # the second time it replaces what the first wrote
        benchmark_report.main()
    text = results.read_text()
    assert text.count('\n| `infobatch` |') == 1
    assert text.count('begin small') == 1 and text.endswith('last\n')
    assert 'old' not in text and (small / 'small.png').exists()


def test_controls_that_were_not_run_are_named(cells):
    some = {arm: cells[arm] for arm in ('full', 'infobatch')}
    text = benchmark_report.controls_table(some)
    assert text.endswith('`random` and `short`: not run.')


def test_the_map_leaves_out_what_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_report, 'PICTURES', tmp_path)
    rounds = [dict(total=4, kept=3, variance_ratio=0.1)]
    cells = {
        arm: {
            seed: dict(value=value + seed, samples_seen=9, rounds=rounds)
            for seed in (0, 1)
        }
        for value, arm in enumerate(benchmark.CORE)
    }
    some = {'digits': cells, 'digits-near90-three': cells}
    assert benchmark_report.draw_map(some).exists()
    lines = benchmark_report.map_table(some).splitlines()
    assert [line.split('`')[1] for line in lines[2:]] == list(some)


def test_prediction_compares_suites_of_equal_length():
    def cells(ratio, gain):
        rounds = [dict(total=4, kept=3, variance_ratio=ratio)]
        return {
            arm: {0: dict(value=gain * (arm == 'infobatch'), rounds=rounds)}
            for arm in benchmark.CORE
        }

    # More gain at the greater ratio, but for the length, which outdoes it.
    of = {
        'digits-near0-third': cells(0.1, 3.0),
        'digits-near50-third': cells(0.2, 4.0),
        'digits': cells(0.3, 1.0),
        'digits-near50-one': cells(0.4, 2.0),
    }
    lines = benchmark_report.prediction_table(of).splitlines()
    assert lines[2] == '| `full` | -0.60 | 0.417 | +1.00 | 0.500 |'


def test_efficiency_is_time_saved_over_samples_saved():
    def run(samples, cpu, wall):
        return dict(samples_seen=samples, cpu_seconds=cpu, train_seconds=wall)

    cells = dict(
        full={0: run(100, 50.0, 100.0), 1: run(100, 40.0, 80.0)},
        infobatch={
            0: run(80, 41.0, 90.0),
            1: run(75, 30.0, 60.0),
            2: run(75, 30.0, 60.0),  # not yet a pair
        },
    )
    text = benchmark_report.efficiency_table({'digits': cells})
    assert '| `digits` | 2 | 22.5% | 21.5% | 0.95 [' in text
    assert '] | 17.5% | 0.75 [' in text
