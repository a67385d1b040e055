"""The clocks of a run: that of the full data, and that on the wall.

The unit of the first, the tick, is one iteration of the full-data run. A
pruned round has fewer iterations, but advances the clock as far as a full one,
so each of its iterations is worth one or more ticks. Nothing here imports
mmengine.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class FullDataClock:
    """Position of a run in its full-data budget.

    Args:
        budget (int): Ticks of the whole run: ``max_iters`` of the full-data
            run.
        pass_ticks (int): Ticks of one full pass over the data.

    Attributes:
        round_start (int): Tick at which the present round began.
        round_ticks (int): Ticks that the present round is worth.
        round_iters (int): Iterations in which it passes them.
        position (int): Iterations done of it.
        previous (int): Tick before the last iteration.
    """

    def __init__(self, budget: int, pass_ticks: int) -> None:
        self.budget = budget
        self.pass_ticks = pass_ticks
        self.round_start = 0
        self.round_ticks = self.round_iters = pass_ticks
        self.position = 0
        self.previous = 0

    @property
    def now(self) -> int:
        """int: Ticks passed, at most the budget."""
        return min(self.budget, self.round_start + self._ticks(self.position))

    @property
    def progress(self) -> float:
        """float: Ticks passed as a share of the budget."""
        return self.now / self.budget

    @property
    def done(self) -> bool:
        """bool: Whether the budget is used up."""
        return self.now >= self.budget

    @property
    def in_round(self) -> bool:
        """bool: Whether a round has begun and was not ended."""
        return self.position > 0

    @property
    def is_in_step(self) -> bool:
        """bool: Whether each iteration of the round is worth one tick."""
        return self.round_iters == self.round_ticks

    @property
    def iters_left_in_round(self) -> int:
        """int: Iterations until the round or the budget ends."""
        ticks = min(self.round_ticks, self.budget - self.round_start)
        if ticks == self.round_ticks:
            return self.round_iters - self.position
        # The first iteration after which `ticks` have passed.
        last = -(-ticks * self.round_iters // self.round_ticks)
        return max(0, last - self.position)

    def _ticks(self, iters: int) -> int:
        """Return the ticks that pass in the round's first iterations."""
        return iters * self.round_ticks // max(1, self.round_iters)

    def begin_round(self, iters: int, *, ticks: int | None = None) -> None:
        """Begin a round at the present tick.

        Args:
            iters (int): Iterations of the round, on each rank.
            ticks (int, optional): What it is worth. Defaults to a full pass.
        """
        self.round_start = self.now
        self.round_ticks = self.pass_ticks if ticks is None else ticks
        self.round_iters = iters
        self.position = 0

    def end_round(self, rounds: int) -> None:
        """End the round, wherever it stands.

        Args:
            rounds (int): Rounds that have ended before it.
        """
        self.move_to(self.now)

    def move_to(self, tick: int) -> None:
        """Put the clock between two rounds, at a tick."""
        self.round_start, self.position = tick, 0

    def tick(self) -> int:
        """Advance by one iteration and return the ticks that it was worth."""
        self.previous = self.now
        self.position += 1
        return self.now - self.previous

    def estimate_iters_left(
        self, pruned_iters: float, *, delta: float, full_rounds: int = 0
    ) -> int:
        """Return how many iterations are still to come.

        Exact in the last round.

        Args:
            pruned_iters (float): Iterations that a pruned round to come is
                taken to have.
            delta (float): Share of the budget; a round that begins before it
                may be pruned, and one from there on is full.
            full_rounds (int): Rounds after the present one that are full all
                the same.
        """
        end = min(self.budget, self.round_start + self.round_ticks)
        first = end + full_rounds * self.pass_ticks
        # Rounded, as 0.07 * 100 is above 7 in floating point.
        before = round((delta * self.budget - first) / self.pass_ticks, 6)
        ticks = max(0, math.ceil(before)) * self.pass_ticks
        pruned = max(0, min(ticks, self.budget - first))
        # Rounded up: a run with a tick left is not in its last round yet.
        later = math.ceil(pruned * pruned_iters / self.pass_ticks)
        return self.iters_left_in_round + later + self.budget - end - pruned

    def begin_rest(self, iters: int, share: float, rounds: int) -> None:
        """Begin what is left of a round that was laid out in another way.

        Args:
            iters (int): Iterations of the rest, on each rank.
            share (float): The share of the round's samples that is left. The
                rest is worth as much of a full pass, but at least a tick an
                iteration.
            rounds (int): Rounds that have ended before this one.
        """
        self.begin_round(iters, ticks=self._rest_ticks(iters, share))

    def _rest_ticks(self, iters: int, share: float) -> int:
        return max(iters, round(share * self.pass_ticks))

    def tick_at(self, *, iters: int, epochs: int) -> int:
        """Return the tick of a full-data run after so much training."""
        return iters

    def state_dict(self) -> dict[str, int]:
        """Return the position, as plain ints."""
        return dict(
            round_start=self.round_start,
            round_ticks=self.round_ticks,
            round_iters=self.round_iters,
            position=self.position,
            pass_ticks=self.pass_ticks,
        )

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.round_start = state['round_start']
        self.round_ticks = state['round_ticks']
        self.round_iters = state['round_iters']
        self.position = state['position']


class EpochClock(FullDataClock):
    """The clock of a run by epochs, where each epoch is a round.

    Its tick is a batch of the full-data run. So a run that is resumed with
    another global batch counts in other ticks than its checkpoint did.
    """

    def end_round(self, rounds: int) -> None:
        """End the round with its epoch, which a loop may have cut short."""
        self.move_to(min(self.budget, (rounds + 1) * self.pass_ticks))

    def begin_rest(self, iters: int, share: float, rounds: int) -> None:
        """Begin what is left of a round, so that it ends with its epoch."""
        ticks = self._rest_ticks(iters, share)
        self.move_to((rounds + 1) * self.pass_ticks - ticks)
        self.begin_round(iters, ticks=ticks)

    def tick_at(self, *, iters: int, epochs: int) -> int:
        """Return the tick of a full-data run after so much training."""
        return epochs * self.pass_ticks

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore what :meth:`state_dict` gave, in ticks of this run."""
        super().load_state_dict(state)
        if state['pass_ticks'] != self.pass_ticks:
            ratio = self.pass_ticks / state['pass_ticks']
            passed = self.round_start + self._ticks(self.position)
            self.move_to(round(passed * ratio))


def crosses(previous: int, now: int, interval: int, begin: int = 0) -> bool:
    """Tell whether a multiple of an interval lies in ``(previous, now]``.

    Args:
        previous (int): Tick before an iteration.
        now (int): Tick after it.
        interval (int): The interval in ticks; none if it is not positive.
        begin (int): The tick from which multiples are counted, as
            ``save_begin`` of mmengine's ``CheckpointHook``.
    """
    if interval <= 0:
        return False
    return now >= begin and (
        (now - begin) // interval > (previous - begin) // interval
    )


class Stopwatch:
    """Adds up wall-clock time between :meth:`start` and :meth:`stop`.

    Attributes:
        seconds (float): Time added up so far.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._since: float | None = None

    def start(self) -> None:
        """Go on; without effect while running."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Pause; without effect while paused."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def read(self) -> float:
        """Return the seconds up to now."""
        running = self._since is not None
        self.stop()
        if running:
            self.start()
        return self.seconds


class RunTimes:
    """What training has taken in all, in this round, and pruning of it.

    Attributes:
        train (Stopwatch): Training without validation, over all resumes.
        round (Stopwatch): The same of the present round.
        overhead (Stopwatch): What pruning itself has taken of it.
    """

    def __init__(self) -> None:
        self.train, self.overhead = Stopwatch(), Stopwatch()
        self.begin_round()

    def begin_round(self) -> None:
        """Count the round from zero."""
        self.round = Stopwatch()

    def go_on(self) -> None:
        """Count the time from now on as training."""
        self.round.start()
        self.train.start()

    def pause(self) -> None:
        """Stop counting the time as training."""
        self.round.stop()
        self.train.stop()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time of a block as overhead of pruning."""
        self.overhead.start()
        try:
            yield
        finally:
            self.overhead.stop()

    def state_dict(self) -> dict[str, float]:
        """Return the seconds of each."""
        return dict(
            train_seconds=self.train.read(),
            round_seconds=self.round.read(),
            overhead_seconds=self.overhead.read(),
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.train = Stopwatch(state['train_seconds'])
        self.round = Stopwatch(state['round_seconds'])
        self.overhead = Stopwatch(state['overhead_seconds'])
