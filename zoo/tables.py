"""Tables of the records of one package in one family."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from zoo.record import OTHERWISE, TOLERANCES, Record, natural

ADE20K = 'ade20k'
COLUMNS = ('passed', 'probed', 'same run', 'could not run', 'FAILED')
# Statuses of configs that train nothing, or nothing that is scored.
UNTRAINED = ('does not train', 'not classification')
# Those of all configs that are not meant to prune.
NOT_MEANT = ('refused', *UNTRAINED)


def columns(records: Iterable[Record]) -> list[str]:
    """Return the columns in which records are counted."""
    statuses = {record['status'] for record in records}
    not_meant = [name for name in NOT_MEANT if name in statuses]
    first = ['configs', 'trained'] if statuses & {*UNTRAINED} else ['configs']
    return [*first, *COLUMNS, *not_meant]


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
        'trained': len(records) - sum(statuses[name] for name in UNTRAINED),
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


def markdown_table(
    title: Sequence[str], rows: Iterable[Sequence[object]]
) -> str:
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


def errors_of(records: Iterable[Record], probe: str) -> list[float | str]:
    """Return the errors of a probe, and why it was not made where it was not.

    Args:
        records (list[dict]): The records, also those without probes.
        probe (str): One of TOLERANCES.
    """
    found = [record.get('probes', {}).get(probe) for record in records]
    return [error for error in found if error is not None]


def largest(errors: Iterable[float | str]) -> str:
    """Return the largest error, '' if there is none."""
    numbers = [error for error in errors if isinstance(error, float)]
    return f'{max(numbers):.2g}' if numbers else ''


def largest_errors(records: list[Record]) -> list[list[str]]:
    """Return for each probe how often it was made and its largest error."""
    rows = []
    for name, tolerance in TOLERANCES.items():
        errors = errors_of(records, name)
        skipped = sum(isinstance(error, str) for error in errors)
        made, worst = len(errors) - skipped, largest(errors)
        rows.append([name, str(made), str(skipped), worst, f'{tolerance:g}'])
    return rows


def rounded(records: Iterable[Record]) -> int:
    """Return how many models were measured again in double precision."""
    return sum(bool(record.get('rounded')) for record in records)


def installed(records: Iterable[Record]) -> str:
    """Return the versions that records were made with."""
    known = {v: None for r in records for v in r['versions'].items()}
    return ', '.join(f'{name} {version}' for name, version in known)


def reasons(records: list[Record]) -> list[list[str]]:
    """Return what was to prune and did not pass, and why."""
    return [
        [r['config'], r['status'], r['reason'].replace('|', '/')]
        for r in records
        if r['status'] not in ('passed', *NOT_MEANT)
    ]


def reasons_not_meant(records: list[Record]) -> list[list[object]]:
    """Return why configs are not meant to prune, and how many each."""
    counts = Counter(
        (r['status'], r['reason']) for r in records if r['status'] in NOT_MEANT
    )
    return [[*why, number] for why, number in sorted(counts.items())]


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
    sections = [
        f'Checked with {installed(records)}.',
        count_table('data', by_data(records)),
        '"Same run" is a config that, once it is small, equals one that was '
        'probed, and so was not run again.',
        count_table('folder', grouped(records, folder_of)),
        count_table('heads', grouped(records, heads_of)),
        markdown_table(
            ['probe', 'made', 'not applicable', 'largest error', 'tolerance'],
            largest_errors(records),
        ),
        f'{rounded(records)} models were so sensitive to rounding that errors '
        'were measured in double precision.',
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
