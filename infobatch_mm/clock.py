"""The full-data clock: how far a full-data run would be by now.

Its unit, the tick, is one iteration of the full-data run. A pruned round has
fewer iterations, but advances the clock as far as a full one, so each of its
iterations is worth one or more ticks. Nothing here imports mmengine.
"""

import math
import time


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

    def end_round(self) -> None:
        """End the round, wherever it stands."""
        self.move_to(self.now)

    def move_to(self, tick: int) -> None:
        """Put the clock between two rounds, at a tick."""
        self.round_start, self.position = tick, 0

    def tick(self) -> int:
        """Advance by one iteration and return the ticks that it was worth."""
        self.previous = self.now
        self.position += 1
        return self.now - self.previous

    def estimate_iters_left(self, delta: float) -> int:
        """Return how many iterations are still to come.

        Exact in the last round. Before, rounds up to ``delta`` are taken to
        be as long as the present one, and full after it.
        """
        end = min(self.budget, self.round_start + self.round_ticks)
        pruned = max(0, math.ceil(delta * self.budget) - end)
        full = self.budget - end - pruned
        # Rounded up: a run with a tick left is not in its last round yet.
        later = -(-pruned * self.round_iters // max(1, self.round_ticks))
        return self.iters_left_in_round + later + full

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
