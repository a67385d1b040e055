"""The file of a comparison's finished runs, one JSON line a run."""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..records import read_json_lines

Result = dict[str, Any]
Results = dict[str, dict[int, Result]]  # by arm and seed


def read_results(path: Path, arms: Iterable[str]) -> Results:
    """Read the finished runs of some arms, in the order of the arms."""
    results: Results = {arm: {} for arm in arms}
    for line in sorted(read_json_lines(path), key=lambda line: line['seed']):
        if line['arm'] in results:
            results[line['arm']][line['seed']] = line
    return {arm: runs for arm, runs in results.items() if runs}


def append_result(path: Path, result: Result) -> None:
    """Add the line of a run, also while other processes add theirs.

    A last line torn by a crash is cut off first.
    """
    line = json.dumps(result, separators=(',', ':')) + '\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a+b') as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when it is closed
        file.seek(0)
        file.truncate(file.read().rfind(b'\n') + 1)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
