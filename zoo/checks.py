"""The check of many configs, some at a time, the same ones only once."""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from zoo.enabling import check_enabled
from zoo.environment import commit, versions
from zoo.judge import check, status_of
from zoo.package import Package
from zoo.processes import FORK, attempt, with_cpu_seconds
from zoo.record import OTHERWISE, Record


def prepare(
    root: Path, name: str, heads: str, package: Package
) -> tuple[Record, Config | None]:
    """Do for a config what needs no process of its own.

    Args:
        root (Path): The folder of the configs.
        name (str): The config.
        heads (str): Its heads, see :func:`describe_heads`.
        package (Package): The package that it is of.

    Returns:
        tuple[dict, Config | None]: What is known of it, with the digest of
        its small config; and the config if it is to be run.
    """
    record: Record = dict(
        config=name, heads=heads, versions=versions(), commit=commit()
    )

    def load() -> Record:
        return dict(cfg=Config.fromfile(root / name))

    def enable() -> Record:
        check_enabled(loaded['cfg'], package.weighted)
        small, notes = package.shrink(loaded['cfg'])
        text = json.dumps(small.to_dict(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return dict(digest=digest, notes=notes)

    loaded = attempt(load)
    outside = package.out_of_scope(name, loaded.get('cfg'))
    if outside:
        status, reason = outside
        return dict(record, status=status, reason=reason), None
    if 'error' in loaded:
        reason = f'{loaded["error"]}: {loaded["reason"]}'
        status = status_of(reason)  # pruning had no part in it yet
        return dict(record, status=status, reason=reason), None
    enabled = attempt(enable)
    if 'error' in enabled:
        reason = f'{enabled["error"]}: {enabled["reason"]}'
        if any(text in reason for text in package.refusals):
            return dict(record, status='refused', reason=reason), None
        return record | enabled | dict(status='FAILED', reason=reason), None
    return record | enabled, loaded['cfg']


class Running(NamedTuple):
    """A config that is being checked, and those that are the same."""

    process: ForkProcess
    began: float
    records: list[Record]


# By what their results come through.
Checks = dict[Connection, Running]


def check_all(
    root: Path,
    names: Sequence[str],
    heads: dict[str, str],
    known: dict[str, Record],
    package: Package,
    *,
    jobs: int,
    timeout: float,
) -> Iterator[Record]:
    """Yield the record of each config as soon as there is one.

    Args:
        root (Path): The folder of the configs.
        names (Sequence[str]): The configs.
        heads (dict): Their heads, see :func:`describe_heads`.
        package (Package): The package that they are of.
        known (dict): Records by digest; those that come are added.
        jobs (int): How many are run at a time.
        timeout (float): CPU seconds that a run may take.
    """
    running: Checks = {}
    for name in names:
        record, cfg = prepare(root, name, heads[name], package)
        digest = record.get('digest')
        twins = [r.records for r in running.values()]
        twins = [t for t in twins if t[0]['digest'] == digest]
        if cfg is None:
            yield record
        elif digest in known:
            yield same_as(known[digest], record)
        elif twins:
            twins[0].append(record)
        else:
            while len(running) >= jobs:
                yield from collect(running, known)
            work = functools.partial(check, cfg, package, timeout)
            start(work, record, running)
    while running:
        yield from collect(running, known)


def start(work: Callable[[], Record], record: Record, running: Checks) -> None:
    """Begin to check a config."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sender.send(with_cpu_seconds(work)))
    process.start()
    sender.close()
    running[receiver] = Running(process, time.monotonic(), [record])


def collect(running: Checks, known: dict[str, Record]) -> Iterator[Record]:
    """Wait until a check ends, and yield what it found."""
    for receiver in wait(list(running)):
        assert isinstance(receiver, Connection)
        process, began, (record, *twins) = running.pop(receiver)
        try:
            result: Record = receiver.recv()
        except EOFError:
            result = dict(status='FAILED', reason='the check was killed')
        process.join()
        if 'status' not in result:  # check() itself failed
            result |= dict(status='FAILED', reason=result['traceback'])
        seconds = round(time.monotonic() - began, 1)
        record = known[record['digest']] = (
            record | result | dict(seconds=seconds)
        )
        yield record
        for twin in twins:
            yield same_as(record, twin)


def same_as(known: Record, record: Record) -> Record:
    """Return the record of a config whose small config has been run."""
    shared = ('status', 'reason', *OTHERWISE)
    result = {name: known[name] for name in shared if name in known}
    return record | result | dict(same_as=known['config'])
