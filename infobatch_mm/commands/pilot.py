"""A pilot: the first rounds of a run, for their scores alone."""

import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from mmengine.config import Config
from torch import Tensor

from ..compare.cells import is_pruned
from ..compare.parts import TimesHook
from ..hook import InfoBatchHook
from ..records import SCORE_EDGES, Line, read_rounds, score_histogram
from . import running

OFF = (
    'val_cfg val_dataloader val_evaluator test_cfg test_dataloader '
    'test_evaluator'
)


class Pilot(NamedTuple):
    """What the first rounds of a run have shown."""

    scores: Tensor  # of the samples that have one, float32
    rounds: list[Line]
    paces: list[float]  # seconds of an iteration in each round, the median
    iters: int

    @property
    def seconds(self) -> float:
        """float: Seconds of an iteration, in rounds that use all data."""
        both = zip(self.paces, self.rounds, strict=True)
        full = [pace for pace, line in both if not is_pruned(line)]
        return sum(full) / len(full)


class _StopAfter(TimesHook):
    """Time a run, and end it after some rounds, as early stopping would."""

    def __init__(self, hook: InfoBatchHook, rounds: int) -> None:
        super().__init__()
        self.hook, self.rounds = hook, rounds

    def after_train_round(self, runner: Any) -> None:
        """Stop a run by iterations."""
        if self.hook.round >= self.rounds:
            runner.train_loop.stop_training = True

    def after_train_epoch(self, runner: Any) -> None:
        """Stop a run by epochs."""
        self.after_train_round(runner)


def fly(cfg: Config, rounds: int) -> Pilot:
    """Train the first rounds of a pruned config, and leave nothing behind.

    The schedule is that of the whole run. There is no validation and no
    checkpoint, and nothing is sent to visualizer backends.
    """
    with TemporaryDirectory() as folder:
        runner = running.build_runner(_alone(cfg, folder))
        hook = next(h for h in runner.hooks if isinstance(h, InfoBatchHook))
        times = _StopAfter(hook, rounds)
        runner.register_hook(times, priority='LOWEST')
        runner.train()
        scores = hook.board.scores.cpu()
        planned, iters = read_rounds(Path(folder)), runner.iter
        scores = scores[scores.isfinite()]
        if not len(scores):
            raise ValueError(
                f'the {rounds} rounds of the pilot left no finite score: the '
                'losses are NaN or infinite, as when the learning rate is '
                'too large'
            )
        return Pilot(scores, planned, paces(planned, times.seconds), iters)


def paces(rounds: list[Line], seconds: list[float]) -> list[float]:
    """Return the median seconds of an iteration in each round.

    Without the first two of the run, which hold what a start takes.

    Args:
        rounds (list): The rounds.
        seconds (list): What each iteration of the run took.
    """
    begins = [*(line['iter'] for line in rounds), len(seconds)]
    timed = [seconds[begin:end] for begin, end in pairwise(begins)]
    timed[0] = timed[0][2:] or timed[0]
    return list(map(statistics.median, timed))


def lines(found: Pilot) -> Iterator[str]:
    """Yield what the rounds of a pilot kept, and the scores they left."""
    yield (
        f'Pilot: {len(found.rounds)} rounds, {found.iters:,} iterations of '
        f'{found.seconds:.3g} s with a full batch in this process.'
    )
    for line, pace in zip(found.rounds, found.paces, strict=True):
        share = line['kept'] / line['total']
        yield (
            f'  round {line["round"]}: kept {share:.1%}, {pace:.3g} s an '
            'iteration'
        )
    counts = score_histogram(found.scores)
    seen = [k for k, count in enumerate(counts) if count]
    yield 'Its last scores:'
    for k in range(seen[0], seen[-1] + 1):
        bar = '#' * round(40 * counts[k] / max(counts))
        low, high = SCORE_EDGES[k], SCORE_EDGES[k + 1]
        yield f'  {low:9.2g} to {high:<9.2g} {counts[k]:8,} {bar}'


def _alone(cfg: Config, folder: str) -> Config:
    """Return a config that trains in a folder, and does nothing else."""
    cfg = cfg.copy()
    cfg.work_dir, cfg.resume, cfg.log_level = folder, False, 'WARNING'
    for name in OFF.split():
        cfg[name] = None
    hooks = dict(cfg.get('default_hooks') or {})
    cfg.default_hooks = {**hooks, 'checkpoint': None}
    if cfg.get('visualizer') is not None:
        cfg.visualizer = {**cfg.visualizer, 'vis_backends': []}
    return cfg
