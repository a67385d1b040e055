"""The full-data clock against slow counting."""

from fractions import Fraction
from itertools import product
from math import floor

import pytest

from infobatch_mm.clock import FullDataClock, crosses
from infobatch_mm.stopwatch import Stopwatch

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
            assert clock.now == floor(Fraction(ticks, iters) * done)
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
        assert clock.estimate_iters_left(0.5) == left  # exact
        counted = 0
        while not clock.done:
            assert clock.iters_left_in_round == left - counted
            clock.tick()
            counted += 1
        assert counted == left
        assert clock.now == budget
        assert clock.iters_left_in_round == 0


def test_the_estimate_takes_rounds_before_delta_to_be_like_the_present_one():
    clock = begun(5, 10, budget=100)
    run(clock, 2)
    # 3 of this round, 4 more pruned rounds up to 50, and 50 full iterations.
    assert clock.estimate_iters_left(0.5) == 3 + 4 * 5 + 50
    assert clock.estimate_iters_left(0.0) == 3 + 90
    assert clock.estimate_iters_left(1.0) == 3 + 9 * 5


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
