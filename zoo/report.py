"""The command that writes the tables of the kept records.

A page for each file of records lies beside it. Of README.md and docs/, only
what stands between the markers of a block is written.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.blocks import markers, replace_block
from zoo.environment import EXTRAS, FAMILIES
from zoo.record import kept_file, read_records
from zoo.summary import (
    errors_table,
    family_table,
    reasons_table,
    sentences,
    times_table,
    untrained_table,
)
from zoo.tables import markdown

ROOT = Path(__file__).parents[1]
# The pages that may have blocks, and the link to docs/zoo.md from there.
PAGES = {
    'README.md': 'docs/zoo.md',
    'docs/zoo.md': '../zoo/records',
    'docs/classification.md': 'zoo.md',
}


def run() -> None:
    """Write the pages that are stale."""
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f'wrote {path.relative_to(ROOT)}')


def pages() -> dict[Path, str]:
    """Return what each page should hold, by its path."""
    found = {
        path.with_suffix('.md'): markdown(read_records(path))
        for path in kept_files()
    }
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
