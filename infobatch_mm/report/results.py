"""What a run was, reached and spent, as far as the page shows it."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config

from ..compare.stock import is_higher_better
from ..host.types import type_name
from ..records import METRICS, NO_METRICS, Line
from . import runs as of_run
from .class_results import SCALAR, ClassTable

SEED = re.compile(r'^ {4}seed: (\d+)$', re.MULTILINE)


class Metric(NamedTuple):
    """What a run is judged by."""

    name: str
    higher_is_better: bool = True
    is_guessed: bool = False  # whether nothing says which is better

    @property
    def sign(self) -> int:
        """int: 1 if a larger value is a gain, else -1."""
        return 1 if self.higher_is_better else -1


class Run(NamedTuple):
    """What the page needs of a run.

    Of a run that has no validation yet the lists are empty.
    """

    work_dir: Path
    seed: int | None
    metric: Metric | None
    values: list[float]  # of the metric, at each validation
    iterations: list[int]  # before each validation, as the next three
    images: list[int]
    seconds: list[float]
    clock: list[float] | None  # None of a run that did not record it
    tables: dict[int, ClassTable]
    prunes: bool
    pace: float  # seconds an iteration, the median over the log
    batch: tuple[int, bool]  # of a full round; whether pruned ones shrink
    is_done: bool = True  # whether it has come to the end of its schedule

    @property
    def best(self) -> float:
        """float: The best value at a validation."""
        assert self.metric is not None
        known = [v for v in self.values if math.isfinite(v)] or [math.nan]
        return (max if self.metric.higher_is_better else min)(known)

    def classes(self) -> ClassTable:
        """Return the last results by class."""
        return self.tables[max(self.tables)] if self.tables else {}


def read(
    work_dir: Path, metric: Metric | None = None, total: int | None = None
) -> Run:
    """Read a run.

    Args:
        work_dir (Path): Its work directory.
        metric (Metric | None): What it is judged by; None takes what the
            config's ``save_best`` names, or the first that it logged.
        total (int | None): See :func:`images_seen`.
    """
    cfg, lines = of_run.config(work_dir), of_run.validations(work_dir)
    metric = metric or metric_of(cfg, lines[-1] if lines else {})
    iterations = of_run.iterations(work_dir)
    clock = clock_at(work_dir, iterations)
    name = metric.name if metric else ''
    return Run(
        work_dir,
        seed_of(work_dir, cfg),
        metric,
        [line.get(name, math.nan) for line in lines],
        iterations,
        images_seen(work_dir, total),
        of_run.train_seconds(work_dir),
        clock,
        of_run.per_class(work_dir),
        of_run.prunes(work_dir),
        pace(work_dir),
        (of_run.global_batch(work_dir), deals(work_dir)),
        is_done(cfg.train_cfg, lines, clock),
    )


def is_done(
    loop: Mapping[str, Any], lines: Sequence[Line], clock: list[float] | None
) -> bool:
    """Tell whether a run has come to the end of its schedule.

    Its last validation tells, which loops of mmengine make at the end. Where
    it does not say at which epoch it was, the run is taken to be done.
    """
    if not lines or not clock:
        return True
    if 'max_epochs' in loop:
        return not 0 < lines[-1]['step'] < loop['max_epochs']
    return clock[-1] >= loop.get('max_iters', 0) - 0.5


def metric_of(cfg: Config, line: Mapping[str, Any]) -> Metric | None:
    """Return what a run is judged by, of those in the line of a validation.

    This is the metric of ``save_best``, else one that :data:`METRICS` names,
    else the first. More of it is better as ``CheckpointHook`` takes it, by
    its rule and keys; where these say nothing, unless it is a loss.
    """
    found = [n for n in line if n not in NO_METRICS and not SCALAR.match(n)]
    if not found:
        return None
    saved = dict(cfg.get('default_hooks') or {}).get('checkpoint') or {}
    best = saved.get('save_best')
    best = [best] if isinstance(best, str) else list(best or [])
    name = next((n for n in (*best, *METRICS) if n in found), found[0])
    try:
        return Metric(name, is_higher_better(cfg, name))
    except ValueError:
        return Metric(name, 'loss' not in name, is_guessed='loss' not in name)


def seed_of(work_dir: Path, cfg: Config) -> int | None:
    """Return the seed of a run: that of its config, or the one it drew."""
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is None:
        drawn = SEED.search(of_run.log_text(of_run.last_start(work_dir)))
        return int(drawn[1]) if drawn else None
    return seed


def config_name(work_dir: Path) -> str | None:
    """Return the name of a run's config file; None if it had none.

    mmengine writes the config twice: to a file of its own name, beside those
    of other runs, and to ``vis_data``.
    """
    start = of_run.last_start(work_dir)
    text = (start / 'vis_data/config.py').read_text()
    for path in sorted(work_dir.glob('*.py')):
        # Of a config without a file the name is the time of the start.
        if path.stem != start.name and path.read_text() == text:
            return path.stem
    return None


def policy_name(work_dir: Path) -> str | None:
    """Return how a pruned run chose its samples; None of a stock run."""
    if not of_run.prunes(work_dir):
        return None
    if summary := of_run.summary(work_dir):
        return summary['policy']
    cfg = of_run.config(work_dir)
    hooks = [cfg.train_cfg.get('infobatch'), *(cfg.get('custom_hooks') or [])]
    hooks.append(dict(cfg.get('default_hooks') or {}).get('infobatch'))
    policies = (hook['policy'] for hook in hooks if hook and 'policy' in hook)
    policy = next(policies, None) or {}
    return type_name(policy) if 'type' in policy else 'InfoBatchPolicy'


def training_lines(work_dir: Path) -> list[Line]:
    """Return the lines of the log about iterations of training."""
    return [line for line in of_run.scalars(work_dir) if of_run.is_train(line)]


def pace(work_dir: Path) -> float:
    """Return the seconds of an iteration, NaN if none is logged.

    The median over the log, as the first iterations of a start are slow.
    """
    lines = training_lines(work_dir)
    times = [line['time'] for line in lines if 'time' in line]
    return statistics.median(times) if times else math.nan


def clock_at(work_dir: Path, done: Sequence[int]) -> list[float] | None:
    """Return where the full-data clock stood after some iterations.

    Returns:
        list | None: None of a run of a version that did not record it.
    """
    points = of_run.clock_points(work_dir)
    return np.interp(done, *points).tolist() if points else None


# Samples


def images_seen(work_dir: Path, total: int | None = None) -> list[int]:
    """Return the number of samples trained on before each validation.

    All batches of a round that is under way count as whole ones, and so does
    a smaller last batch of the epochs of a stock run, if it is not known.

    Args:
        work_dir (Path): The work directory of a run.
        total (int | None): The samples of its data, as a pruned run on them
            has recorded it.
    """
    batch, lines = of_run.global_batch(work_dir), of_run.rounds(work_dir)
    done = of_run.iterations(work_dir)
    if lines:
        dealt = of_run.ranks(work_dir) if deals(work_dir) else 0
        return [_images(each, lines, batch, dealt) for each in done]
    if total is None or not _leaves_a_rest(work_dir, total, batch):
        return [each * batch for each in done]
    passes = (divmod(each, -(-total // batch)) for each in done)
    return [whole * total + rest * batch for whole, rest in passes]


def _leaves_a_rest(work_dir: Path, total: int, batch: int) -> bool:
    """Tell whether each epoch of a stock run is of so many samples."""
    cfg = of_run.config(work_dir)
    by_epoch = cfg.train_cfg.get('max_epochs') is not None
    length = of_run.epoch_length(work_dir, cfg) if by_epoch else None
    return length == -(-total // batch)


def deals(work_dir: Path) -> bool:
    """Tell whether a run spent its rounds in smaller batches."""
    batch = of_run.global_batch(work_dir)
    return any(
        of_run.iters_of(line, batch) > math.ceil(line['kept'] / batch)
        for line in of_run.rounds(work_dir)
    )


def _images(done: int, lines: list[Line], batch: int, dealt: int) -> int:
    """Return the samples of a pruned run's first iterations.

    Before its first round it was a stock run; after the last of the lines a
    round is under way.

    Args:
        done (int): The iterations.
        lines (list): Its rounds.
        batch (int): Samples of a full step, over all ranks.
        dealt (int): The ranks that samples were dealt to in smaller batches;
            0 with fewer steps.
    """
    begun = [line for line in lines if line['iter'] <= done]
    if not begun:
        return done * batch
    line = begun[-1]
    seen = line.get('samples_before')
    if seen is None:  # of a version that did not record it
        seen = lines[0]['iter'] * batch + sum(n['kept'] for n in begun[:-1])
    iters, of_round = done - line['iter'], of_run.iters_of(line, batch)
    beyond = max(0, iters - of_round) * batch
    return seen + _images_of(line, min(iters, of_round), batch, dealt) + beyond


def _images_of(line: Line, iters: int, batch: int, dealt: int) -> int:
    """Return the samples of the first iterations of a round."""
    kept = line['kept']
    if dealt and kept < line['total']:
        least, larger = divmod(kept // dealt, of_run.iters_of(line, batch))
        return min(kept, dealt * (iters * least + min(iters, larger)))
    return min(kept, iters * batch)
