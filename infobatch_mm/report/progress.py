"""How far a run had come at each of its validations.

In iterations, on the full-data clock, in samples and in seconds of training,
as far as what it logged can tell.
"""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from ..records import Line
from . import runs as of_run
from .runs import KEPT, Entry, is_train, is_validation

CLOCK = 'infobatch/clock'
# Of an epoch, and of the run where iterations are logged.
EPOCH = re.compile(r'Epoch\(train\) +\[\d+\]\[ *\d+/(\d+)\]')
ALL = re.compile(r'Iter\(train\) +\[ *\d+/(\d+)\]')
# Iterations, and the ticks of the clock after each; far beyond the last too.
Points = tuple[Sequence[float], Sequence[float]]
FAR = 1e9
AT_ITERATIONS: Points = ([0, FAR], [0, FAR])


def iterations(work_dir: Path) -> list[int]:
    """Return the iterations that were done before each validation."""
    found, cfg = of_run.entries(work_dir), of_run.config(work_dir)
    steps = [entry for entry in found if is_validation(entry.line)]
    if steps and not any(entry.line['step'] for entry in steps):
        points = clock_points(work_dir) or AT_ITERATIONS
        ats = [entry.at for entry in steps]
        return _at_intervals(ats, cfg.train_cfg, points)
    if not steps or not _steps_are_epochs(cfg):
        return [entry.at for entry in steps]
    batch = of_run.global_batch(work_dir)
    ends = {
        line['round'] + 1: line['iter'] + iters_of(line, batch)
        for line in of_run.rounds(work_dir)
    }
    length = epoch_length(work_dir, cfg) or _logged_length(found)
    epochs = [entry.line['step'] for entry in steps]
    return [ends.get(epoch, epoch * length) for epoch in epochs]


def _at_intervals(
    ats: Sequence[int], loop: Mapping[str, Any], points: Points
) -> list[int]:
    """Return the iterations before validations that did not log them.

    A loop by iterations whose ``LoggerHook`` counts epochs writes none.

    Args:
        ats (Sequence[int]): Iterations that were logged before each.
        loop (Mapping): Settings of the loop, which count on the clock.
        points (Points): Where the clock stood.
    """
    interval = loop.get('val_interval', 1000)
    last = int(np.interp(ats[-1], *points)) // interval + len(ats) + 2
    dues = np.arange(1, last + 1) * interval
    dues = np.minimum(dues, loop.get('max_iters', math.inf))
    # After the iteration in which the clock comes to it, but for rounding.
    due_at = np.ceil(np.interp(dues, *points[::-1]) - 1e-6)
    found, place = [], -1
    for at in ats:
        place = max(place + 1, int(np.searchsorted(due_at, at)))
        found.append(int(due_at[place]))
    return found


def _steps_are_epochs(cfg: Config) -> bool:
    logger = cfg.get('default_hooks', {}).get('logger') or {}
    by_epoch = logger.get('log_metric_by_epoch', True)
    return by_epoch and 'max_epochs' in cfg.train_cfg


def epoch_length(work_dir: Path, cfg: Config) -> int | None:
    """Return the iterations of an epoch of a stock run, from its log.

    That of a pruned run that was resumed may begin with what was left of a
    round, so those of starts that did not prune come first.
    """
    latest_first = of_run.starts_of_run(work_dir)[::-1]
    for start in sorted(latest_first, key=of_run.has_pruned):
        text = of_run.log_text(start)
        if found := EPOCH.search(text):
            return int(found[1])
        if found := ALL.search(text):
            return int(found[1]) // cfg.train_cfg.max_epochs
    return None


def _logged_length(entries: Sequence[Entry]) -> int:
    """Return the iterations of an epoch of a stock run, from its lines.

    The first line of each epoch comes equally late in it.
    """
    trained = [entry.line for entry in entries if is_train(entry.line)]
    if 'epoch' not in trained[-1]:  # validated at the end of one of them
        ended = [e for e in entries if is_validation(e.line)]
        return max(e.at // e.line['step'] for e in ended)
    firsts = {line['epoch']: line['iter'] for line in reversed(trained)}
    first, last = min(firsts), max(firsts)
    if first == last:
        return trained[-1]['iter'] // last
    return (firsts[last] - firsts[first]) // (last - first)


def iters_of(line: Line, batch: int) -> int:
    """Return the iterations of a round.

    Versions that did not write them had but full batches, unless asked.
    """
    return line.get('iters') or math.ceil(line['kept'] / batch)


def clock_points(work_dir: Path) -> Points | None:
    """Return where the full-data clock stood after some iterations.

    The clock of a stock run is its iterations. Between the rounds of a
    pruned run it moves evenly; in a round that is under way, as fast as in
    the one before.

    Returns:
        Points | None: None of a run of a version that did not record it.
    """
    planned = [line for line in of_run.scalars(work_dir) if KEPT in line]
    if not planned:
        return AT_ITERATIONS
    if any(CLOCK not in line for line in planned):
        return None
    points = {0: 0, **{line['step']: line[CLOCK] for line in planned}}
    if ended := of_run.summary(work_dir):
        points[ended['iters_run']] = ended['iters_budget']
    at, clock = map(list, zip(*sorted(points.items()), strict=True))
    speed = (clock[-1] - clock[-2]) / (at[-1] - at[-2]) if len(at) > 1 else 1
    return [*at, at[-1] + FAR], [*clock, clock[-1] + FAR * speed]


def clock_at(work_dir: Path, done: Sequence[int]) -> list[float] | None:
    """Return where the full-data clock stood after some iterations.

    Returns:
        list | None: None of a run of a version that did not record it.
    """
    points = clock_points(work_dir)
    return np.interp(done, *points).tolist() if points else None


def train_seconds(work_dir: Path) -> list[float]:
    """Return the training time before each validation, without validations.

    It adds up the logged seconds an iteration, which are means over the last
    few: an estimate, made in the same way for stock and pruned runs.
    """
    trained = [line for line in of_run.scalars(work_dir) if is_train(line)]
    # Without a line of training, no time is known.
    ends = [0, *(line['iter'] for line in trained)]
    paces = [line.get('time', math.nan) for line in trained] or [math.nan]
    seconds = [0, *accumulate(map(operator.mul, np.diff(ends), paces))]
    at = np.array(iterations(work_dir))
    # A validation may lie after the last line.
    after = np.maximum(0, at - ends[-1]) * paces[-1]
    return (np.interp(at, ends, seconds) + after).tolist()


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
    done = iterations(work_dir)
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
    length = epoch_length(work_dir, cfg) if by_epoch else None
    return length == -(-total // batch)


def deals(work_dir: Path) -> bool:
    """Tell whether a run spent its rounds in smaller batches."""
    batch = of_run.global_batch(work_dir)
    return any(
        iters_of(line, batch) > math.ceil(line['kept'] / batch)
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
    iters, of_round = done - line['iter'], iters_of(line, batch)
    beyond = max(0, iters - of_round) * batch
    return seen + _images_of(line, min(iters, of_round), batch, dealt) + beyond


def _images_of(line: Line, iters: int, batch: int, dealt: int) -> int:
    """Return the samples of the first iterations of a round."""
    kept = line['kept']
    if dealt and kept < line['total']:
        least, larger = divmod(kept // dealt, iters_of(line, batch))
        return min(kept, dealt * (iters * least + min(iters, larger)))
    return min(kept, iters * batch)
