"""A pilot: the first rounds of a run, for their scores alone."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.hooks import Hook
from torch import Tensor

from ..hook import InfoBatchHook
from ..records import Line, read_rounds
from . import running

OFF = (
    'val_cfg val_dataloader val_evaluator test_cfg test_dataloader '
    'test_evaluator'
)


class Pilot(NamedTuple):
    """What the first rounds of a run have shown."""

    scores: Tensor  # of the samples that have one, float32
    rounds: list[Line]
    seconds: float  # of an iteration
    iters: int


class _StopAfter(Hook):
    """End a run after some rounds, as early stopping would."""

    priority = 'LOWEST'

    def __init__(self, hook: InfoBatchHook, rounds: int) -> None:
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
        runner.register_hook(_StopAfter(hook, rounds), priority='LOWEST')
        runner.train()
        scores = hook.board.scores.cpu()
        return Pilot(
            scores[scores.isfinite()],
            read_rounds(Path(folder)),
            hook.times.train.read() / max(1, runner.iter),
            runner.iter,
        )


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
