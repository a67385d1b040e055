"""The command that checks configs, some at a time, the same ones only once.

It writes their records and counts them.
"""

import argparse
import functools
import hashlib
import importlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from zoo.judge import (
    FORK,
    check,
    check_enabled,
    status_of,
    with_cpu_seconds,
)
from zoo.package import (
    Package,
    config_root,
    describe_heads,
    list_configs,
    load_package,
    matches,
    one_a_head,
)
from zoo.record import (
    OTHERWISE,
    Record,
    append_record,
    attempt,
    check_family,
    commit,
    installed_family,
    keep_records,
    kept_file,
    resume_records,
    versions,
)
from zoo.tables import by_data, columns, count, markdown, reasons

# What a run that is to replace the kept records writes until it has ended.
SCRATCH = Path('work_dirs', 'zoo')


def run(args: argparse.Namespace) -> int:
    """Check, write and print; return 1 if a config failed."""
    check_family(args.family, args.package)
    skip_layout()
    package = load_package(args.package)
    warm_up(package)
    kept = kept_file(args.package, installed_family())
    out = SCRATCH / kept.name if args.keep else args.json
    records = resume_records(out) if out else []
    if records:
        print_resumed(out, records)
    records += check_selected(args, package, out, records)
    if args.keep:
        whole = args.all and not args.patterns
        keep_records(kept, records, all_of=whole)
        out.unlink()
    if args.markdown:
        args.markdown.write_text(markdown(records))
    print_report(records)
    return int(any(record['status'] == 'FAILED' for record in records))


def print_resumed(out: Path, records: Sequence[Record]) -> None:
    """Say how much is not checked again, and what it was checked with."""
    commits = Counter(record.get('commit', 'unknown') for record in records)
    made = ', '.join(f'{n} at commit {name}' for name, n in commits.items())
    print(f'{out} has {len(records)} records already ({made})', flush=True)


def check_selected(
    args: argparse.Namespace,
    package: Package,
    out: Path | None,
    records: Sequence[Record],
) -> list[Record]:
    """Check what the command line names and the records lack."""
    root = config_root(package.name)
    names = list_configs(root, package.first)
    names = [name for name in names if matches(name, args.patterns)]
    heads = {name: describe_heads(root / name, package) for name in names}
    if not args.all:
        names = one_a_head(names, heads)
    done = {record['config'] for record in records}
    names = [name for name in names if name not in done]
    known = {
        r['digest']: r for r in records if 'digest' in r and 'same_as' not in r
    }
    found = []
    for record in check_all(
        root,
        names,
        heads,
        known,
        package,
        jobs=args.jobs,
        timeout=args.timeout,
    ):
        found.append(record)
        print(
            f'{len(found)}/{len(names)} {record["config"]}: '
            f'{record["status"]} {record["reason"]}',
            flush=True,
        )
        if out:
            append_record(out, record)
    return found


def warm_up(package: Package) -> None:
    """Import what the runs need, once for all; nothing is computed."""
    package.register(init_default_scope=False)
    # What optimizers and visualizers import when they are first used.
    for name in ('torch._dynamo', 'matplotlib.pyplot'):
        importlib.import_module(name)


def skip_layout() -> None:
    """Leave out yapf, with which mmengine takes a second for each text."""

    def unchanged(text: str, **_: Any) -> tuple[str, bool]:
        return text, False

    # The second may have it from the first already.
    for name in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):
        vars(importlib.import_module(name))['FormatCode'] = unchanged


def print_report(records: list[Record]) -> None:
    """Print the counts, and what did not pass."""
    console = Console()
    names = columns(records)
    table = Table('data', *names, title='Configs that prune')
    for data, group in by_data(records).items():
        counts = count(group)
        table.add_row(data, *(str(counts[name]) for name in names))
    console.print(table)
    for row in reasons(records):
        console.print(*row, markup=False, highlight=False)


# The checks


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
