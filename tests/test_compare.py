"""infobatch compare, and its library: from arms to statistics and verdict."""

import copy
import io
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS
from scipy import stats

from infobatch_mm import enable
from infobatch_mm.commands import compare as command
from infobatch_mm.compare import arms, processes, running, summary
from infobatch_mm.compare.arms import ALL_DATA, Arm, Budget
from infobatch_mm.compare.cells import (
    Study,
    append_result,
    budget_of,
    check_same,
    order,
    read_results,
)
from infobatch_mm.compare.parts import (
    BenchmarkHook,
    InfiniteSubsetSampler,
    UnscaledPolicy,
)
from infobatch_mm.compare.pictures import draw
from infobatch_mm.compare.setup import (
    Setup,
    samples_budget,
    stock_config,
    stretch,
)
from infobatch_mm.compare.statistics import (
    paired,
    power,
    rank_test,
    seeds_needed,
    verdict,
)
from infobatch_mm.compare.tables import (
    arms_table,
    class_gap,
    class_names,
    controls_table,
    differences,
    efficiency_table,
)
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
    assert {arm for arm, needed in waits.items() if needed is None} == {
        'infobatch',
        'full',
        'infobatch-small-batch',
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
        type='infobatch_mm.InfoBatchHook', policy=policy, delta=0.9
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


def test_small_batches_of_whole_epochs_have_the_steps_of_the_full_run():
    cfg = change(arms.small_batch(), copy.deepcopy(EPOCHS), Budget(0.73, 0.0))
    epochs, batch = cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size
    assert (epochs, batch) == (15, 12)  # both three quarters
    samples = 1536
    assert epochs * samples / batch == 20 * samples / 16
    warmup, rest = cfg.param_scheduler
    assert (warmup['end'], rest['end']) == (50, 15)
    assert cfg.train_dataloader.get('drop_last') is None


def test_a_last_batch_of_one_sample_is_dropped():
    budget = Budget(0.73, 0.0, samples=12 * 128 + 1)
    cfg = change(arms.small_batch(), copy.deepcopy(EPOCHS), budget)
    assert cfg.train_dataloader.drop_last


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


def test_infobatch_with_small_batches_has_its_options(stock):
    options = dict(policy=dict(type='QuantilePolicy'), pacing='fewer_steps')
    cfg = change(arms.core(**options)['infobatch-small-batch'], stock)
    hook = cfg.custom_hooks[-1]
    assert hook['policy'] == dict(type='QuantilePolicy')
    assert hook['pacing'] == 'smaller_batches'


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


# The file of finished runs


def result(arm, seed):
    return dict(arm=arm, seed=seed, value=0.1 + seed, threshold=None)


def test_results_are_read_by_arm_and_seed(tmp_path):
    path = tmp_path / 'new' / 'results.jsonl'
    assert read_results(path, ['full']) == {}
    for arm, seed in [('b', 2), ('a', 1), ('other', 0), ('b', 1)]:
        append_result(path, result(arm, seed))
    found = read_results(path, ['a', 'c', 'b'])
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
    found = read_results(path, 'abc')
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
    assert cells['short']['iters'] == pruned['iters']
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


# Without training


def test_an_arm_waits_for_what_it_needs(tmp_path):
    study = small_study(tmp_path)
    cells = order(study, [study.cell('short', 1), study.cell('full', 0)])
    assert [cell.name for cell in cells] == [
        'full-s0',
        'infobatch-s1',
        'short-s1',
    ]


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
