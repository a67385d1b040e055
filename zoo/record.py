"""The records of the check: one dict a config, one line of JSON each.

Nothing here, nor in the tables made of records, needs torch or mmengine.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What json.loads gives: `config`, `heads`, `versions`, `commit`, `status`
# and `reason` always; `digest`, `probes`, `rounds`, ... of what was run.
Record = dict[str, Any]

RECORDS = Path(__file__).parent / 'records'
# Under these names a record says why it was run in another way
# (Package.retries), and here is said in which.
OTHERWISE = dict(
    no_ignored_pixels='without ignored pixels',
    small_learning_rate='with a hundredth of the learning rate',
)


def kept_file(package: str, family: str) -> Path:
    """Return the file that holds the records of a package and family."""
    return RECORDS / f'{package}-{family}.jsonl'


def natural(name: str) -> list[str | int]:
    """Return a sort key in which r50 comes before r101."""
    parts = re.split(r'(\d+)', name)
    return [int(part) if part.isdigit() else part for part in parts]


def read_records(path: Path) -> list[Record]:
    """Read what was recorded; a last line torn by a crash is left out."""
    if not path.exists():
        return []
    *lines, _ = path.read_text().split('\n')
    return [json.loads(line) for line in lines]


def resume_records(path: Path) -> list[Record]:
    """Read what was recorded, and cut a torn last line off the file.

    What is appended then begins a line of its own.
    """
    records = read_records(path)
    if records:
        write_records(path, records)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('')
    return records


def append_record(path: Path, record: Record) -> None:
    """Add the line of a config."""
    with path.open('a') as file:
        file.write(json.dumps(record) + '\n')


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Replace a file in one step, so that it is never half written."""
    part = path.with_suffix('.part')
    part.write_text(''.join(json.dumps(r) + '\n' for r in records))
    os.replace(part, path)


def keep_records(path: Path, records: list[Record], *, all_of: bool) -> None:
    """Put new records into a file of kept ones, sorted by config.

    Args:
        path (Path): The file.
        records (list[dict]): The new records.
        all_of (bool): Whether these are the records of all configs. If not,
            those of the others stay.
    """
    old = [] if all_of else read_records(path)
    merged = {record['config']: record for record in [*old, *records]}
    names = sorted(merged, key=natural)
    write_records(path, [merged[name] for name in names])
