"""Read and report what tools/check_zoo.py recorded."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from zoo_probes import TOLERANCES

ADE20K = 'ade20k'

Record = dict[str, Any]


def natural(name: str) -> list:
    """Return a sort key in which r50 comes before r101."""
    parts = re.split(r'(\d+)', name)
    return [int(part) if part.isdigit() else part for part in parts]


def read_records(path: Path) -> list[Record]:
    """Read what was recorded; a last line torn by a crash is cut off."""
    if not path.exists():
        return []
    lines = path.read_text().split('\n')
    if lines[-1]:
        path.write_text('\n'.join([*lines[:-1], '']))
    return [json.loads(line) for line in lines[:-1]]


COLUMNS = (
    'configs', 'passed', 'probed', 'same run', 'could not run', 'FAILED'
)  # fmt: skip


def count(records: Iterable[Record]) -> list[int]:
    """Count records by COLUMNS."""
    records = list(records)
    statuses = Counter(record['status'] for record in records)
    same = sum(
        record['status'] == 'passed' and 'same_as' in record
        for record in records
    )
    passed, failed = statuses['passed'], statuses['FAILED']
    total = len(records)
    return [
        total,
        passed,
        passed - same,
        same,
        total - passed - failed,
        failed,
    ]


def by_data(records: list[Record]) -> dict[str, list[Record]]:
    """Group records into those of ADE20K, and all."""
    ade20k = [record for record in records if ADE20K in record['config']]
    return {'ADE20K': ade20k, 'all': records}


def grouped(
    records: list[Record], key: Callable[[Record], str]
) -> dict[str, list[Record]]:
    """Group records by a key, in its order."""
    groups = defaultdict(list)
    for record in sorted(records, key=key):
        groups[key(record)].append(record)
    return groups


def folder_of(record: Record) -> str:
    """Return the folder of a record's config."""
    return str(Path(record['config']).parent)


def heads_of(record: Record) -> str:
    """Return the heads of a record's config."""
    return str(record['heads'])


def markdown_table(title: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Return a table in Markdown."""
    lines = [title, ['---'] * len(title), *rows]
    return ''.join(f'| {" | ".join(map(str, row))} |\n' for row in lines)


def count_table(name: str, groups: dict[str, list[Record]]) -> str:
    """Return the counts of groups of records as a table in Markdown."""
    rows = [[group, *count(records)] for group, records in groups.items()]
    return markdown_table([name, *COLUMNS], rows)


def largest_errors(records: list[Record]) -> list[list[str]]:
    """Return for each probe how often it was made and its largest error."""
    rows = []
    for name, tolerance in TOLERANCES.items():
        found = [r.get('probes', {}).get(name) for r in records]
        errors = [error for error in found if isinstance(error, float)]
        skipped = sum(isinstance(error, str) for error in found)
        worst = f'{max(errors):.2g}' if errors else ''
        rows.append(
            [name, str(len(errors)), str(skipped), worst, f'{tolerance:g}']
        )
    return rows


def reasons(records: list[Record]) -> list[list[str]]:
    """Return what did not pass, and why."""
    return [
        [r['config'], r['status'], r['reason'].replace('|', '/')]
        for r in records
        if r['status'] != 'passed'
    ]


def without_ignored(records: list[Record]) -> list[list[str]]:
    """Return what was run without ignored pixels, and upstream's reason."""
    return [
        [r['config'], r['no_ignored_pixels'].replace('|', '/')]
        for r in records
        if 'no_ignored_pixels' in r
    ]


def markdown(records: list[Record]) -> str:
    """Return the report of all records in Markdown."""
    records = sorted(records, key=lambda record: natural(record['config']))
    installed = {v: None for r in records for v in r['versions'].items()}
    names = ', '.join(f'{name} {version}' for name, version in installed)
    sections = [
        f'Checked with {names}.',
        count_table('data', by_data(records)),
        '"Same run" is a config that is, once it is small, the very config '
        'of a run that was probed.',
        count_table('folder', grouped(records, folder_of)),
        count_table('heads', grouped(records, heads_of)),
        markdown_table(
            ['probe', 'made', 'not applicable', 'largest error', 'tolerance'],
            largest_errors(records),
        ),
        f'{sum(bool(r.get("rounded")) for r in records)} models were so '
        'sensitive to rounding that errors were measured in double precision.',
        markdown_table(['config', 'status', 'reason'], reasons(records)),
        markdown_table(
            ['run without ignored pixels', 'as upstream fails on them'],
            without_ignored(records),
        ),
    ]
    return '\n'.join(f'{section.strip()}\n' for section in sections)


def print_report(records: list[Record]) -> None:
    """Print the counts, and what did not pass."""
    console = Console()
    table = Table('data', *COLUMNS, title='Configs that prune')
    for name, group in by_data(records).items():
        table.add_row(name, *map(str, count(group)))
    console.print(table)
    for row in reasons(records):
        console.print(*row, markup=False, highlight=False)
