"""Read and report what tools/check_zoo.py recorded."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zoo.probes import TOLERANCES

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
# Of configs that are not meant to prune: columns where there are any.
NOT_MEANT = ('refused', 'does not train', 'not classification')


def columns(records: Iterable[Record]) -> list[str]:
    """Return the columns in which records are counted."""
    statuses = {record['status'] for record in records}
    return [*COLUMNS, *(name for name in NOT_MEANT if name in statuses)]


def count(records: Iterable[Record]) -> dict[str, int]:
    """Count records by column."""
    records = list(records)
    statuses = Counter(record['status'] for record in records)
    same = sum(
        record['status'] == 'passed' and 'same_as' in record
        for record in records
    )
    return {
        'configs': len(records),
        'passed': statuses['passed'],
        'probed': statuses['passed'] - same,
        'same run': same,
        'could not run': statuses['missing'] + statuses['upstream'],
        'FAILED': statuses['FAILED'],
        **{name: statuses[name] for name in NOT_MEANT},
    }


def by_data(records: list[Record]) -> dict[str, list[Record]]:
    """Group records into those of ADE20K, if there are any, and all."""
    ade20k = [record for record in records if ADE20K in record['config']]
    return ({'ADE20K': ade20k} if ade20k else {}) | {'all': records}


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
    names = columns(r for records in groups.values() for r in records)
    rows = [
        [group, *(count(records)[column] for column in names)]
        for group, records in groups.items()
    ]
    return markdown_table([name, *names], rows)


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
    """Return what was to prune and did not pass, and why."""
    return [
        [r['config'], r['status'], r['reason'].replace('|', '/')]
        for r in records
        if r['status'] not in ('passed', *NOT_MEANT)
    ]


def reasons_not_meant(records: list[Record]) -> list[list[Any]]:
    """Return why configs are not meant to prune, and how many each."""
    counts = Counter(
        (r['status'], r['reason']) for r in records if r['status'] in NOT_MEANT
    )
    return [[*why, number] for why, number in sorted(counts.items())]


# How a config was run that could not be run as it is (Package.retries).
OTHERWISE = dict(
    no_ignored_pixels='without ignored pixels',
    small_learning_rate='with a hundredth of the learning rate',
)


def run_otherwise(records: list[Record]) -> list[list[str]]:
    """Return what was run in another way than the rest, and why."""
    return [
        [record['config'], how, record[name].replace('|', '/')]
        for record in records
        for name, how in OTHERWISE.items()
        if name in record
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
    ]
    not_meant = reasons_not_meant(records)
    if not_meant:
        title = ['not meant to prune', 'reason', 'configs']
        sections.append(markdown_table(title, not_meant))
    others = run_otherwise(records)
    if others:
        title = ['config', 'how it was run', 'why: without pruning too']
        sections.append(markdown_table(title, others))
    return '\n'.join(f'{section.strip()}\n' for section in sections)


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
