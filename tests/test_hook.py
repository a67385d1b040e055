"""The hook: a whole run, its files, and what it refuses."""

import json
import math
import struct
from pathlib import Path

import light
import pytest
import torch
import toys
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import Runner
from torch.utils.data import BatchSampler

from infobatch_mm import InfoBatchHook, checks, records
from infobatch_mm.report import runs
from infobatch_mm.sampler import InfoBatchSampler

EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=4)
ITERS = dict(type='InfoBatchIterBasedTrainLoop', max_iters=24)


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
    cfg = toys.config(
        work_dir, epochs=8, pacing='fewer_steps', log_level='INFO'
    )
    toys.add_validation(cfg, interval=4)
    return work_dir, toys.train(cfg)


def test_each_round_has_a_line(run):
    work_dir, runner = run
    rounds = read_rounds(work_dir)
    assert [r['round'] for r in rounds] == list(range(8))
    keys = (
        'round iter total kept drawn samples_before world_size iters '
        'threshold mean_weight max_weight variance_ratio score_histogram '
        'digest nonfinite seconds'
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


def test_the_best_is_that_of_save_best(tmp_path):
    cfg = light.config(tmp_path, EPOCHS, val=True)
    cfg.default_hooks.checkpoint.update(save_best='count', rule='less')
    summary = toys.hook_of(runner := toys.train(cfg)).summary(runner)
    # mmengine could not tell from the name which number of samples is best.
    assert summary['metric_best'] == summary['metric_last'] == 4


def test_the_best_is_a_number():
    history = {'val/mIoU': HistoryBuffer([math.nan, 60.0, 50.0], [1] * 3)}
    found = records.metric_of(history)
    assert found == dict(metric='mIoU', metric_last=50, metric_best=60)


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
            tmp_path,
            policy=policy,
            pacing='fewer_steps',
            log_level='INFO',
            **settings,
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
        (dict(policy=dict(type=None)), 'type=None'),
        (dict(policy=dict(type='InfoBatchPolicy', delta=0.5)), 'policy.delta'),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        InfoBatchHook(**settings)


def test_a_policy_without_a_type_is_the_paper_s():
    policy = InfoBatchHook(policy=dict(prune_ratio=0.7)).policy
    assert repr(policy) == 'InfoBatchPolicy(0.7 until 0.875)'


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


# What a run's hooks, loader and scheduler may do: served, or refused

LOOPS = pytest.mark.parametrize('loop', [EPOCHS, ITERS], ids=['epoch', 'iter'])


def steps_of(cfg, *hooks):
    """Train; return the runner and the samples of each step."""
    found = []

    class Watch(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch, outputs):
            samples = data_batch['data_samples']
            found.append([s.infobatch_index for s in samples])

    runner = Runner.from_cfg(cfg)
    for hook in (Watch(), *hooks):
        runner.register_hook(hook)
    runner.train()
    return runner, found


# Refused before the first step


@LOOPS
def test_a_second_call_of_train(tmp_path, loop):
    runner = toys.train(light.config(tmp_path, loop))
    lines = (tmp_path / 'infobatch.jsonl').read_text()
    with pytest.raises(RuntimeError, match=r'train\(\).*second.*resume=True'):
        runner.train()
    assert (tmp_path / 'infobatch.jsonl').read_text() == lines


@pytest.mark.parametrize(
    ('checkpoint', 'ours'), [('NORMAL', None), (None, 'LOWEST')]
)
def test_a_checkpoint_hook_before_ours(tmp_path, checkpoint, ours):
    cfg = light.config(tmp_path, EPOCHS)
    if checkpoint:
        cfg.default_hooks.checkpoint.priority = checkpoint
    if ours:
        cfg.custom_hooks[0].priority = ours
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match='CheckpointHook.*before InfoBatch'):
        runner.train()
    assert runner.iter == 0


class SwitchesLoss(Hook):
    """As mmpretrain's SwitchRecipeHook keeps its schedule."""

    def __init__(self, **recipe):
        self.schedule = {3: recipe}


def test_a_switch_of_the_loss(tmp_path):
    runner = Runner.from_cfg(light.config(tmp_path, EPOCHS))
    runner.register_hook(SwitchesLoss(loss=torch.nn.Identity()))
    with pytest.raises(ValueError, match='SwitchesLoss.*another loss'):
        runner.train()
    runner = Runner.from_cfg(light.config(tmp_path, EPOCHS))
    runner.register_hook(SwitchesLoss(train_pipeline=[]))
    runner.train()


@pytest.mark.parametrize('value', [0.1, 'loss_a', None])
def test_a_schedule_of_another_kind_is_no_switch(tmp_path, value):
    """As of a hook that raises the rate of stochastic depth."""
    runner = Runner.from_cfg(light.config(tmp_path, EPOCHS))
    hook = Hook()
    hook.schedule = {0: value}
    runner.register_hook(hook)
    runner.train()


@pytest.mark.parametrize(
    ('kept', 'batch', 'ranks', 'round_up', 'fits'),
    [
        (24, 4, 2, False, True),
        (23, 4, 2, False, True),  # 12 and 11: three steps each
        (17, 4, 2, False, False),  # 9 and 8
        (17, 4, 2, True, True),
        (17, 4, 1, False, True),
    ],
)
def test_ranks_make_as_many_steps(
    monkeypatch, kept, batch, ranks, round_up, fits
):
    sampler = InfoBatchSampler(range(kept), seed=0, round_up=round_up)
    monkeypatch.setattr(sampler, 'world_size', ranks)
    if fits:
        checks.check_equal_batches(sampler, kept, batch)
        return
    with pytest.raises(ValueError, match='round_up=False.*9 and 8 of 17'):
        checks.check_equal_batches(sampler, kept, batch)


# Refused when it happens


def test_a_train_dataloader_that_is_replaced(tmp_path):
    class Replace(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                cfg = light.config(tmp_path, EPOCHS).train_dataloader
                runner.train_loop.dataloader = runner.build_dataloader(cfg)

    runner = Runner.from_cfg(light.config(tmp_path, EPOCHS))
    runner.register_hook(Replace(), priority='LOWEST')
    with pytest.raises(RuntimeError, match='dataloader was replaced'):
        runner.train()
    assert runner.epoch == 1


def test_a_data_set_that_grows(tmp_path):
    class Grow(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 2:
                runner.train_dataloader.dataset.data_list += [dict(label=0)]

    runner = Runner.from_cfg(light.config(tmp_path, EPOCHS))
    runner.register_hook(Grow())
    with pytest.raises(RuntimeError, match='has 27 samples, and had 26'):
        runner.train()
    assert runner.epoch == 2


def test_a_head_that_is_replaced(tmp_path):
    class Replace(Hook):
        def after_train_epoch(self, runner):
            runner.model.head = light.LightHead()

    runner = Runner.from_cfg(light.config(tmp_path, EPOCHS))
    runner.register_hook(Replace())
    with pytest.raises((RuntimeError, ValueError), match='not weighted'):
        runner.train()
    assert runner.epoch == 1


# Served


@DATA_SAMPLERS.register_module()
class HoldsBack(BatchSampler):
    """Groups even and odd samples, as AspectRatioBatchSampler does shapes."""

    def __iter__(self):
        waiting = {0: [], 1: []}
        for index in self.sampler:
            group = waiting[index % 2]
            group.append(index)
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()
        rest = waiting[0] + waiting[1]
        for begin in range(0, len(rest), self.batch_size):
            yield rest[begin : begin + self.batch_size]


@pytest.mark.parametrize('stop', [2, 4, 8])
def test_a_batch_sampler_that_holds_samples_back(tmp_path, stop):
    class Stop(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, *args, **kwargs):
            if runner.iter + 1 == stop:
                raise KeyboardInterrupt

    def config(resume=False):
        cfg = light.config(tmp_path, ITERS, samples=24)
        cfg.train_dataloader.batch_sampler = dict(
            type='HoldsBack', drop_last=False
        )
        cfg.default_hooks.checkpoint = dict(
            type='CheckpointHook', by_epoch=False, interval=1
        )
        cfg.resume = resume
        return cfg

    before = []

    class Watch(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch, outputs):
            before.append(
                [s.infobatch_index for s in data_batch['data_samples']]
            )

    runner = Runner.from_cfg(config())
    runner.register_hook(Watch())
    runner.register_hook(Stop())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    plan = toys.hook_of(runner).plan
    first = toys.hook_of(runner).round_begin_iter
    _, after = steps_of(config(resume=True))
    steps = (before + after)[first : first + len(plan) // 4]
    trained = sorted(index for step in steps for index in step)
    assert trained == sorted(plan.indices.tolist())


@HOOKS.register_module()
class UploadingCheckpointHook(CheckpointHook):
    """Does something with each file as it is written."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.uploaded = []

    def _save_checkpoint_with_step(self, runner, step, meta):
        super()._save_checkpoint_with_step(runner, step, meta)
        self.uploaded.append(torch.load(self.last_ckpt, weights_only=False))


def test_a_subclass_of_the_checkpoint_hook_is_called(tmp_path):
    cfg = light.config(tmp_path, EPOCHS)
    cfg.default_hooks.checkpoint = dict(
        type='UploadingCheckpointHook', interval=1, max_keep_ckpts=1
    )
    runner = toys.train(cfg)
    (hook,) = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
    rounds = [file['infobatch']['round'] for file in hook.uploaded]
    assert rounds == [1, 2, 3, 4]
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_4.pth']


@pytest.mark.parametrize('when', ['before_run', 'before_train', 'before_step'])
def test_a_checkpoint_before_the_first_step(tmp_path, when):
    class SaveFirst(Hook):
        priority = 'VERY_HIGH'

        def save(self, runner):
            runner.save_checkpoint(
                str(tmp_path), f'{when}.pth', save_param_scheduler=False
            )

        def before_run(self, runner):
            if when == 'before_run':
                self.save(runner)

        def before_train(self, runner):
            if when == 'before_train':
                self.save(runner)

        def before_train_iter(self, runner, *args, **kwargs):
            if when == 'before_step' and runner.iter == 0:
                self.save(runner)

    runner = Runner.from_cfg(light.config(tmp_path, EPOCHS))
    runner.register_hook(SaveFirst())
    runner.train()
    saved = torch.load(tmp_path / f'{when}.pth', weights_only=False)
    assert ('infobatch' in saved) == (when == 'before_step')


@pytest.mark.parametrize('workers', [0, 1])
@LOOPS
def test_a_round_that_a_hook_begins_anew_is_an_error(tmp_path, loop, workers):
    """Which it does where workers live on, and serve one iterator."""

    class Peek(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            if runner.iter == 1:
                next(iter(runner.train_dataloader))

    cfg = light.config(tmp_path, loop)
    cfg.train_dataloader.num_workers = workers
    cfg.train_dataloader.persistent_workers = workers > 0
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Peek())
    if workers:
        with pytest.raises(RuntimeError, match='persistent_workers=False'):
            runner.train()
    else:
        runner.train()


def test_a_static_graph_is_refused(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group(
        'gloo', store=store, rank=0, world_size=1
    )
    try:
        wrapper = torch.nn.parallel.DistributedDataParallel(
            torch.nn.Linear(1, 1), static_graph=True
        )
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(ValueError, match=r"unweighted='allow'"):
        checks.check_graph(wrapper)


def test_a_hook_that_saves_within_the_step_saves_all_of_it(tmp_path):
    class SaveEarly(Hook):
        priority = 'VERY_HIGH'

        def after_train_iter(self, runner, *args, **kwargs):
            if runner.iter == 2:
                runner.save_checkpoint(str(tmp_path), 'early.pth')

    runner = Runner.from_cfg(light.config(tmp_path, EPOCHS))
    runner.register_hook(SaveEarly())
    runner.train()
    state = torch.load(tmp_path / 'early.pth', weights_only=False)['infobatch']
    assert state['samples_done'] == 3 * 4
    assert state['scores'].isfinite().sum() == 3 * 4
    assert toys.hook_of(runner).samples_seen == sum(
        toys.hook_of(runner).times_kept
    )


@LOOPS
@pytest.mark.parametrize('is_on', [True, False])
def test_schedulers_rest_without_their_hook(tmp_path, loop, is_on):
    schedulers = [dict(type='StepLR', by_epoch=False, step_size=4, gamma=0.5)]
    cfg = light.config(tmp_path, loop, schedulers=schedulers)
    if not is_on:
        cfg.default_hooks.param_scheduler = None
    runner = toys.train(cfg)
    (rate,) = runner.optim_wrapper.get_lr()['lr']
    assert (rate < 0.1) == is_on


def test_a_seed_of_the_samplers_own(tmp_path):
    def config(seed, resume):
        cfg = light.config(tmp_path, EPOCHS)
        cfg.train_dataloader.sampler.seed = seed
        cfg.default_hooks.checkpoint.interval = 2
        cfg.resume = resume
        return cfg

    toys.train(config(5, False))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    runner = toys.train(config(5, True))
    assert runner.seed == 7 and toys.hook_of(runner).seed == 5
    with pytest.raises(ValueError, match=r'sampler\.seed is 6.*seed 5'):
        toys.train(config(6, True))


# What viewers are shown


def shown(work_dir, **backend):
    """Train with a visualizer backend; return what it can be compared with.

    Returns:
        The runner, and the iterations done and the finite scores at the end
        of each round.
    """
    ends = []

    class Watch(Hook):
        def after_train_round(self, runner):
            scores = toys.hook_of(runner).board.scores
            ends.append((runner.iter, scores[scores.isfinite()]))

    cfg = light.config(work_dir, ITERS)
    cfg.train_dataloader.dataset.dataset.nan_at = (3,)
    cfg.visualizer.vis_backends = [backend]
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Watch(), priority='LOWEST')
    runner.train()
    assert len(ends) == 4
    return runner, ends


def test_tensorboard_shows_scalars_and_scores(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing import event_accumulator

    _, ends = shown(tmp_path, type='TensorboardVisBackend')
    (file,) = tmp_path.rglob('events.out.tfevents*')
    everything = dict.fromkeys(('scalars', 'histograms'), 0)
    events = event_accumulator.EventAccumulator(str(file), everything)
    events.Reload()
    rounds = read_rounds(tmp_path)
    clock = events.Scalars('infobatch/clock')
    assert [s.step for s in clock] == [r['iter'] for r in rounds]
    assert [s.value for s in clock] == [6 * r['round'] for r in rounds]
    histograms = events.Histograms('infobatch/scores')
    # At the step of the threshold that the next round takes from them.
    assert [h.step for h in histograms] == [step for step, _ in ends]
    assert [h.step for h in histograms[:-1]] == [s.step for s in clock[1:]]
    for histogram, (_, scores) in zip(histograms, ends, strict=True):
        value = histogram.histogram_value
        assert value.num == len(scores) < 26
        assert value.sum == pytest.approx(scores.sum().item())
        assert (value.min, value.max) == (scores.min(), scores.max())


def wandb_rows(file):
    """Read the rows of an offline run: a LevelDB log of protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = file.read_bytes(), 7, b''
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack('<HB', data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            items = Record.FromString(record).history.item
            yield {
                item.key or '/'.join(item.nested_key): json.loads(
                    item.value_json
                )
                for item in items
            }
            record = b''


def test_wandb_shows_scalars_and_scores(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    _, ends = shown(
        tmp_path, type='WandbVisBackend', init_kwargs=dict(mode='offline')
    )
    wandb.teardown()  # until then its process may still be writing
    (file,) = tmp_path.rglob('run-*.wandb')
    rows = list(wandb_rows(file))
    clock = [
        row['infobatch/clock'] for row in rows if 'infobatch/clock' in row
    ]
    assert clock == [0, 6, 12, 18]
    shown_scores = [row for row in rows if 'infobatch/scores/values' in row]
    for row, (_, scores) in zip(shown_scores, ends, strict=True):
        assert sum(row['infobatch/scores/values']) == len(scores)
        bins = row['infobatch/scores/bins']
        assert (bins[0], bins[-1]) == pytest.approx(
            (scores.min().item(), scores.max().item())
        )
    # No rows of their own: they come with the scalars of the next round.
    assert [row.get('infobatch/clock') for row in shown_scores] == [
        *clock[1:],
        None,
    ]


def test_mlflow_shows_scalars(tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    shown(tmp_path, type='MLflowVisBackend')
    found = mlflow.last_active_run()
    client = mlflow.MlflowClient()
    rounds = read_rounds(tmp_path)
    for name in ('clock', 'kept_ratio', 'saved_ratio', 'mean_weight'):
        history = client.get_metric_history(
            found.info.run_id, f'infobatch/{name}'
        )
        assert [each.step for each in history] == [r['iter'] for r in rounds]
    assert [each.value for each in history] == pytest.approx(
        [r['mean_weight'] for r in rounds]
    )


def test_no_scores_leave_a_histogram_out(tmp_path):
    pytest.importorskip('tensorboard')
    cfg = light.config(tmp_path, dict(ITERS, max_iters=6), samples=24)
    cfg.train_dataloader.dataset.dataset.nan_at = tuple(range(24))
    cfg.visualizer.vis_backends = [dict(type='TensorboardVisBackend')]
    assert toys.train(cfg).iter == 6
