"""Stopwatches that can be paused, and those of a run."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


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
