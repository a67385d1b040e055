"""The hook: a whole run, its files, and what it refuses."""

import json
import math
from pathlib import Path

import pytest
import toys

from infobatch_mm import InfoBatchHook
from infobatch_mm.report import runs


def read_rounds(work_dir):
    lines = (work_dir / 'infobatch.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def log_lines(work_dir, start):
    """Return what the logs of a folder say in lines that begin so."""
    found = [
        line.partition(' - INFO - ')[2]
        for path in sorted(work_dir.glob('*/*.log'))
        for line in path.read_text().splitlines()
    ]
    return [line for line in found if line.startswith(start)]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """One pruned run of 8 epochs on 24 samples in batches of 4."""
    work_dir = tmp_path_factory.mktemp('run')
    cfg = toys.config(work_dir, epochs=8, log_level='INFO')
    toys.add_validation(cfg, interval=4)
    return work_dir, toys.train(cfg)


def test_each_round_has_a_line(run):
    work_dir, runner = run
    rounds = read_rounds(work_dir)
    assert [r['round'] for r in rounds] == list(range(8))
    keys = (
        'round iter total kept threshold mean_weight max_weight '
        'variance_ratio score_histogram digest nonfinite seconds'
    )
    for record in rounds:
        assert list(record) == keys.split()
        assert sum(record['score_histogram']) == 24
        pruned = record['kept'] < 24
        assert (record['max_weight'] > 1) == pruned
        assert (record['variance_ratio'] > 0) == pruned
        assert record['total'] == 24
        assert record['kept'] % 4 == 0
        assert record['mean_weight'] == pytest.approx(24 / record['kept'])
        assert record['nonfinite'] == 0 and record['seconds'] > 0
    iters = [r['iter'] for r in rounds] + [runner.iter]
    steps = [r['kept'] // 4 for r in rounds]
    assert [b - a for a, b in zip(iters, iters[1:], strict=False)] == steps


def test_first_round_and_annealing_use_all_data(run):
    rounds = read_rounds(run[0])
    full = [r['kept'] == 24 and r['threshold'] is None for r in rounds]
    # Round 7 begins at 7 / 8 = delta of the budget.
    assert full[0] and full[7]
    assert not any(full[1:7])


def test_the_threshold_is_the_mean_of_the_last_losses(run):
    assert all(
        math.isfinite(r['threshold']) and r['threshold'] > 0
        for r in read_rounds(run[0])[1:7]
    )


def test_summary(run):
    work_dir, runner = run
    summary = json.loads((work_dir / 'infobatch_summary.json').read_text())
    kept = sum(r['kept'] for r in read_rounds(work_dir))
    assert summary['policy'] == 'InfoBatchPolicy(0.5 until 0.875)'
    assert summary['total'] == 24 and summary['rounds'] == 8
    assert summary['samples_budget'] == 8 * 24
    assert summary['samples_seen'] == kept < 8 * 24
    assert summary['saved_ratio'] == pytest.approx(1 - kept / (8 * 24))
    assert summary['iters_budget'] == 8 * 6
    assert summary['iters_run'] == runner.iter == kept // 4
    seconds = sum(r['seconds'] for r in read_rounds(work_dir))
    assert summary['train_seconds'] == pytest.approx(seconds, rel=0.05)
    assert 0 < summary['overhead_seconds'] < summary['train_seconds']
    pace = summary['train_seconds'] / runner.iter
    assert summary['train_seconds_budget'] == pytest.approx(48 * pace)


def test_the_summary_has_the_metric(run):
    work_dir, _ = run
    summary = json.loads((work_dir / 'infobatch_summary.json').read_text())
    found = [line['mIoU'] for line in runs.validations(work_dir)]
    assert len(found) == 2
    assert summary['metric'] == 'mIoU'
    assert summary['metric_last'] == pytest.approx(found[-1])
    assert summary['metric_best'] == pytest.approx(max(found))


def test_the_log_has_a_line_a_round(run):
    lines = log_lines(run[0], 'InfoBatch round')
    seen = 0
    for line, record in zip(lines, read_rounds(run[0]), strict=True):
        number, kept = record['round'], record['kept']
        seen += kept
        assert f'round {number}: {kept} of 24 samples' in line
        saved = 1 - seen / (24 * (number + 1))
        assert line.endswith(f'; {saved:.1%} of the samples saved so far')
        assert f'mean weight {24 / kept:.4g};' in line
        if record['threshold'] is None:
            assert 'threshold' not in line
        else:
            assert f'threshold {record["threshold"]:.4g},' in line


def test_a_resumed_run_says_where(tmp_path):
    def start(**settings):
        policy = dict(type='RandomPolicy', prune_ratio=0.5)
        cfg = toys.config(
            tmp_path, policy=policy, log_level='INFO', **settings
        )
        toys.make_iter_based(cfg, 24)
        cfg.default_hooks.checkpoint = dict(
            type='CheckpointHook', interval=10, by_epoch=False
        )
        toys.train(cfg)

    start()
    assert not log_lines(tmp_path, 'InfoBatch resumes')
    # Tick 10 of 24 is passed in the second of the three steps of round 1.
    start(resume=True, load_from=str(tmp_path / 'iter_8.pth'))
    assert 'InfoBatch resumes in round 1, sample 8 of 12' in log_lines(
        tmp_path, 'InfoBatch resumes'
    )


def test_scalars_reach_the_visualizer(run):
    (file,) = Path(run[0]).glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in file.read_text().splitlines()]
    ours = [line for line in logged if 'infobatch/kept_ratio' in line]
    rounds = read_rounds(run[0])
    assert [s['step'] for s in ours] == [r['iter'] for r in rounds]
    seen = 0
    for scalars, record in zip(ours, rounds, strict=True):
        seen += record['kept']
        assert scalars['infobatch/clock'] == 6 * record['round']
        assert scalars['infobatch/kept_ratio'] == record['kept'] / 24
        assert scalars['infobatch/saved_ratio'] == pytest.approx(
            1 - seen / (24 * (record['round'] + 1))
        )
        assert scalars['infobatch/mean_weight'] == record['mean_weight']
        assert scalars.get('infobatch/threshold') == record['threshold']
        ratio = scalars['infobatch/variance_ratio']
        assert ratio == record['variance_ratio']


def test_rounds_of_each_sample_are_counted(run):
    times_kept = toys.hook_of(run[1]).times_kept
    assert times_kept.sum() == sum(r['kept'] for r in read_rounds(run[0]))
    # The first and the last round keep all.
    assert times_kept.min() >= 2 and times_kept.max() <= 8


def test_iterations_are_known_at_the_end(run):
    runner = run[1]
    assert runner.max_iters == runner.iter
    assert runner.message_hub.get_info('max_iters') == runner.iter


def stock_part(part):
    """Return a pruned run in which one part was left as it is in stock."""

    def change(cfg):
        stock = toys.config(cfg.work_dir, pruned=False)
        if part == 'auxiliary_head':
            cfg.model.auxiliary_head = stock.model.auxiliary_head
        elif part == 'model':
            cfg.model = stock.model
        else:
            cfg.train_dataloader[part] = stock.train_dataloader[part]

    return change


def two_hooks(cfg):
    cfg.custom_hooks = cfg.custom_hooks * 2


def plain_iter_loop(cfg):
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=8)


def infinite_sampler(cfg):
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')


@pytest.mark.parametrize(
    'change, error, words',
    [
        (stock_part('sampler'), TypeError, 'DefaultSampler.*InfoBatchSampler'),
        (infinite_sampler, TypeError, 'InfiniteSampler.*InfoBatchSampler'),
        (stock_part('dataset'), TypeError, 'DigitScenes.*IndexedDataset'),
        (stock_part('model'), ValueError, r'decode_head \(UPerHead\)'),
        (
            stock_part('auxiliary_head'),
            ValueError,
            r'not weighted.*: auxiliary_head \(FCNHead\)\. ',
        ),
        (two_hooks, ValueError, 'more than one InfoBatchHook'),
        (plain_iter_loop, TypeError, 'InfoBatchIterBasedTrainLoop'),
    ],
)
def test_a_part_that_is_missing_is_named(tmp_path, change, error, words):
    cfg = toys.config(tmp_path)
    change(cfg)
    runner = toys.Runner.from_cfg(cfg)
    with pytest.raises(error, match=words):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(delta=1.5), r'delta.*1\.5'),
        (dict(delta=-0.1), r'delta.*-0\.1'),
        (dict(policy=dict(type='InfoBatchPolicy', prune_ratio=1)), 'prune_r'),
        (dict(policy=dict(type='NoSuchPolicy')), 'NoSuchPolicy.*known'),
        (dict(policy=dict(prune_ratio=0.5)), 'type=None'),
        (dict(policy=dict(type='InfoBatchPolicy', delta=0.5)), 'policy.delta'),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        InfoBatchHook(**settings)


@pytest.mark.parametrize('delta, pruned', [(0, 0), (1, 3)])
def test_delta_at_its_ends(tmp_path, delta, pruned):
    toys.train(toys.config(tmp_path, delta=delta))
    kept = [r['kept'] < 24 for r in read_rounds(tmp_path)]
    assert kept == [False] + [pruned > 0] * 3


def test_a_ramp_prunes_more_and_more(tmp_path):
    ratio = dict(type='linear', start=0.0, end=0.9)
    policy = dict(type='RandomPolicy', prune_ratio=ratio)
    cfg = toys.config(tmp_path, policy=policy, delta=1, batch_size=2)
    toys.train(cfg)
    # At 1/4, 2/4 and 3/4 of the clock 0.225, 0.45 and 0.675 are pruned
    # of 24: 19, 13 and 8 are left, in batches of 2.
    assert [r['kept'] for r in read_rounds(tmp_path)] == [24, 20, 14, 8]
