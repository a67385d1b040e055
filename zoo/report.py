"""The command that writes what the kept records say, over both families.

Of README.md and docs/ it writes what stands between the markers of a block.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from textwrap import fill, shorten
from typing import NamedTuple

from benchmarks import markers, replace_block
from zoo.record import (
    EXTRAS,
    FAMILIES,
    TOLERANCES,
    Record,
    kept_file,
    read_records,
)
from zoo.tables import (
    ADE20K,
    UNTRAINED,
    count,
    errors_of,
    installed,
    largest,
    markdown,
    markdown_table,
    rounded,
)

ROOT = Path(__file__).parents[1]
# The pages that may have blocks, and the link to docs/zoo.md from there.
PAGES = {
    'README.md': 'docs/zoo.md',
    'docs/zoo.md': '../zoo/records',
    'docs/classification.md': 'zoo.md',
}
# Records by config, by the family that they were made in.
ByFamily = Mapping[str, dict[str, Record]]
TITLES = dict(openmmlab='official', onedl='OneDL')
# The first of these that a config has in any family is its status in all.
STATUSES = ('FAILED', 'passed', 'refused')


def run(folder: Path | None = None) -> None:
    """Write the pages that are stale.

    Args:
        folder (Path, optional): Where the tables of each file of records go,
            by folder of configs and by head, if they are asked for.
    """
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f'wrote {path.relative_to(ROOT)}')
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for path in kept_files():
            tables = markdown(read_records(path))
            (folder / f'{path.stem}.md').write_text(tables)


def pages() -> dict[Path, str]:
    """Return what each page should hold, by its path."""
    found = {}
    for name, link in PAGES.items():
        path = ROOT / name
        text = path.read_text()
        for block, write in blocks(link).items():
            if markers(block)[0] in text:
                text = replace_block(text, block, write())
        found[path] = text
    return found


def kept_files() -> list[Path]:
    """Return the files of records that there are."""
    paths = [kept_file(name, family) for name in EXTRAS for family in FAMILIES]
    return [path for path in paths if path.exists()]


def blocks(link: str) -> dict[str, Callable[[], str]]:
    """Return what writes the blocks that a page can have, by their names.

    Args:
        link (str): Where the page finds more on it.
    """
    return {
        'zoo-counts': partial(sentences, link),
        'zoo-mmseg': partial(family_table, 'mmseg'),
        'zoo-mmseg-reasons': partial(reasons_table, 'mmseg'),
        'zoo-mmpretrain': partial(family_table, 'mmpretrain'),
        'zoo-mmpretrain-reasons': partial(reasons_table, 'mmpretrain'),
        'zoo-mmpretrain-untrained': partial(untrained_table, 'mmpretrain'),
        'zoo-errors': errors_table,
        'zoo-times': times_table,
    }


# Counts


class Counts(NamedTuple):
    """How many configs train what prunes, and what became of them."""

    configs: int
    passed: int
    refused: int
    could_not_run: int
    failed: int


def read_families(package: str) -> dict[str, dict[str, Record]]:
    """Return the kept records of a package by family, those there are."""
    found = {}
    for family in sorted(FAMILIES, reverse=True):
        records = read_records(kept_file(package, family))
        if records:
            found[family] = {record['config']: record for record in records}
    return found


def status_in_all(families: ByFamily, config: str) -> str:
    """Return the status of a config over all families.

    One that passes in a family and could not run in another has passed; one
    that has FAILED in any family has failed.
    """
    found = [f[config]['status'] for f in families.values() if config in f]
    return next((s for s in STATUSES if s in found), found[0])


def statuses_in_all(families: ByFamily) -> dict[str, str]:
    """Return the statuses over all families, by config."""
    names = dict.fromkeys(name for f in families.values() for name in f)
    return {name: status_in_all(families, name) for name in names}


def counts(package: str, part: str = '') -> Counts:
    """Count the configs of a package by what became of them in any family.

    Configs that train nothing, or nothing that prunes, are left out.

    Args:
        package (str): 'mmseg' or 'mmpretrain'.
        part (str): Count only configs that have it in their name, such as
            'ade20k'.
    """
    statuses = Counter(
        status
        for name, status in statuses_in_all(read_families(package)).items()
        if part in name and status not in UNTRAINED
    )
    return Counts(
        configs=statuses.total(),
        passed=statuses['passed'],
        refused=statuses['refused'],
        could_not_run=statuses['missing'] + statuses['upstream'],
        failed=statuses['FAILED'],
    )


def sentences(page: str) -> str:
    """Return what a reader has to know, for README.md and the pages.

    Args:
        page (str): A link to docs/zoo.md, from where the text stands.
    """
    seg, ade20k, cls = (
        counts('mmseg'), counts('mmseg', ADE20K), counts('mmpretrain')
    )  # fmt: skip
    failed = seg.failed + cls.failed
    refused = seg.refused + cls.refused
    text = (
        f'{seg.passed} of the {seg.configs} configs of mmseg '
        f'({ade20k.passed} of the {ade20k.configs} for ADE20K) and '
        f'{cls.passed} of the {cls.configs} configs of mmpretrain that train '
        'a classifier were seen to prune without an edit: each was made '
        'small enough for a CPU, trained, and measured against its stock '
        f'twin. {failed or "None"} failed. The other '
        f'{seg.could_not_run} and {cls.could_not_run} do not run without '
        f'pruning either, and `enable` refuses {refused}, whose sampler it '
        f'would have to replace ([all results]({page})).'
    )
    return fill(text, 88, break_long_words=False, break_on_hyphens=False)


# Tables


def family_table(package: str) -> str:
    """Return the counts of a package by family, and over all of them."""
    families = read_families(package)
    groups = {
        TITLES[family]: list(records.values())
        for family, records in families.items()
    }
    if len(families) > 1:
        merged = statuses_in_all(families)
        groups['passed in at least one'] = [
            dict(config=name, status=status, reason='')
            for name, status in merged.items()
        ]
    ade20k = {
        title: [r for r in records if ADE20K in r['config']]
        for title, records in groups.items()
    }
    rows = count_rows(groups)
    if any(ade20k.values()):
        rows += [[f'ADE20K: {name}', *r] for name, *r in count_rows(ade20k)]
    return markdown_table(['', *groups], rows)


def count_rows(groups: Mapping[str, list[Record]]) -> list[list[object]]:
    """Return a row for each count, with the count of each group."""
    counted = [count(records) for records in groups.values()]
    rows: list[list[object]] = []
    for name in counted[0]:
        values: list[object] = [c[name] for c in counted]
        if name in ('probed', 'same run') and len(values) > 1:
            values[-1] = ''  # of all families it would say nothing
        if name == 'FAILED' or any(values):
            rows.append([name, *values])
    return rows


def reasons_table(package: str) -> str:
    """Return what could not run in some family, and why.

    What runs in no family comes first.
    """
    families = read_families(package)
    groups = defaultdict(list)
    for name, status in statuses_in_all(families).items():
        if status in UNTRAINED:
            continue
        cells = [cell(f.get(name)) for f in families.values()]
        if any(c not in ('passed', '') for c in cells):
            groups['passed' in cells, tuple(cells)].append(name)
    rows = [
        [folders(names), len(names), *cells]
        for (_, cells), names in sorted(groups.items())
    ]
    titles = [TITLES[family] for family in families]
    return markdown_table(['folder', 'configs', *titles], rows)


def cell(record: Record | None) -> str:
    """Return what became of a config in a family, for a table."""
    if record is None:
        return ''
    if record['status'] == 'passed':
        return 'passed'
    return shorten(record['reason'].replace('|', '/'), 150)


def folders(names: Iterable[str]) -> str:
    """Return the folders that configs are in."""
    return ', '.join(sorted({str(Path(name).parent) for name in names}))


def untrained_table(package: str) -> str:
    """Return how many configs train nothing that prunes, and why."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for records in read_families(package).values():
        for name, record in records.items():
            if record['status'] in UNTRAINED:
                found[record['status'], record['reason']].add(name)
    rows = [[*why, len(names)] for why, names in sorted(found.items())]
    return markdown_table(['not meant to prune', 'reason', 'configs'], rows)


def all_records() -> dict[str, list[Record]]:
    """Return all kept records, by what a table calls their package."""
    return {
        f'{package}, {TITLES[family]}': list(records.values())
        for package in EXTRAS
        for family, records in read_families(package).items()
    }


def errors_table() -> str:
    """Return the largest error of each probe."""
    kept = all_records()
    rows = [
        [f'`{name}`', f'{tolerance:g}']
        + [largest(errors_of(records, name)) for records in kept.values()]
        for name, tolerance in TOLERANCES.items()
    ]
    again = [str(rounded(records)) for records in kept.values()]
    rows.append(['models measured again in double precision', '', *again])
    return markdown_table(['probe', 'tolerance', *kept], rows)


def times_table() -> str:
    """Return what the records were made with, and how long it took."""
    rows = []
    for name, records in all_records().items():
        seconds = [r['seconds'] for r in records if 'seconds' in r]
        cpu = sum(r.get('cpu_seconds', 0) for r in records) / 3600
        commits = Counter(r.get('commit', 'not recorded') for r in records)
        rows.append(
            [
                name,
                installed(records),
                ', '.join(f'{commit} ({n})' for commit, n in commits.items()),
                len(seconds),
                f'{sum(seconds) / 3600:.1f} h',
                f'{cpu:.1f} h' if cpu else 'not recorded',
                f'{max(seconds, default=0) / 60:.0f} min',
            ]
        )
    title = [
        'records', 'packages', 'commit', 'runs', 'sum of all', 'CPU time',
        'the longest',
    ]  # fmt: skip
    return markdown_table(title, rows)
