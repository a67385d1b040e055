"""Read what a run of mmengine left in its work directory.

A run may be finished, under way or dead, and may have been resumed: each of
its starts has a folder, named after its time. Of steps that a resumed start
repeated, only the last time counts.
"""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config

from ..records import Line, read_json_lines, read_rounds, read_summary
from . import class_results
from .class_results import ClassTable

WORLD_SIZE = re.compile(r'GPU number: (\d+)')
TIME = re.compile(r'\d{8}_\d{6}')  # the name of a start's folder
RESUMES = re.compile(r'^resume = True$', re.MULTILINE)
HIERARCHY = re.compile(r'log_with_hierarchy=True')
# Of an epoch, and of the run where iterations are logged.
EPOCH = re.compile(r'Epoch\(train\) +\[\d+\]\[ *\d+/(\d+)\]')
ALL = re.compile(r'Iter\(train\) +\[ *\d+/(\d+)\]')
KEPT, CLOCK = 'infobatch/kept_ratio', 'infobatch/clock'
# Iterations, and the ticks of the clock after each; far beyond the last too.
Points = tuple[Sequence[float], Sequence[float]]
FAR = 1e9
AT_ITERATIONS: Points = ([0, FAR], [0, FAR])


def scalars(work_dir: Path) -> list[Line]:
    """Return the lines of the starts' ``scalars.json``, in order of time."""
    return [entry.line for entry in _entries(work_dir)]


def validations(work_dir: Path) -> list[Line]:
    """Return the lines of the validations.

    Their ``step`` is an iteration if the config's ``LoggerHook`` says
    ``log_metric_by_epoch=False``, else an epoch.
    """
    return [line for line in scalars(work_dir) if is_validation(line)]


def is_train(line: Line) -> bool:
    """Tell whether a line is about iterations of training."""
    return 'iter' in line


def is_validation(line: Line) -> bool:
    """Tell whether a line is about a validation."""
    return 'data_time' in line and not is_train(line)


def per_class(work_dir: Path) -> dict[int, ClassTable]:
    """Return the results by class that the log holds, or the scalars.

    mmseg and mmpretrain write them into the log alone, and with
    ``log_level`` above INFO nowhere.

    Returns:
        dict: Place of the validation in :func:`validations` -> class ->
        such as ``{'IoU': .., 'Acc': ..}``, in percent.
    """
    found = [e for e in _entries(work_dir) if is_validation(e.line)]
    return {i: entry.classes for i, entry in enumerate(found) if entry.classes}


def config(work_dir: Path) -> Config:
    """Return the config of the last start, with its imports not made."""
    path = _config_file(last_start(work_dir))
    return Config.fromfile(path, import_custom_modules=False)


def _config_file(start: Path) -> Path:
    path = start / 'vis_data/config.py'
    if not path.exists():
        raise FileNotFoundError(
            f'{start} has no vis_data/config.py, as that of a Runner which '
            'was given its parts and no cfg. Make it by Runner.from_cfg(cfg)'
        )
    return path


def rounds(work_dir: Path) -> list[Line]:
    """Return the finished rounds of the run; none if it did not prune."""
    if not prunes(work_dir):
        return []
    lines = read_rounds(work_dir)
    start = last_start(work_dir)
    if not _has_pruned(start) and (entries := _entries_of(start)):
        # It may go on without pruning, from before the last of the rounds.
        first = entries[0].at
        lines = [n for n in lines if n['iter'] + n.get('iters', 0) <= first]
    return lines


def summary(work_dir: Path) -> Line | None:
    """Return the summary of a pruned run that has ended."""
    return read_summary(work_dir) if prunes(work_dir) else None


def prunes(work_dir: Path) -> bool:
    """Tell whether a start of the run pruned.

    If not, the records of pruning in the folder are another run's.
    """
    return any(map(_has_pruned, _starts_of_run(work_dir)))


def _has_pruned(start: Path) -> bool:
    return any(KEPT in line for line in _lines(start))


def _starts_of_run(work_dir: Path) -> list[Path]:
    """Return the last start that began a run, and those that went on."""
    last_start(work_dir)  # there must be one
    found: list[Path] = []
    for start in starts(work_dir):
        found = [*found, start] if resumes(start) else [start]
    return found


def last_start(work_dir: Path) -> Path:
    """Return the folder of the last start that trained."""
    found = starts(work_dir)
    if not found:
        raise FileNotFoundError(
            f'{work_dir} has no */vis_data/scalars.json; name the work '
            'directory of a run with a LocalVisBackend that has trained'
        )
    return found[-1]


def log_text(start: Path) -> str:
    """Return the log of a start, empty if it has none."""
    path = start / f'{start.name}.log'
    if not path.exists():  # at log_level DEBUG each rank has its own
        path = next(iter(start.glob('*_rank0.log')), path)
    # It may have been cut off within a character.
    return path.read_text(errors='replace') if path.exists() else ''


def global_batch(work_dir: Path) -> int:
    """Return the number of samples of an iteration, over all ranks."""
    return config(work_dir).train_dataloader.batch_size * ranks(work_dir)


def ranks(work_dir: Path) -> int:
    """Return the number of ranks of the last start of a run."""
    start = last_start(work_dir)
    if found := WORLD_SIZE.search(log_text(start)):
        return int(found[1])
    sizes = [n['world_size'] for n in rounds(work_dir) if 'world_size' in n]
    if sizes:
        return sizes[-1]
    if config(work_dir).get('launcher', 'none') == 'none':
        return 1
    raise ValueError(
        f'the log of {start} does not say on how many processes it was '
        "trained, so its samples are not known; it needs log_level='INFO', or "
        'if that is gone a line GPU number: N'
    )


def iterations(work_dir: Path) -> list[int]:
    """Return the iterations that were done before each validation."""
    found, cfg = _entries(work_dir), config(work_dir)
    steps = [entry for entry in found if is_validation(entry.line)]
    if steps and not any(entry.line['step'] for entry in steps):
        points = clock_points(work_dir) or AT_ITERATIONS
        ats = [entry.at for entry in steps]
        return _at_intervals(ats, cfg.train_cfg, points)
    if not steps or not _steps_are_epochs(cfg):
        return [entry.at for entry in steps]
    batch = global_batch(work_dir)
    ends = {
        line['round'] + 1: line['iter'] + iters_of(line, batch)
        for line in rounds(work_dir)
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


def clock_points(work_dir: Path) -> Points | None:
    """Return where the full-data clock stood after some iterations.

    The clock of a stock run is its iterations. Between the rounds of a
    pruned run it moves evenly; in a round that is under way, as fast as in
    the one before.

    Returns:
        Points | None: None of a run of a version that did not record it.
    """
    planned = [line for line in scalars(work_dir) if KEPT in line]
    if not planned:
        return AT_ITERATIONS
    if any(CLOCK not in line for line in planned):
        return None
    points = {0: 0, **{line['step']: line[CLOCK] for line in planned}}
    if ended := summary(work_dir):
        points[ended['iters_run']] = ended['iters_budget']
    at, clock = map(list, zip(*sorted(points.items()), strict=True))
    speed = (clock[-1] - clock[-2]) / (at[-1] - at[-2]) if len(at) > 1 else 1
    return [*at, at[-1] + FAR], [*clock, clock[-1] + FAR * speed]


def train_seconds(work_dir: Path) -> list[float]:
    """Return the training time before each validation, without validations.

    It adds up the logged seconds an iteration, which are means over the last
    few: an estimate, made in the same way for stock and pruned runs.
    """
    trained = [line for line in scalars(work_dir) if is_train(line)]
    # Without a line of training, no time is known.
    ends = [0, *(line['iter'] for line in trained)]
    paces = [line.get('time', math.nan) for line in trained] or [math.nan]
    seconds = [0, *accumulate(map(operator.mul, np.diff(ends), paces))]
    at = np.array(iterations(work_dir))
    # A validation may lie after the last line.
    after = np.maximum(0, at - ends[-1]) * paces[-1]
    return (np.interp(at, ends, seconds) + after).tolist()


class _Entry(NamedTuple):
    """A line of ``scalars.json``."""

    line: Line
    at: int  # iterations done when it was written, or logged until then
    classes: ClassTable  # what a validation printed

    @property
    def place(self) -> tuple[int, int]:
        """Sorts lines by time: after iteration `at` comes its validation."""
        if is_train(self.line):
            return self.at, 0
        return self.at, 1 if is_validation(self.line) else 2


def _entries(work_dir: Path) -> list[_Entry]:
    entries: list[_Entry] = []
    for start in _starts_of_run(work_dir):
        if new := _entries_of(start):
            entries = [e for e in entries if e.place < new[0].place] + new
    return entries


def resumes(start: Path) -> bool:
    """Tell whether a start goes on with the run before it."""
    return bool(RESUMES.search(_config_file(start).read_text()))


def _entries_of(start: Path) -> list[_Entry]:
    lines = _lines(start)
    if HIERARCHY.search(_config_file(start).read_text()):
        lines = [
            {re.sub('^(train|val)/', '', key): line[key] for key in line}
            for line in lines
        ]
    tables = iter(class_results.printed(log_text(start)))
    # The step of a validation may be an epoch, which is never larger than
    # the number of iterations.
    ats = accumulate((line['step'] for line in lines), max)
    return [
        _Entry(
            line,
            at,
            class_results.of_validation(line, tables)
            if is_validation(line)
            else {},
        )
        for line, at in zip(lines, ats, strict=True)
    ]


def starts(work_dir: Path) -> list[Path]:
    """Return the folders of the starts that trained, in order of time.

    One that has only been validated is none; one that has just begun is.
    """
    found = work_dir.glob('*/vis_data/scalars.json')
    all_starts = sorted(path.parents[1] for path in found)
    return [
        start
        for start in all_starts
        if TIME.fullmatch(start.name)
        and (
            not (lines := _lines(start)) or not all(map(is_validation, lines))
        )
    ]


def _lines(start: Path) -> list[Line]:
    return read_json_lines(start / 'vis_data/scalars.json')


def _steps_are_epochs(cfg: Config) -> bool:
    logger = cfg.get('default_hooks', {}).get('logger') or {}
    by_epoch = logger.get('log_metric_by_epoch', True)
    return by_epoch and 'max_epochs' in cfg.train_cfg


def epoch_length(work_dir: Path, cfg: Config) -> int | None:
    """Return the iterations of an epoch of a stock run, from its log.

    That of a pruned run that was resumed may begin with what was left of a
    round, so those of starts that did not prune come first.
    """
    for start in sorted(_starts_of_run(work_dir)[::-1], key=_has_pruned):
        text = log_text(start)
        if found := EPOCH.search(text):
            return int(found[1])
        if found := ALL.search(text):
            return int(found[1]) // cfg.train_cfg.max_epochs
    return None


def _logged_length(entries: Sequence['_Entry']) -> int:
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
