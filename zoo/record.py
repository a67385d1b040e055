"""The records of the check: one dict a config, one line of JSON each.

Nothing here, nor in the tables made of records, needs torch or mmengine.
"""

import functools
import json
import os
import re
import subprocess
import sysconfig
import traceback
from collections.abc import Callable, Iterable
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
# The extras of infobatch_mm that install a package, by family.
EXTRAS = dict(
    mmseg=dict(onedl='onedl', openmmlab='openmmlab'),
    mmpretrain=dict(onedl='cls', openmmlab='cls-openmmlab'),
)
FAMILIES = ('onedl', 'openmmlab')
# Relative errors where the tolerance is not zero, absolute ones where it is.
TOLERANCES = dict(
    ones=0.0,
    linear=1e-4,
    zeros=0.0,
    zeros_layers=0.0,
    random_state=0.0,
    scores=1e-4,
    scores_alone=1e-3,
    single_images=1e-4,
)
MISSING = re.compile(r"No module named '?([\w.]+)")


# What a check was made with: the installed packages and this checkout


def versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    # Imported late: it brings torch, and reports are written without.
    from infobatch_mm.host import packages

    return packages.versions()


@functools.cache
def commit() -> str:
    """Return the commit of this checkout; '' if it is none of git's."""
    command = ['git', 'describe', '--always', '--abbrev=12', '--dirty']
    try:
        found = subprocess.run(
            [*command, '--exclude=*'],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:  # git itself is missing
        return ''
    return found.stdout.strip()


def installed_family() -> str:
    """Return the family of the packages of this environment."""
    return 'onedl' if 'onedl-mmengine' in versions() else 'openmmlab'


def check_family(wanted: str | None, package: str) -> None:
    """Raise a ValueError if the packages are not of the family asked for."""
    installed = installed_family()
    if wanted not in (None, installed):
        raise ValueError(
            f'--family {wanted} was asked for, but the packages of this '
            f'environment are of the family {installed}. Run the check in an '
            'environment made with: pip install '
            f'"infobatch_mm[{EXTRAS[package][wanted]}]"'
        )


# What became of a config


def is_fault(name: str, error: float | str) -> bool:
    """Tell whether the error of a probe is too large, or NaN.

    A text says why the probe does not apply, which is no fault.
    """
    return not isinstance(error, str) and not error <= TOLERANCES[name]


def attempt(function: Callable[[], Record]) -> Record:
    """Return a function's result, or the exception that it ended with."""
    try:
        return function()
    except Exception as error:
        text = traceback.format_exc()
        missing = MISSING.findall(text)
        # Records go from machine to machine, so they name no folder of one.
        reason = str(error).replace(f'{sysconfig.get_path("purelib")}/', '')
        reason = ' '.join(reason.split())[:300]
        if missing:
            reason = f'{missing[0]} is not installed'
        kind = type(error).__name__
        return dict(error=kind, reason=reason, traceback=text)


# The files


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
