"""What a run was, reached and spent, as far as the page shows it."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ..compare.stock import is_higher_better
from ..config import HOOKS
from ..host.classes import type_name
from ..records import METRICS, NO_METRICS, Line
from . import progress
from . import runs as of_run
from .runs import SCALAR, ClassTable

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
        total (int | None): See :func:`progress.images_seen`.
    """
    cfg, lines = of_run.config(work_dir), of_run.validations(work_dir)
    metric = metric or metric_of(cfg, lines[-1] if lines else {})
    iterations = progress.iterations(work_dir)
    clock = progress.clock_at(work_dir, iterations)
    name = metric.name if metric else ''
    return Run(
        work_dir,
        seed_of(work_dir, cfg),
        metric,
        [line.get(name, math.nan) for line in lines],
        iterations,
        progress.images_seen(work_dir, total),
        progress.train_seconds(work_dir),
        clock,
        of_run.per_class(work_dir),
        of_run.prunes(work_dir),
        pace(work_dir),
        (of_run.global_batch(work_dir), progress.deals(work_dir)),
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
    hooks = [*(cfg.get('custom_hooks') or [])]
    hooks += dict(cfg.get('default_hooks') or {}).values()
    typed = [hook for hook in hooks if hook and 'type' in hook]
    ours = [hook for hook in typed if type_name(hook) in HOOKS]
    ours.append(cfg.train_cfg.get('infobatch') or {})
    policy = ours[0].get('policy') or {}
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
