"""What the pages name: links, anchors, files, modules and commands exist."""

import importlib.util
import re
import string
from functools import cache
from inspect import signature
from itertools import product
from pathlib import Path

import pytest

from benchmarks import is_current, report
from infobatch_mm import InfoBatchHook
from infobatch_mm.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    ROOT / 'tools/README.md',
    *sorted((ROOT / 'docs').glob('*.md')),
    *sorted((ROOT / 'configs').rglob('README.md')),
    *sorted((ROOT / 'benchmarks').glob('*.md')),
]
# They name files too, in code and comments.
OTHERS = [ROOT / 'Makefile', ROOT / 'model-index.yml'] + [
    path
    for room in ('infobatch_mm', 'zoo', 'benchmarks', 'configs', 'tools')
    for ending in ('*.py', '*.sh')
    for path in sorted((ROOT / room).rglob(ending))
]

LINK = re.compile(r'\]\(([^)\s]+)\)')
HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)
FENCE = re.compile(r'^```.*?^```', re.MULTILINE | re.DOTALL)
# What begins with a folder of the project, or with one of configs/.
FILE = re.compile(
    r'(?<![\w/.:-])((?:\.\./)*'
    r'(?:benchmarks|configs|docs|infobatch_mm|tests|tools|zoo)'
    r'/[\w./{},*-]*[\w}*])(?![\w$%/-])'
)
CONFIG = re.compile(
    r'`((?:ade20k|camvid|cifar100?|imagenet|quickstart|tiny_imagenet)/\S+)`'
)
TEST = re.compile(r'\btest_\w+\.py\b')
PACKAGE = ROOT / 'infobatch_mm'
FOLDERS = [path.parent.name for path in PACKAGE.glob('*/__init__.py')]
INNER = re.compile(rf'`((?:{"|".join(FOLDERS)})/\w+\.py)`')
MODULE = re.compile(r'python -m ([\w.]+)')
COMMAND = re.compile(r'^(?:\$ )?infobatch (\w+)|`infobatch (\w+)', re.M)
TARGET = re.compile(r'(?:^|`)make\s([a-z-]+)', re.MULTILINE)


def snippets(page: str, language: str, heading: str) -> list[str]:
    """Return the blocks of a language under a heading."""
    text = (ROOT / 'docs' / page).read_text()
    section = text.split(f'\n## {heading}\n')[1].split('\n## ')[0]
    return re.findall(rf'```{language}\n(.*?)```', section, re.DOTALL)


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them of headings."""
    kept = set(string.ascii_lowercase + string.digits + '-_ ')
    text = FENCE.sub('', page.read_text(encoding='utf-8'))
    return {
        ''.join(c for c in title.lower() if c in kept).replace(' ', '-')
        for title in HEADING.findall(text)
    }


def spelled_out(name: str) -> list[str]:
    """Return the names that braces stand for, as in a shell."""
    parts = re.split(r'\{([^}]*)\}', name.replace('{}', '*'))
    choices = [
        part.split(',') if i % 2 else [part] for i, part in enumerate(parts)
    ]
    return [''.join(choice) for choice in product(*choices)]


def exists(name: str, page: Path) -> bool:
    """Tell whether a file is in the project, or beside the page.

    A word in capitals may stand for any.
    """
    patterns = (name, re.sub('[A-Z]{2,}', '*', name))
    return any(
        any(folder.glob(pattern))
        for folder in (ROOT, page.parent)
        for pattern in patterns
    )


@cache
def makefile() -> str:
    return (ROOT / 'Makefile').read_text()


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding='utf-8')
    for link in LINK.findall(text):
        if re.match(r'\w+:', link):  # on the web
            continue
        name, _, anchor = link.partition('#')
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def missing_files(page: Path) -> list[str]:
    """Return the files that a page names and that are not there."""
    text = page.read_text(encoding='utf-8')
    names = [name.replace('../', '') for name in FILE.findall(text)]
    names += [f'configs/{name}' for name in CONFIG.findall(text)]
    names += [f'tests/{name}' for name in TEST.findall(text)]
    names += [f'infobatch_mm/{name}' for name in INNER.findall(text)]
    each = [one for name in names for one in spelled_out(name)]
    return [name for name in each if not exists(name, page)]


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_named_files_are_there(page):
    assert not missing_files(page)


def test_files_named_in_code_are_there():
    found = {page_id(path): missing_files(path) for path in OTHERS}
    assert not {path: names for path, names in found.items() if names}


def test_a_missing_file_is_found(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('See tools/train.py, `tools/{train,no}.py`, test_no.py')
    assert missing_files(page) == ['tools/no.py', 'tests/test_no.py']


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_named_commands_can_be_run(page):
    text = page.read_text(encoding='utf-8')
    for module in MODULE.findall(text):
        if module.partition('.')[0] in ('infobatch_mm', 'zoo', 'benchmarks'):
            assert importlib.util.find_spec(module), module
    for found in COMMAND.findall(text):
        assert ''.join(found) in {*COMMANDS, 'COMMAND'}, found
    for target in TARGET.findall(text):
        assert f'\n{target}:' in makefile(), target


def test_every_setting_of_the_hook_is_in_its_table():
    text = (ROOT / 'configs/README.md').read_text()
    table = text.split('## Settings of `InfoBatchHook`')[1]
    for name in signature(InfoBatchHook).parameters:
        assert f'\n| `{name}` |' in table, name


@pytest.mark.parametrize('block', report.cost_blocks(), ids=lambda b: b[1])
def test_costs_in_the_pages_are_those_that_were_measured(block):
    """After `python -m benchmarks report` they are."""
    assert is_current(*block)


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text().split()) <= 900
