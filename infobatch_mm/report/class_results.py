"""Results by class: mmseg prints a table, mmpretrain lists without names."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

ClassTable = dict[str, dict[str, float]]  # class -> metric -> percent

# As mmseg's IoUMetric prints it: the rows follow an empty message.
IOU_TABLE = r'per class results:\n.*\n((?:[+|].*\n)+)'
# As mmengine logs a list: what ends a validation is one line of the log.
CLASSWISE = r'(?:Epoch|Iter)\(val\) (\[.*_classwise: \[.*)\n'
PRINTED = re.compile(f'{IOU_TABLE}|{CLASSWISE}')
LIST = re.compile(r'(?:\S*/)?(\S+)_classwise: \[([^]]*)\]')
SCALAR = re.compile(r'(IoU)/(.+)')


def of_validation(
    line: Mapping[str, Any], tables: Iterator[ClassTable]
) -> ClassTable:
    """Return the results by class of a validation: the next in the log.

    Args:
        line (dict): Its line of ``scalars.json``, which may hold them too.
        tables (Iterator): What the log holds, as :func:`printed` reads it.
    """
    return next(tables, {}) or from_scalars(line)


def printed(log: str) -> list[ClassTable]:
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


def from_scalars(line: Mapping[str, Any]) -> ClassTable:
    """Return what the line of a validation holds for each class."""
    found = ((SCALAR.fullmatch(key), value) for key, value in line.items())
    return {match[2]: {match[1]: value} for match, value in found if match}
