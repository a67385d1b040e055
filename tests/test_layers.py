"""The floors of the house: no import runs up one, and none in a circle."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ('infobatch_mm', 'zoo', 'benchmarks', 'tools')

# From the ground up: a module imports from its own floor and from those
# below. Names within the package go without infobatch_mm; a pattern stands
# for many modules, and the first floor that fits a name is its own.
FLOORS = {
    'arithmetic': (
        'pacing rescale clock ledger pruning '
        'pruning.plan pruning.prune_ratio pruning.draw pruning.policies '
        'estimate'
    ),
    'ground': (
        'host host.* datasets datasets.* pruning.registry randomness ranks '
        'scores '
        # where modules of these two floors stood before
        'cifar dataset digit_scenes policies'
    ),
    'heads': 'heads heads.* sampler',
    'run': 'rounds pruned_run records binding loops',
    'step': 'checks reach steps parts',
    'events': 'hook config infobatch_mm',
    'override': 'override',
    'libraries': 'prepare prepare.* report report.* compare compare.*',
    'commands': 'commands commands.* __main__',
    # They may import the package, which may not import them.
    'outside': 'tools.* benchmarks benchmarks.* zoo zoo.*',
}
# Arithmetic, and what a test can run without a runner.
WITHOUT_HOST = f'{FLOORS["arithmetic"]} rounds pruned_run'
HOSTS = {'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'mmdet'}


def short(module: str) -> str:
    return module.removeprefix('infobatch_mm.')


@cache
def modules() -> dict[str, Path]:
    """Return the files of all rooms by the names of their modules."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob('*.py')):
            parts = path.relative_to(ROOT).with_suffix('').parts
            if 'configs' in parts:
                continue
            if parts[-1] == '__init__':
                parts = parts[:-1]
            found['.'.join(parts)] = path
    return found


def names_in(source: str, package: str) -> Iterator[str]:
    """Yield the full names that a source imports, within functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: 1 - node.level or None]
            base = '.'.join(above) if node.level else ''
            full = '.'.join(filter(None, (base, node.module)))
            yield from (f'{full}.{alias.name}' for alias in node.names)


def imported_names(module: str) -> set[str]:
    path = modules()[module]
    package = module if path.stem == '__init__' else module.rpartition('.')[0]
    return set(names_in(path.read_text(), package))


def module_of(name: str, importer: str) -> str | None:
    """Return which of our modules an imported name is in, None if foreign."""
    # Scripts find their neighbours in the folder that they are in.
    neighbour = f'{importer.rpartition(".")[0]}.{name}'
    is_script = not (modules()[importer].parent / '__init__.py').exists()
    for full in (name, neighbour) if is_script else (name,):
        while full and full not in modules():
            full = full.rpartition('.')[0]
        if full:
            return full
    return None


@cache
def imports_of(module: str) -> frozenset[str]:
    """Return which of our modules a module imports."""
    targets = {module_of(name, module) for name in imported_names(module)}
    return frozenset(targets - {None, module})


def floor_of(module: str) -> int:
    for floor, patterns in enumerate(FLOORS.values()):
        if any(fnmatch(short(module), p) for p in patterns.split()):
            return floor
    raise LookupError(f'{module} has no floor: give it one in FLOORS')


@pytest.mark.parametrize('module', modules())
def test_no_import_runs_up(module):
    higher = [
        target
        for target in imports_of(module)
        if floor_of(target) > floor_of(module)
    ]
    assert not higher


def test_no_import_runs_in_a_circle():
    # What imports nothing that is left is taken out, until nothing changes:
    # circles, and what leads to them, are what stays.
    left = dict.fromkeys(modules())
    while leaves := [m for m in left if not imports_of(m) & left.keys()]:
        for module in leaves:
            del left[module]
    assert not list(left)


@pytest.mark.parametrize(
    'module',
    [m for m in modules() if short(m) in WITHOUT_HOST.split()],
)
def test_arithmetic_imports_no_host(module):
    roots = {name.partition('.')[0] for name in imported_names(module)}
    assert not roots & HOSTS


def test_imports_are_seen():
    source = """
from . import a
def late():
    from ..ledger import Ledger
    import mmseg.models
"""
    assert list(names_in(source, 'infobatch_mm.heads')) == [
        'infobatch_mm.heads.a',
        'infobatch_mm.ledger.Ledger',
        'mmseg.models',
    ]
    assert 'infobatch_mm.ledger' in imports_of('infobatch_mm.heads.weighted')
    assert 'infobatch_mm.commands.train' in imports_of('tools.train')
