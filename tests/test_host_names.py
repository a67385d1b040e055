"""What infobatch_mm uses of its hosts beyond their public names."""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / 'infobatch_mm'
# Private names of the standard library that stand in annotations.
STANDARD = {'_SubParsersAction'}
HOSTS = ('torch', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'mmdet')

# Where the name is looked up, the name, and, of a method that is replaced or
# called, its arguments. A name is skipped where its package is not installed.
NAMES = [
    # read and set
    ('mmengine.runner:Runner', '_resume', None),
    ('mmengine.runner:FlexibleRunner', '_resume', None),
    ('mmengine.runner:EpochBasedTrainLoop', '_max_iters', None),
    ('mmengine.runner:EpochBasedTrainLoop', '_epoch', None),
    ('mmengine.runner:IterBasedTrainLoop', '_max_iters', None),
    ('mmengine.optim:OptimWrapper', '_accumulative_counts', None),
    ('mmengine.optim:OptimWrapper', '_inner_count', None),
    ('mmengine.optim:OptimWrapper', '_max_counts', None),
    ('mmengine.optim:OptimWrapper', '_remainder_counts', None),
    ('mmengine.hooks:CheckpointHook', 'keep_ckpt_ids', None),
    ('mmengine.hooks:CheckpointHook', 'last_ckpt', None),
    ('mmengine.hooks:CheckpointHook', 'file_backend', None),
    ('mmengine.hooks:CheckpointHook', 'filename_tmpl', None),
    # overridden in a subclass that the instance is given
    (
        'mmengine.hooks:CheckpointHook',
        '_save_checkpoint_with_step',
        'self runner step meta',
    ),
    (
        'mmengine.hooks:CheckpointHook',
        '_save_best_checkpoint',
        'self runner metrics',
    ),
    (
        'mmengine.hooks:CheckpointHook',
        'every_n_train_iters',
        'self runner n start',
    ),
    ('mmengine.structures:BaseDataElement', '_metainfo_fields', None),
    ('mmengine.structures:BaseDataElement', '_data_fields', None),
    ('mmengine.runner.runner', '_SlicedDataset', None),
    ('mmengine.runner.runner:_SlicedDataset', '_dataset', None),
    # replaced
    ('mmengine.dataset:BaseDataset', 'prepare_data', 'self idx'),
    ('mmengine.dataset:BaseDataset', 'get_data_info', 'self idx'),
    ('mmengine.dataset:BaseDataset', '_rand_another', 'self'),
    ('mmengine.config.utils', 'MODULE2PACKAGE', None),
    ('mmengine.runner.runner', 'EpochBasedTrainLoop', None),
    ('mmengine.runner.runner', 'IterBasedTrainLoop', None),
    ('mmengine.runner._flexible_runner', 'EpochBasedTrainLoop', None),
    ('mmengine.runner._flexible_runner', 'IterBasedTrainLoop', None),
    ('mmengine.runner.checkpoint:CheckpointLoader', '_schemes', None),
    ('torch.distributed', 'is_initialized', ''),
    ('mmseg.models.losses.cross_entropy_loss', 'F', None),
]
# Names with an underscore that are public all the same.
PUBLIC = {'_replace', '_asdict', '_fields', '_exit'}
# Intrusions that stand outside of host/ as yet. May only shrink, to nothing.
REMAINING: dict[str, set[str]] = {}


def resolve(place: str) -> Any:
    """Return the module, or the class in it, that a place names."""
    module, _, name = place.partition(':')
    pytest.importorskip(module.partition('.')[0])
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


def is_set_by(cls: type, name: str) -> bool:
    """Tell whether the methods of a class set an attribute of this name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == name
        and isinstance(node.ctx, ast.Store)
        for node in ast.walk(tree)
    )


def exists(owner: Any, name: str) -> bool:
    if hasattr(owner, name):
        return True
    bases = owner.__mro__[:-1] if inspect.isclass(owner) else ()
    return any(is_set_by(base, name) for base in bases)


@pytest.mark.parametrize('place, name, arguments', NAMES)
def test_the_host_has_the_name(place, name, arguments):
    owner = resolve(place)
    assert exists(owner, name)
    if arguments is not None:
        parameters = inspect.signature(getattr(owner, name)).parameters
        assert list(parameters) == arguments.split()


def test_a_name_that_is_gone_is_missed():
    owner = resolve('mmengine.optim:OptimWrapper')
    assert not exists(owner, '_no_such_counter')


def test_mmseg_calls_what_is_replaced():
    """The loss looks cross_entropy up in F, at each call."""
    module = resolve('mmseg.models.losses.cross_entropy_loss')
    assert 'F.cross_entropy(' in inspect.getsource(module.cross_entropy)


@cache
def trees() -> dict[str, ast.Module]:
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob('*.py'))
    }


@cache
def own_names() -> frozenset[str]:
    """Return all names that the package itself defines."""
    names = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = getattr(node, 'targets', None) or [node.target]
                names |= {
                    target.attr
                    for target in targets
                    if isinstance(target, ast.Attribute)
                    and ast.unparse(target.value) == 'self'
                }
                names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return frozenset(names)


def is_private(name: str) -> bool:
    return name.startswith('_') and not name.startswith('__')


def foreign_names(tree: ast.Module) -> dict[str, str]:
    """Return the full names that are imported from hosts, by their own."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            source = getattr(node, 'module', None) or ''
            for alias in node.names:
                full = f'{source}.{alias.name}'.lstrip('.')
                if not getattr(node, 'level', 0) and full.startswith(HOSTS):
                    found[alias.asname or alias.name] = full
    return found


def intrusions(tree: ast.Module) -> Iterator[str]:
    """Yield the names by which a module reaches into a host.

    A private name counts if the package does not define it, or asks
    ``super()`` for it; so does what sets a name of a host's module, or the
    class of an object.
    """
    foreign = foreign_names(tree)
    for full in foreign.values():
        yield from filter(is_private, full.split('.'))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            is_set = isinstance(node.ctx, ast.Store)
            is_own = node.attr in own_names() and owner != 'super()'
            if (
                (
                    is_private(node.attr)
                    and not is_own
                    and node.attr not in STANDARD
                )
                or (is_set and owner.partition('.')[0] in foreign)
                or (is_set and node.attr == '__class__')
                or node.attr == 'register_scheme'
            ):
                yield node.attr
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) == 'setattr' and 'self' not in (
                ast.unparse(node.args[0])
            ):
                yield 'setattr'
        elif isinstance(node, ast.Name) and node.id == 'MODULE2PACKAGE':
            yield node.id


def test_intrusions_are_seen():
    source = """
import torch
from mmengine.runner import _private_module
def f(runner, hook):
    runner._iter_of_the_host = 1
    torch.distributed.is_initialized = None
    hook.__class__ = f
    super()._save_best_checkpoint()
"""
    assert set(intrusions(ast.parse(source))) == {
        '_private_module',
        '_iter_of_the_host',
        'is_initialized',
        '__class__',
        '_save_best_checkpoint',
    }


@pytest.mark.parametrize(
    'file', [f for f in trees() if not f.startswith('host/')]
)
def test_intrusions_stand_in_host(file):
    found = set(intrusions(trees()[file])) - PUBLIC
    # If it is less than what is listed: shorten the list.
    assert found == REMAINING.get(file, set())


def test_no_file_is_listed_that_is_gone():
    assert REMAINING.keys() <= trees().keys()
