"""The full-data clock, and the loops on it."""

import itertools
import math
from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import light
import pytest
import toys
from mmengine.hooks import Hook
from torch.utils.data import BatchSampler

from infobatch_mm import binding
from infobatch_mm.clock import FullDataClock, Stopwatch, crosses

SHAPES = [(iters, ticks) for iters, ticks in product(range(1, 14), repeat=2)]
PRUNED = [(iters, ticks) for iters, ticks in SHAPES if iters <= ticks]


def begun(iters: int, ticks: int, *, budget: int = 1000) -> FullDataClock:
    clock = FullDataClock(budget, ticks)
    clock.begin_round(iters)
    return clock


def run(clock: FullDataClock, iters: int) -> list[int]:
    return [clock.tick() for _ in range(iters)]


def test_a_round_is_worth_its_ticks_evenly_spread():
    for iters, ticks in [*SHAPES, (701, 1000)]:
        clock = begun(iters, ticks)
        for done in range(1, iters + 1):
            before = clock.now
            worth = clock.tick()
            assert clock.now == math.floor(Fraction(ticks, iters) * done)
            assert clock.previous == before
            assert worth == clock.now - before
            assert worth in (ticks // iters, -(-ticks // iters))
        assert clock.now == ticks
        assert clock.iters_left_in_round == 0


def test_each_iteration_of_a_pruned_round_is_worth_a_tick_or_more():
    for iters, ticks in PRUNED:
        assert min(run(begun(iters, ticks), iters)) >= 1


def test_rounds_of_any_length_follow_each_other():
    clock = FullDataClock(25, 10)
    assert clock.now == 0
    assert run(clock, 10) == [1] * 10  # a full round, before any is begun
    clock.begin_round(4)
    assert run(clock, 4) == [2, 3, 2, 3]
    assert clock.progress == 0.8
    assert not clock.done
    clock.begin_round(5, ticks=5)
    run(clock, 5)
    assert clock.now == 25
    assert clock.progress == 1
    assert clock.done


@pytest.mark.parametrize('iters', range(1, 14))
def test_the_last_round_ends_with_the_budget(iters):
    for ticks, more in product(range(1, 14), repeat=2):
        budget = ticks + more % (ticks + 1)
        clock = begun(iters, ticks, budget=budget)
        run(clock, iters)
        clock.begin_round(iters)
        left = clock.iters_left_in_round
        for mean in (iters, 0.5):
            assert clock.estimate_iters_left(mean, delta=0.5) == left  # exact
        counted = 0
        while not clock.done:
            assert clock.iters_left_in_round == left - counted
            clock.tick()
            counted += 1
        assert counted == left
        assert clock.now == budget
        assert clock.iters_left_in_round == 0


@pytest.mark.parametrize('warmup', [0, 1, 3, 20])
@pytest.mark.parametrize('delta', [0, 0.3, 0.5, 0.66, 0.7, 0.875, 1])
@pytest.mark.parametrize('budget', [7, 40, 100, 103])
def test_the_estimate_is_the_sum_over_the_rounds_to_come(
    budget, delta, warmup
):
    clock = begun(5, 10, budget=budget)
    run(clock, 2)
    # Every later round is gone through: pruned ones have 4 iterations.
    expected, tick, number = clock.iters_left_in_round, 10, 0
    while tick < budget:
        ticks = min(10, budget - tick)
        is_full = number < warmup or tick / budget >= delta
        expected += ticks if is_full else math.ceil(ticks * 4 / 10)
        tick, number = tick + 10, number + 1
    left = clock.estimate_iters_left(4, delta=delta, full_rounds=warmup)
    assert left == expected


def test_the_estimate_rounds_a_mean_up_once():
    clock = begun(5, 10, budget=100)
    # 5 now, 4 rounds of 4.3 before 0.5 of the clock, and 50 full ones.
    assert clock.estimate_iters_left(4.3, delta=0.5) == 5 + 18 + 50


def test_a_clock_between_rounds_can_be_moved():
    clock = begun(5, 10)
    run(clock, 2)
    clock.move_to(30)
    clock.begin_round(4)
    assert (clock.now, clock.iters_left_in_round) == (30, 4)


@pytest.mark.parametrize('position', [0, 3, 7])
def test_a_restored_clock_goes_on(position):
    clock, restored = begun(7, 10, budget=24), FullDataClock(24, 10)
    run(clock, 7)
    clock.begin_round(7)
    run(clock, position)
    state = clock.state_dict()
    assert all(type(value) is int for value in state.values())
    restored.load_state_dict(state)
    assert restored.now == clock.now
    assert restored.iters_left_in_round == clock.iters_left_in_round
    assert run(restored, 4) == run(clock, 4)
    assert restored.previous == clock.previous


@pytest.mark.parametrize('begin', range(6))
@pytest.mark.parametrize('interval', range(-1, 5))
def test_crosses_is_what_counting_tick_by_tick_says(interval, begin):
    for previous, now in product(range(14), repeat=2):
        if previous <= now:
            counted = interval > 0 and any(
                tick >= begin and (tick - begin) % interval == 0
                for tick in range(previous + 1, now + 1)
            )
            assert crosses(previous, now, interval, begin) == counted


@pytest.mark.parametrize(('iters', 'ticks'), [(1, 1), (3, 10), (7, 10)])
def test_an_interval_is_crossed_as_often_as_in_a_full_run(iters, ticks):
    clock, crossed = begun(iters, ticks), []
    for _ in range(3):
        for _ in range(iters):
            clock.tick()
            if crosses(clock.previous, clock.now, ticks):
                crossed.append(clock.now)
        clock.begin_round(iters)
    assert crossed == [ticks, 2 * ticks, 3 * ticks]


@pytest.fixture
def seconds(monkeypatch):
    """Set what the performance counter says."""
    now = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    return now


def test_a_stopwatch_adds_up_while_it_runs(seconds):
    watch = Stopwatch(1.0)
    seconds[0] = 5.0
    assert watch.read() == 1.0  # paused
    watch.start()
    seconds[0] = 7.0
    watch.start()
    assert watch.read() == 3.0
    seconds[0] = 8.0
    watch.stop()
    watch.stop()
    seconds[0] = 99.0
    assert watch.read() == watch.seconds == 4.0


# Loops: schedules, intervals and budgets

ITERS = dict(type='InfoBatchIterBasedTrainLoop', max_iters=50)
STOCK_ITERS = dict(type='IterBasedTrainLoop', max_iters=50)
EPOCHS = dict(type='InfoBatchEpochBasedTrainLoop', max_epochs=8)
STOCK_EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=8)

# On 26 samples in batches of 4: a pass has 6 iterations in the iteration
# loop, which leaves the remainder out, and 7 in the epoch loop.
SCHEDULES = dict(
    poly=[dict(type='PolyLR', power=0.9, by_epoch=False, end=50)],
    warm_up_and_poly=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=15),
        dict(type='PolyLR', power=0.9, by_epoch=False, begin=15, end=50),
    ],
    overlapping=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=20),
        dict(type='CosineAnnealingLR', T_max=50, by_epoch=False, end=50),
    ],
    multi_step=[
        dict(type='MultiStepLR', milestones=[13, 27, 49], by_epoch=False)
    ],
    one_cycle=[
        dict(type='OneCycleLR', eta_max=0.5, total_steps=50, by_epoch=False)
    ],
    momentum=[
        dict(type='PolyLR', power=0.9, by_epoch=False, end=50),
        dict(
            type='CosineAnnealingMomentum',
            T_max=50,
            eta_min=0.5,
            by_epoch=False,
            end=50,
        ),
    ],
    converted=[
        dict(
            type='LinearLR',
            start_factor=0.1,
            by_epoch=True,
            end=2,
            convert_to_iter_based=True,
        ),
        dict(
            type='CosineAnnealingLR',
            T_max=7,
            by_epoch=True,
            end=7,
            convert_to_iter_based=True,
        ),
    ],
)


class Curve(Hook):
    """Note the hyper-parameters after each iteration, by tick."""

    priority = 'LOWEST'

    def __init__(self):
        self.by_tick = {}
        self.checked_at = []

    def after_train_iter(self, runner, batch_idx, **kwargs):
        group = runner.optim_wrapper.optimizer.param_groups[0]
        clock = getattr(runner.train_loop, 'clock', None)
        tick = clock.now if clock else runner.iter + 1
        self.by_tick[tick] = (group['lr'], group['momentum'])

    def before_val(self, runner):
        clock = getattr(runner.train_loop, 'clock', None)
        self.checked_at.append(clock.now if clock else runner.iter)


def train(cfg):
    runner = toys.Runner.from_cfg(cfg)
    curve = Curve()
    runner.register_hook(curve)
    runner.train()
    return runner, curve


@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('stock, ours', [
    (STOCK_ITERS, ITERS),
    (STOCK_EPOCHS, EPOCHS),
    (STOCK_EPOCHS, STOCK_EPOCHS),
])  # fmt: skip
def test_schedules_follow_the_clock(tmp_path, schedule, stock, ours):
    schedulers = SCHEDULES[schedule]
    if 'max_epochs' in ours and schedule == 'one_cycle':
        schedulers = [dict(schedulers[0], total_steps=56)]
    _, reference = train(
        light.config(
            tmp_path / 'stock', stock, schedulers=schedulers, pruned=False
        )
    )
    runner, curve = train(
        light.config(
            tmp_path / 'ours',
            ours,
            schedulers=schedulers,
            pacing='fewer_steps',
        )
    )
    clock = toys.hook_of(runner).clock
    budget = max(reference.by_tick)
    assert clock.now == clock.budget == budget
    assert runner.iter == len(curve.by_tick) < budget
    if ours is STOCK_EPOCHS:
        # It has no clock of its own to read the ticks from.
        last = max(curve.by_tick)
        assert curve.by_tick[last] == reference.by_tick[budget]
        return
    assert budget in curve.by_tick
    for tick, value in curve.by_tick.items():
        assert value == reference.by_tick[tick], tick


@pytest.mark.parametrize('begin, interval', [(1, 10), (25, 10), (1, 7)])
def test_validation_falls_where_the_clock_says(tmp_path, begin, interval):
    stock = dict(STOCK_ITERS, val_begin=begin, val_interval=interval)
    ours = dict(ITERS, val_begin=begin, val_interval=interval)
    _, reference = train(
        light.config(tmp_path / 'stock', stock, pruned=False, val=True)
    )
    _, curve = train(light.config(tmp_path / 'ours', ours, val=True))
    assert len(curve.checked_at) == len(reference.checked_at)
    for ours_at, stock_at in zip(
        curve.checked_at, reference.checked_at, strict=True
    ):
        # The first iteration at or after the tick; one is worth at most two.
        assert 0 <= ours_at - stock_at <= 1
    assert curve.checked_at[-1] == 50


def test_dynamic_intervals_count_on_the_clock(tmp_path):
    extra = dict(val_interval=20, dynamic_intervals=[(30, 5)])
    _, reference = train(
        light.config(
            tmp_path / 'a', dict(STOCK_ITERS, **extra), pruned=False, val=True
        )
    )
    _, curve = train(
        light.config(tmp_path / 'b', dict(ITERS, **extra), val=True)
    )
    assert reference.checked_at == [20, 30, 35, 40, 45, 50]
    assert len(curve.checked_at) == len(reference.checked_at)


def test_checkpoints_fall_where_the_clock_says(tmp_path):
    saves = dict(type='CheckpointHook', by_epoch=False, interval=10)
    names = []
    for name, loop in (('stock', STOCK_ITERS), ('ours', ITERS)):
        cfg = light.config(
            tmp_path / name,
            loop,
            pruned=name == 'ours',
            pacing='fewer_steps',
            default_hooks=dict(checkpoint=saves),
        )
        runner, _ = train(cfg)
        names.append(
            sorted(int(f.stem[5:]) for f in (tmp_path / name).glob('*.pth'))
        )
    assert len(names[0]) == len(names[1]) == 5
    # Files are named by real iterations.
    assert names[1][-1] == runner.iter < 50
    assert (
        (tmp_path / 'ours/last_checkpoint')
        .read_text()
        .endswith(f'iter_{runner.iter}.pth')
    )


class Ends(Hook):
    """Note every iteration that a hook is told is the last one."""

    def __init__(self):
        self.iters = []

    def after_train_iter(self, runner, batch_idx, **kwargs):
        if self.is_last_train_iter(runner):
            self.iters.append(runner.iter + 1)


@pytest.mark.parametrize('max_iters', [1, 5, 6, 7, 50, 53])
@pytest.mark.parametrize('delta', [0.875, 1])
def test_any_budget_ends_exactly(tmp_path, max_iters, delta):
    loop = dict(ITERS, max_iters=max_iters)
    runner = toys.Runner.from_cfg(light.config(tmp_path, loop, delta=delta))
    ends = Ends()
    runner.register_hook(ends)
    runner.train()
    clock = toys.hook_of(runner).clock
    assert clock.now == max_iters
    assert ends.iters == [runner.iter]
    assert runner.max_iters == runner.iter <= max_iters


class Totals(Hook):
    """Note the total that is announced at each iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.of_iter = []

    def before_train_iter(self, runner, *args, **kwargs):
        assert runner.max_iters == runner.message_hub.get_info('max_iters')
        self.of_iter.append(runner.max_iters)


def totals(cfg):
    """Train; return the runner and the total announced at each iteration."""
    runner = toys.Runner.from_cfg(cfg)
    hook = Totals()
    runner.register_hook(hook)
    runner.train()
    return runner, hook.of_iter


HALF = dict(type='RandomPolicy', prune_ratio=0.5)


@pytest.mark.parametrize('warmup', [0, 3])
@pytest.mark.parametrize('delta', [0.7, 1])
@pytest.mark.parametrize('loop', [ITERS, dict(ITERS, max_iters=53), EPOCHS])
def test_the_total_is_exact_where_rounds_are_alike(
    tmp_path, loop, delta, warmup
):
    cfg = light.config(
        tmp_path,
        loop,
        samples=24,
        policy=HALF,
        delta=delta,
        pacing='fewer_steps',
    )
    cfg.custom_hooks[0].warmup_rounds = warmup
    runner, found = totals(cfg)
    full = 6 * max(1, warmup)
    assert set(found[:full]) == {toys.hook_of(runner).clock.budget}
    assert set(found[full:]) == {runner.iter}
    assert runner.iter < found[0]


@pytest.mark.parametrize('pacing', ['fewer_steps', 'smaller_batches'])
@pytest.mark.parametrize('loop', [ITERS, EPOCHS, STOCK_EPOCHS])
def test_a_total_that_is_the_stock_runs_never_moves(tmp_path, loop, pacing):
    smaller = pacing == 'smaller_batches'
    cfg = light.config(
        tmp_path,
        loop,
        policy=None if smaller else dict(type='NoPruningPolicy'),
    )
    cfg.custom_hooks[0].update(pacing=pacing, smallest_batch=1)
    runner, found = totals(cfg)
    assert set(found) == {50 if loop is ITERS else 56} == {runner.iter}
    hook = toys.hook_of(runner)
    assert (hook.samples_seen < hook.samples_budget) == smaller


def test_a_remainder_below_half_an_iteration_is_still_to_come(tmp_path):
    loop = dict(ITERS, max_iters=49)
    runner = toys.Runner.from_cfg(
        light.config(tmp_path, loop, samples=24, policy=HALF, delta=1.0)
    )
    ends = Ends()
    runner.register_hook(ends)
    runner.train()
    assert ends.iters == [runner.iter]


def test_nothing_pruned_is_the_stock_schedule(tmp_path):
    policy = dict(type='NoPruningPolicy')
    schedulers = SCHEDULES['warm_up_and_poly']
    _, reference = train(
        light.config(
            tmp_path / 'a', STOCK_ITERS, schedulers=schedulers, pruned=False
        )
    )
    _, curve = train(
        light.config(
            tmp_path / 'b', ITERS, schedulers=schedulers, policy=policy
        )
    )
    assert curve.by_tick == reference.by_tick


@pytest.mark.parametrize('counts', [2, 3, 4])
def test_accumulated_gradients_are_all_stepped(tmp_path, counts):
    cfg = light.config(
        tmp_path, ITERS, optim_wrapper=dict(accumulative_counts=counts)
    )
    runner = toys.Runner.from_cfg(cfg)
    steps = []
    with toys.count_steps(steps):
        runner.train()
    assert len(steps) == -(-runner.iter // counts)
    assert all(
        p.grad is None or not p.grad.any() for p in runner.model.parameters()
    )


@pytest.mark.parametrize('workers', [0, 2])
def test_a_round_is_a_pass_without_a_remainder(tmp_path, workers):
    runner = toys.train(
        light.config(tmp_path, ITERS, workers=workers, pacing='fewer_steps')
    )
    hook = toys.hook_of(runner)
    assert hook.clock.pass_ticks == 26 // 4
    summary = hook.summary(runner)
    assert summary['samples_budget'] == 50 * 4
    assert summary['samples_seen'] == runner.iter * 4


def test_workers_survive_between_rounds(tmp_path):
    runner = toys.Runner.from_cfg(light.config(tmp_path, ITERS, workers=1))
    pids = set()

    class Workers(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            iterator = runner.train_dataloader._iterator
            pids.update(worker.pid for worker in iterator._workers)

    runner.register_hook(Workers())
    runner.train()
    assert len(pids) == 1


def test_fewer_samples_than_a_global_batch(tmp_path):
    cfg = light.config(tmp_path, ITERS, samples=3)
    with pytest.raises(ValueError, match='3 samples.*global batch of 4'):
        toys.train(cfg)
    assert not list(tmp_path.glob('*.pth'))


def test_a_tiny_data_set_trains_in_the_epoch_loop(tmp_path):
    runner = toys.train(light.config(tmp_path, EPOCHS, samples=3))
    assert runner.iter == 8
    assert toys.hook_of(runner).summary(runner)['samples_seen'] <= 24


class Fewer(BatchSampler):
    """Give fewer batches than its length says."""

    def __iter__(self):
        return itertools.islice(super().__iter__(), 3)


class NoSize:
    """Batches of no size that it tells."""

    def __init__(self, sampler, batch_size, drop_last):
        self.sampler = sampler
        self.batches = BatchSampler(sampler, batch_size, drop_last)

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def test_a_loop_of_another_kind_is_named():
    with pytest.raises(TypeError, match='train_cfg.type is SimpleNamespace'):
        binding.clock_of(SimpleNamespace(dataloader=[1]))


@pytest.mark.parametrize('loop', [EPOCHS, ITERS])
def test_a_run_of_no_iterations_is_refused(tmp_path, loop):
    loop = {k: v if k == 'type' else 0 for k, v in loop.items()}
    with pytest.raises(ValueError, match='train_cfg asks for 0 iterations'):
        toys.train(light.config(tmp_path, loop))


@pytest.mark.parametrize(
    'kind, error, message',
    [
        (Fewer, RuntimeError, 'fewer than its 6 batches'),
        (NoSize, TypeError, 'NoSize. has no batch_size'),
    ],
)
def test_a_batch_sampler_must_say_what_it_gives(
    tmp_path, kind, error, message
):
    loop = dict(type='InfoBatchIterBasedTrainLoop', max_iters=12)
    cfg = light.config(tmp_path, loop, pacing='fewer_steps')
    cfg.train_dataloader.batch_sampler = dict(type=kind, drop_last=False)
    with pytest.raises(error, match=message):
        toys.train(cfg)
