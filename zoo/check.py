"""The command that checks configs, writes their records and counts them."""

import argparse
import importlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.checks import check_all
from zoo.configs import (
    config_root,
    describe_heads,
    list_configs,
    matches,
    one_a_head,
)
from zoo.environment import check_family, installed_family
from zoo.package import Package, load_package
from zoo.record import (
    Record,
    append_record,
    keep_records,
    kept_file,
    resume_records,
)
from zoo.screen import print_report
from zoo.tables import markdown

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
