"""Resumed runs equal uninterrupted ones, after a stop and after SIGKILL."""

import json
import os
import random
import signal
from functools import partial

import light
import pytest
import torch
import toys
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MessageHub
from mmengine.registry import METRICS
from processes import Child

from infobatch_mm import parts
from infobatch_mm.host.checkpoint_files import AtomicLocalBackend

EPOCHS = dict(type='InfoBatchEpochBasedTrainLoop', max_epochs=8)
PLAIN_EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=8)
ITERS = dict(type='InfoBatchIterBasedTrainLoop', max_iters=50)
LOOPS = pytest.mark.parametrize(
    'loop', [EPOCHS, PLAIN_EPOCHS, ITERS], ids=['epoch', 'plain', 'iter']
)


class Progress(Hook):
    """Report each iteration to the parent process."""

    def __init__(self, counter):
        self.counter = counter

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.counter.value += 1


class StopAfter(Hook):
    """End a run as Ctrl-C would, after some iterations."""

    priority = 'LOWEST'

    def __init__(self, iters):
        self.iters = iters

    def after_train_iter(self, runner, batch_idx, **kwargs):
        if runner.iter + 1 == self.iters:
            raise KeyboardInterrupt


def config(work_dir, loop, *, every=2, resume=False, **settings):
    """Return a light run that saves often and keeps one checkpoint."""
    saves = dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=every,
        max_keep_ckpts=1,
    )
    schedulers = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=15),
        dict(type='PolyLR', power=0.9, by_epoch=False, begin=15, end=50),
    ]
    cfg = light.config(
        work_dir,
        loop,
        schedulers=schedulers,
        default_hooks=dict(checkpoint=saves),
        **settings,
    )
    cfg.resume = resume
    return cfg


def segmentor(work_dir, *, resume=False):
    """Return a run of a real segmentor that saves often."""
    saves = dict(by_epoch=False, interval=2, max_keep_ckpts=1)
    cfg = toys.config(work_dir, epochs=5, default_hooks=dict(checkpoint=saves))
    toys.make_iter_based(cfg, max_iters=27)
    cfg.resume = resume
    return cfg


def run(make_config, resume, hooks=(), progress=None):
    runner = toys.Runner.from_cfg(make_config(resume=resume))
    if progress is not None:
        hooks = [*hooks, Progress(progress)]
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()


def finish(make_config, *, resume=False):
    """Run to the end in a process of its own."""
    assert Child(run, make_config, resume, ()).join(timeout=300) == 0


def rounds(work_dir):
    lines = (work_dir / 'infobatch.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record['seconds']
    return records


def last_checkpoint(work_dir):
    name = (work_dir / 'last_checkpoint').read_text()
    return torch.load(name, weights_only=False, map_location='cpu')


def assert_same_end(work_dir, reference):
    """Rounds, weights, optimizer and scores are the same to the bit."""
    assert rounds(work_dir) == rounds(reference)
    ours, theirs = last_checkpoint(work_dir), last_checkpoint(reference)
    assert ours['meta']['iter'] == theirs['meta']['iter']
    for key, value in theirs['state_dict'].items():
        assert torch.equal(ours['state_dict'][key], value), key
    for name in 'scores', 'times_kept':
        states = (c['infobatch'][name] for c in (ours, theirs))
        assert torch.equal(*states), name
    groups = (c['optimizer']['param_groups'][0] for c in (ours, theirs))
    lrs = {group['lr'] for group in groups}
    assert len(lrs) == 1
    counters = ('round', 'samples_seen', 'samples_planned', 'clock')
    for name in counters:
        assert ours['infobatch'][name] == theirs['infobatch'][name]


def kill_until_done(make_config, *, kills, seed):
    """SIGKILL a run at random moments, then let it finish."""
    draw = random.Random(seed)
    done = 0
    for _ in range(kills):
        child = Child(run, make_config, True, ())
        moment = draw.randint(1, 7), draw.uniform(0, 0.02)
        done += child.kill_after(*moment, timeout=120)
    finish(make_config, resume=True)
    return done


@LOOPS
def test_killed_at_random_moments(tmp_path, loop):
    finish(partial(config, tmp_path / 'reference', loop))
    killed = partial(config, tmp_path / 'killed', loop)
    assert kill_until_done(killed, kills=6, seed=str(loop)) >= 5
    assert_same_end(tmp_path / 'killed', tmp_path / 'reference')


def test_a_segmentor_killed_at_random_moments(tmp_path):
    finish(partial(segmentor, tmp_path / 'reference'))
    killed = partial(segmentor, tmp_path / 'killed')
    assert kill_until_done(killed, kills=3, seed=0) >= 2
    assert_same_end(tmp_path / 'killed', tmp_path / 'reference')


@LOOPS
@pytest.mark.parametrize('every', [1, 7])
def test_stopped_anywhere(tmp_path, loop, every):
    """Within a round, at its ends, and before the last is recorded."""
    reference = tmp_path / 'reference'
    run(partial(config, reference, loop, every=every), False)
    last = last_checkpoint(reference)['meta']['iter']
    for iters in (6, 7, 8, 13, last):
        stopped = tmp_path / str(iters)
        make_config = partial(config, stopped, loop, every=every)
        with pytest.raises(KeyboardInterrupt):
            run(make_config, False, [StopAfter(iters)])
        finish(make_config, resume=True)
        assert_same_end(stopped, reference)


@LOOPS
def test_exact_at_accumulation_boundaries(tmp_path, loop):
    settings = dict(every=1, optim_wrapper=dict(accumulative_counts=2))
    reference, stopped = tmp_path / 'reference', tmp_path / 'stopped'
    run(partial(config, reference, loop, **settings), False)
    assert any(r['kept'] < 24 for r in rounds(reference))
    make_config = partial(config, stopped, loop, **settings)
    with pytest.raises(KeyboardInterrupt):
        run(make_config, False, [StopAfter(14)])
    finish(make_config, resume=True)
    assert_same_end(stopped, reference)


class DieWhileSaving(Hook):
    """Cut the second checkpoint off in the middle of its bytes."""

    def before_save_checkpoint(self, runner, checkpoint):
        if runner.iter > 4:
            LocalBackend.put = self._put_half

    @staticmethod
    def _put_half(backend, obj, filepath):
        with open(filepath, 'wb') as file:
            file.write(obj[: len(obj) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_while_saving(tmp_path):
    reference, killed = tmp_path / 'reference', tmp_path / 'killed'
    finish(partial(config, reference, ITERS, every=3))
    make_config = partial(config, killed, ITERS, every=3)
    child = Child(run, make_config, False, [DieWhileSaving()])
    assert child.join(timeout=120) == -signal.SIGKILL
    assert list(killed.glob('*.pth.tmp')), 'it died while writing'
    # The one checkpoint that is kept is whole, and named.
    (kept,) = killed.glob('*.pth')
    assert (killed / 'last_checkpoint').read_text() == str(kept)
    assert last_checkpoint(killed)['infobatch']['round'] == 0
    finish(make_config, resume=True)
    assert_same_end(killed, reference)
    assert len(list(killed.glob('*.pth'))) == 1


@METRICS.register_module()
class FallingMetric(BaseMetric):
    """Better at the second validation than at the first, then worse."""

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        now = MessageHub.get_current_instance().get_info('iter') + 1
        return dict(acc={10: 50.0, 20: 60.0}.get(now, 40.0))


class DieAtTheSecondBest(Hook):
    def before_run(self, runner):
        stock = AtomicLocalBackend.put

        def put(self, obj, filepath):
            if 'best_acc_iter_20' in str(filepath):
                os.kill(os.getpid(), signal.SIGKILL)
            stock(self, obj, filepath)

        AtomicLocalBackend.put = put


def test_killed_while_saving_the_best(tmp_path):
    def make_config(resume):
        saves = dict(by_epoch=False, interval=10, max_keep_ckpts=1)
        saves |= dict(save_best='acc', rule='greater')
        hooks = dict(checkpoint=dict(type='CheckpointHook', **saves))
        cfg = light.config(tmp_path, ITERS, val=True, default_hooks=hooks)
        cfg.train_cfg.val_interval = 10
        cfg.val_evaluator = dict(type='FallingMetric')
        cfg.resume = resume
        return cfg

    child = Child(run, make_config, False, [DieAtTheSecondBest()])
    assert child.join(timeout=120) == -signal.SIGKILL
    finish(make_config, resume=True)
    # That validation is not repeated, so the best is the one before it.
    (best,) = tmp_path.glob('best_*.pth')
    assert best.name == 'best_acc_iter_10.pth'


def test_the_best_of_a_run_replaces_the_one_before(tmp_path):
    cfg = light.config(tmp_path, ITERS, val=True)
    cfg.default_hooks.checkpoint.update(
        save_best='acc', rule='greater', by_epoch=False
    )
    cfg.train_cfg.val_interval = 10
    cfg.val_evaluator = dict(type='FallingMetric')
    runner = toys.train(cfg)
    (best,) = tmp_path.glob('best_*.pth')
    assert best.name == 'best_acc_iter_20.pth'
    # Validated twice at one place, it is written over and not deleted.
    hook = next(h for h in runner.hooks if isinstance(h, CheckpointHook))
    for value in 70.0, 80.0:
        hook._save_best_checkpoint(runner, dict(acc=value))
        (best,) = tmp_path.glob('best_*.pth')
        assert best.name == 'best_acc_iter_50.pth'


def stop_at_9(tmp_path, **settings):
    with pytest.raises(KeyboardInterrupt):
        run(
            partial(config, tmp_path, ITERS, **settings),
            False,
            [StopAfter(9)],
        )


def test_our_entry_is_tensors_and_plain_values(tmp_path):
    stop_at_9(tmp_path)
    entry = last_checkpoint(tmp_path)['infobatch']
    torch.save(entry, tmp_path / 'entry.pth')
    again = torch.load(tmp_path / 'entry.pth', weights_only=True)
    assert again.keys() == entry.keys()
    assert again['scores'].dtype == torch.float32
    assert again['indices'].dtype == torch.int64


def test_another_data_set_is_refused(tmp_path):
    stop_at_9(tmp_path)
    before = (tmp_path / 'infobatch.jsonl').read_text()
    with pytest.raises(ValueError, match='26 samples.*has 30'):
        run(partial(config, tmp_path, ITERS, samples=30), True)
    assert (tmp_path / 'infobatch.jsonl').read_text() == before


def test_another_explicit_seed_is_refused(tmp_path):
    stop_at_9(tmp_path)
    make_config = partial(config, tmp_path, ITERS, randomness=dict(seed=8))
    with pytest.raises(ValueError, match='randomness.seed is 8.*seed 7'):
        run(make_config, True)


def test_an_unset_seed_is_the_checkpoints(tmp_path):
    reference, stopped = tmp_path / 'reference', tmp_path / 'stopped'
    run(partial(config, reference, ITERS), False)
    stop_at_9(stopped)
    make_config = partial(config, stopped, ITERS, randomness=dict(seed=None))
    finish(make_config, resume=True)
    assert rounds(stopped) == rounds(reference)


def test_another_policy_starts_with_the_next_round(tmp_path):
    stop_at_9(tmp_path)
    policy = dict(type='NoPruningPolicy')
    run(partial(config, tmp_path, ITERS, policy=policy), True)
    kept = [r['kept'] for r in rounds(tmp_path)]
    assert kept[1] < 24 and set(kept[2:]) == {24}


def stop_stock_and_prune(work_dir, stock, ours, saves, **settings):
    """Stop a stock run after 16 iterations, and let it go on pruned."""
    settings['default_hooks'] = dict(checkpoint=saves)
    cfg = light.config(work_dir, stock, pruned=False, **settings)
    runner = toys.Runner.from_cfg(cfg)
    runner.register_hook(StopAfter(16))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    cfg = light.config(work_dir, ours, **settings)
    cfg.resume = True
    return toys.train(cfg)


@pytest.mark.parametrize(
    'stock, ours, round_',
    [
        (dict(type='IterBasedTrainLoop', max_iters=50), ITERS, 2),
        (PLAIN_EPOCHS, EPOCHS, 2),
    ],
)
def test_a_stock_run_goes_on_with_pruning(tmp_path, stock, ours, round_):
    saves = dict(by_epoch='max_epochs' in stock, interval=2)
    if 'max_iters' in stock:
        saves['interval'] = 12
    runner = stop_stock_and_prune(tmp_path, stock, ours, saves)
    lines = rounds(tmp_path)
    assert lines[0]['samples_before'] == 2 * (24 if ours is ITERS else 26)
    # The first round of its own has no scores yet.
    assert lines[0]['round'] == round_ and lines[0]['threshold'] is None
    assert lines[1]['threshold'] is not None
    assert toys.hook_of(runner).clock.done


def test_an_epoch_that_is_repeated_costs_its_samples(tmp_path):
    """Stock checkpoints by iterations resume at the last epoch's start."""
    saves = dict(by_epoch=False, interval=5)
    stop_stock_and_prune(tmp_path, PLAIN_EPOCHS, EPOCHS, saves, samples=24)
    lines = rounds(tmp_path)
    assert lines[0]['round'] == 2 and lines[0]['samples_before'] == 15 * 4
    summary = json.loads((tmp_path / 'infobatch_summary.json').read_text())
    kept = sum(line['kept'] for line in lines)
    assert summary['samples_seen'] == 15 * 4 + kept


def test_load_from_takes_weights_only(tmp_path):
    stop_at_9(tmp_path / 'first')
    name = (tmp_path / 'first/last_checkpoint').read_text()
    run(partial(config, tmp_path / 'second', ITERS, load_from=name), False)
    first = rounds(tmp_path / 'second')[0]
    assert first['iter'] == 0 and first['threshold'] is None


def test_a_new_run_begins_a_new_file(tmp_path):
    run(partial(config, tmp_path, ITERS), False)
    once = rounds(tmp_path)
    run(partial(config, tmp_path, ITERS), False)
    assert rounds(tmp_path) == once
    kept = (tmp_path / 'infobatch.jsonl.1').read_text()
    assert [json.loads(line)['digest'] for line in kept.splitlines()] == [
        line['digest'] for line in once
    ]


@pytest.mark.parametrize('pacing', ['fewer_steps', 'smaller_batches'])
def test_a_run_that_has_ended_keeps_its_summary(tmp_path, pacing):
    """The last validation comes after the last checkpoint."""
    validates = dict(pacing=pacing, val=True)
    run(partial(config, tmp_path, ITERS, **validates), False)
    summary = tmp_path / 'infobatch_summary.json'
    ended, lines = summary.read_text(), rounds(tmp_path)
    assert json.loads(ended)['metric_last']
    run(partial(config, tmp_path, ITERS, **validates), True)
    assert summary.read_text() == ended
    assert len(rounds(tmp_path)) == len(lines)
    assert not list(tmp_path.glob('infobatch_summary.json.*'))
    longer = partial(config, tmp_path, dict(ITERS, max_iters=80), **validates)
    run(longer, True)
    assert json.loads(summary.read_text())['samples_budget'] == 80 * 4
    assert (tmp_path / 'infobatch_summary.json.1').read_text() == ended


class SaveAs(Hook):
    """Save by a hook of the user's, before ours ends the round."""

    def __init__(self, path, *, iters=None, epochs=None):
        self.path, self.iters, self.epochs = path, iters, epochs

    def save(self, runner, **settings):
        runner.save_checkpoint(
            str(self.path.parent), self.path.name, **settings
        )

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.iters:
            self.save(runner, by_epoch=False)

    def after_train_epoch(self, runner):
        if runner.epoch + 1 == self.epochs:
            self.save(runner)


def ended(runner):
    """Return what a run has come to."""
    run = toys.hook_of(runner).run
    model = {k: v.clone() for k, v in runner.model.state_dict().items()}
    return model, (run.round, run.samples_seen, run.clock.now, runner.iter)


def assert_equal_ends(one, other):
    assert one[1] == other[1]
    for key, value in other[0].items():
        assert torch.equal(one[0][key], value), key


@pytest.mark.parametrize('pacing', ['fewer_steps', 'smaller_batches'])
@LOOPS
def test_a_run_is_resumed_by_the_runner_s_own_method(tmp_path, loop, pacing):
    """Which of the learning rate makes something else, also in stock runs."""
    saved = tmp_path / 'whole/saved.pth'
    whole = toys.Runner.from_cfg(config(saved.parent, loop, pacing=pacing))
    # Of a loop by iterations within a round.
    at = dict(epochs=2) if 'Epoch' in loop['type'] else dict(iters=17)
    whole.register_hook(SaveAs(saved, **at), priority='VERY_LOW')
    whole.train()
    again = toys.Runner.from_cfg(
        config(tmp_path / 'again', loop, pacing=pacing)
    )
    again.resume(str(saved))
    again.train()
    scores = [toys.hook_of(each).board.scores for each in (again, whole)]
    assert all(each.isfinite().all() for each in scores)
    if pacing == 'smaller_batches':  # else rounds are as long as scores say
        assert ended(again)[1][2:] == ended(whole)[1][2:]
    assert ended(again)[1][0] == ended(whole)[1][0]
    assert toys.hook_of(again).clock.done


@pytest.mark.parametrize('loop', [EPOCHS, PLAIN_EPOCHS], ids=['ours', 'plain'])
def test_saved_by_a_hook_when_an_epoch_has_ended(tmp_path, loop):
    """After the epoch, and before its round is ended."""
    saved = tmp_path / 'whole/saved.pth'
    whole = toys.Runner.from_cfg(config(saved.parent, loop))
    whole.register_hook(SaveAs(saved, epochs=3))
    whole.train()
    cfg = config(tmp_path / 'again', loop, resume=True)
    cfg.load_from = str(saved)
    again = toys.Runner.from_cfg(cfg)
    again.train()
    assert_equal_ends(ended(again), ended(whole))


def test_a_test_within_training_leaves_its_draws_alone(tmp_path):
    class TestOnce(Hook):
        def after_train_epoch(self, runner):
            if runner.epoch + 1 == 3:
                runner.call_hook('before_test')
                torch.rand(7)  # as random test data would
                runner.call_hook('after_test')

    ends = []
    for hooks in [], [TestOnce()]:
        torch.manual_seed(0)
        runner = toys.Runner.from_cfg(
            config(tmp_path / str(len(hooks)), EPOCHS, exact_resume=True)
        )
        for hook in hooks:
            runner.register_hook(hook)
        runner.train()
        ends.append((ended(runner), torch.rand(1)))
    assert_equal_ends(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_a_run_that_has_nothing_to_resume_begins(tmp_path, monkeypatch):
    """As with resume=True in the config of each start of a job."""
    (tmp_path / 'infobatch.jsonl').write_text('{"round": 0}\n')
    runner = toys.Runner.from_cfg(config(tmp_path, EPOCHS, resume=True))
    # It would warn that the checkpoint has no state.
    monkeypatch.setattr(parts.Parts, 'go_on_from', None)
    runner.train()
    # What was there was another run's.
    assert (tmp_path / 'infobatch.jsonl.1').read_text() == '{"round": 0}\n'
    assert [line['round'] for line in rounds(tmp_path)] == list(range(8))
