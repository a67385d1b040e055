"""Read what a run of mmengine left in its work directory.

A run may be finished, under way or dead, and may have been resumed: each of
its starts has a folder, named after its time. Of steps that a resumed start
repeated, only the last time counts.
"""

import math
import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ..records import Line, read_json_lines, read_rounds, read_summary

WORLD_SIZE = re.compile(r'GPU number: (\d+)')
TIME = re.compile(r'\d{8}_\d{6}')  # the name of a start's folder
RESUMES = re.compile(r'^resume = True$', re.MULTILINE)
HIERARCHY = re.compile(r'log_with_hierarchy=True')
KEPT = 'infobatch/kept_ratio'

# Results by class
ClassTable = dict[str, dict[str, float]]  # class -> metric -> percent

# As mmseg's IoUMetric prints it: the rows follow an empty message.
IOU_TABLE = r'per class results:\n.*\n((?:[+|].*\n)+)'
# As mmengine logs a list: what ends a validation is one line of the log.
CLASSWISE = r'(?:Epoch|Iter)\(val\) (\[.*_classwise: \[.*)\n'
PRINTED = re.compile(f'{IOU_TABLE}|{CLASSWISE}')
LIST = re.compile(r'(?:\S*/)?(\S+)_classwise: \[([^]]*)\]')
SCALAR = re.compile(r'(IoU)/(.+)')


def scalars(work_dir: Path) -> list[Line]:
    """Return the lines of the starts' ``scalars.json``, in order of time."""
    return [entry.line for entry in entries(work_dir)]


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
    found = [e for e in entries(work_dir) if is_validation(e.line)]
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
    if not has_pruned(start) and (found := _entries_of(start)):
        # It may go on without pruning, from before the last of the rounds.
        first = found[0].at
        lines = [n for n in lines if n['iter'] + n.get('iters', 0) <= first]
    return lines


def summary(work_dir: Path) -> Line | None:
    """Return the summary of a pruned run that has ended."""
    return read_summary(work_dir) if prunes(work_dir) else None


def prunes(work_dir: Path) -> bool:
    """Tell whether a start of the run pruned.

    If not, the records of pruning in the folder are another run's.
    """
    return any(map(has_pruned, starts_of_run(work_dir)))


def has_pruned(start: Path) -> bool:
    """Tell whether a start pruned."""
    return any(KEPT in line for line in _lines(start))


def starts_of_run(work_dir: Path) -> list[Path]:
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


class Entry(NamedTuple):
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


def entries(work_dir: Path) -> list[Entry]:
    """Return the lines of a run, in order of time."""
    found: list[Entry] = []
    for start in starts_of_run(work_dir):
        if new := _entries_of(start):
            found = [e for e in found if e.place < new[0].place] + new
    return found


def resumes(start: Path) -> bool:
    """Tell whether a start goes on with the run before it."""
    return bool(RESUMES.search(_config_file(start).read_text()))


def _entries_of(start: Path) -> list[Entry]:
    lines = _lines(start)
    if HIERARCHY.search(_config_file(start).read_text()):
        lines = [
            {re.sub('^(train|val)/', '', key): line[key] for key in line}
            for line in lines
        ]
    tables = iter(printed_classes(log_text(start)))
    # The step of a validation may be an epoch, which is never larger than
    # the number of iterations.
    ats = accumulate((line['step'] for line in lines), max)
    return [
        Entry(
            line,
            at,
            _classes_of(line, tables) if is_validation(line) else {},
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


# Results by class: mmseg prints a table, mmpretrain lists without names


def _classes_of(
    line: Mapping[str, Any], tables: Iterator[ClassTable]
) -> ClassTable:
    """Return the results by class of a validation: the next in the log.

    Args:
        line (dict): Its line of ``scalars.json``, which may hold them too.
        tables (Iterator): What :func:`printed_classes` finds in the log.
    """
    return next(tables, {}) or classes_in(line)


def printed_classes(log: str) -> list[ClassTable]:
    """Return the tables that a log holds, one for each validation."""
    return [
        _iou_table(table) if table else _lists(lists)
        for table, lists in PRINTED.findall(log)
    ]


def _iou_table(text: str) -> ClassTable:
    rows = [line for line in text.splitlines() if line.startswith('|')]
    width = rows[0].count('|') - 2 if rows else 0
    cells = [
        # The name of a class, which comes first, may have one too.
        [cell.strip() for cell in row[1:-1].rsplit('|', width)]
        for row in rows
    ]
    (_, *metrics), *classes = cells
    return {
        name: dict(zip(metrics, map(float, values), strict=True))
        for name, *values in classes
    }


def _lists(text: str) -> ClassTable:
    """Read lists with a number for each class; classes are numbered."""
    table: ClassTable = {}
    for metric, values in LIST.findall(text):
        for index, value in enumerate(values.split(', ')):
            table.setdefault(str(index), {})[metric] = _number(value)
    return table


def _number(text: str) -> float:
    # What no image was predicted to be has no precision.
    return math.nan if text == 'None' else float(text)


def classes_in(line: Mapping[str, Any]) -> ClassTable:
    """Return what the line of a validation holds for each class."""
    found = ((SCALAR.fullmatch(key), value) for key, value in line.items())
    return {match[2]: {match[1]: value} for match, value in found if match}
