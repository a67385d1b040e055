"""The hosts: what is used of them, what is registered, what may be missing."""

import ast
import importlib
import inspect
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from infobatch_mm.host import checkpoint_files, packages
from infobatch_mm.host.packages import require

ROOT = Path(__file__).parents[1]


def run_without(packages, code):
    """Run code in a new process in which packages cannot be imported."""
    block = f'import sys; sys.modules |= dict.fromkeys({packages!r})\n'
    return subprocess.run(
        [sys.executable, '-c', block + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    'missing', [('mmengine',), ('mmcv',), ('mmseg', 'mmpretrain')]
)
def test_without_a_family_the_error_names_the_extras(missing):
    done = run_without(missing, 'import infobatch_mm')
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith('ImportError')
    for name in (*missing, '[onedl]', '[openmmlab]', '[cls]'):
        assert name in error


@pytest.mark.parametrize(
    'blocked, package, head',
    [
        ('mmpretrain', 'mmseg', 'WeightedDecodeHead'),
        ('mmseg', 'mmpretrain', 'WeightedClsHead'),
    ],
)
def test_one_task_is_enough(blocked, package, head):
    pytest.importorskip(package)
    code = (
        'import infobatch_mm, infobatch_mm.heads\n'
        'from infobatch_mm import *\n'
        f'from {package}.registry import MODELS\n'
        f'assert MODELS.get({head!r}) is {head} is infobatch_mm.heads.{head}\n'
        'from infobatch_mm.host.packages import is_importable\n'
        f'assert not is_importable({blocked!r})\n'
        'print([n for n in globals() if n.startswith("Weighted")])'
    )
    done = run_without([blocked], code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([head])


def test_bases_of_the_installed_family_are_found(tmp_path):
    base = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'
    file = tmp_path / 'config.py'
    file.write_text(f'_base_ = {base!r}')
    packages.alias_config_bases()
    assert Config.fromfile(file).model.decode_head.type == 'UPerHead'


def test_the_alias_is_only_set_where_the_official_package_is_missing(
    monkeypatch,
):
    installed = {'mmsegmentation', 'onedl-mmsegmentation', 'onedl-mmdet'}
    monkeypatch.setattr(packages, 'is_installed', installed.__contains__)
    names = dict(mmseg='mmsegmentation', mmdet='mmdet', mmcv='mmcv')
    for name in list(MODULE2PACKAGE):
        monkeypatch.delitem(MODULE2PACKAGE, name)
    for name, distribution in names.items():
        monkeypatch.setitem(MODULE2PACKAGE, name, distribution)
    packages.alias_config_bases()
    assert names | dict(mmdet='onedl-mmdet') == MODULE2PACKAGE


def test_checkpoints_with_a_message_hub_load(tmp_path):
    file = tmp_path / 'checkpoint.pth'
    torch.save(dict(history=HistoryBuffer([1.0], [1])), file)
    checkpoint_files.allow_resuming()
    loaded = CheckpointLoader.load_checkpoint(str(file))
    assert loaded['history'].current() == 1.0


def test_loader_of_local_files(tmp_path):
    file = tmp_path / 'checkpoint.pth'
    torch.save(dict(history=HistoryBuffer([1.0], [1])), file)
    assert (
        checkpoint_files.load_from_local(str(file))['history'].current() == 1.0
    )
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        checkpoint_files.load_from_local(str(tmp_path / 'none.pth'))


# What `import infobatch_mm` does to a process: it registers, no more

# Names that can be replaced, by the modules where their users look.
SNAPSHOT = """
import importlib, sys, warnings
warnings.simplefilter('ignore')
MODULES = [
    'torch.nn.functional', 'torch.distributed', 'mmengine.dist.utils',
    'mmengine.dataset.base_dataset', 'mmengine.hooks.checkpoint_hook',
    'mmengine.optim.optimizer.optimizer_wrapper', 'mmengine.runner.runner',
    'mmengine.runner._flexible_runner', 'mmengine.runner.loops',
    'mmengine.runner.checkpoint', 'mmengine.config.config',
    *EXTRA,
]
for name in MODULES:
    importlib.import_module(name)

def names(owner):
    return {
        f'{owner.__name__}.{key}': id(value)
        for key, value in vars(owner).items()
        if key != '__warningregistry__'
    }

def look():
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.registry import LOOPS
    from mmengine.runner.checkpoint import CheckpointLoader
    found = {}
    for name in MODULES:
        module = sys.modules[name]
        found |= names(module)
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == name:
                found |= names(value)
    found |= {f'scheme {k!r}': v for k, v in CheckpointLoader._schemes.items()}
    found |= {f'package of {k}': v for k, v in MODULE2PACKAGE.items()}
    # Registered names stay what they were; new ones may come.
    return found, dict(LOOPS.module_dict)

before, loops = look()
import infobatch_mm
after, loops_after = look()
# A submodule that is imported becomes a name of its package.
changed = [
    key for key in before.keys() | after.keys()
    if before.get(key) != after.get(key)
    and sys.modules.get(key) is None
]
changed += [key for key in loops if loops_after[key] is not loops[key]]
print(sorted(changed))
"""
EXTRA = {
    'mmseg': [
        'mmseg.models.losses.cross_entropy_loss',
        'mmseg.models.decode_heads.decode_head',
    ],
    'mmpretrain': [
        'mmpretrain.models.losses',
        'mmpretrain.models.heads.cls_head',
    ],
}


@pytest.mark.parametrize('task', EXTRA)
def test_importing_the_package_changes_nothing_else(task):
    if not util.find_spec(task):
        pytest.skip(f'needs {task}')
    code = f'EXTRA = {EXTRA[task]!r}\n{SNAPSHOT}'
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == '[]'


# What is said where a package of an extra is missing


def test_a_package_that_is_there_is_imported():
    assert require('statistics', 'compare') is statistics


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(ModuleNotFoundError) as caught:
        require('no_such_package.part', 'compare')
    assert 'no_such_package is not installed' in str(caught.value)
    assert 'pip install "infobatch_mm[compare]"' in str(caught.value)


def test_an_installed_package_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / 'broken_package.py').write_text('import no_such_package\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='no_such_package') as caught:
        require('broken_package', 'compare')
    assert 'infobatch_mm[' not in str(caught.value)
    assert 'broken_package' not in sys.modules


# What infobatch_mm uses of its hosts beyond their public names

PACKAGE = Path(__file__).parents[1] / 'infobatch_mm'
# Private names of the standard library that stand in annotations.
STANDARD = {'_SubParsersAction', '_actions'}
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
    ('mmengine.visualization:Visualizer', '_vis_backends', None),
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
    ('mmengine.dataset:BaseDataset', '_fully_initialized', None),
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
    ('torch._utils', '_rebuild_tensor_v2', None),
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
                targets = [part for t in targets for part in ast.walk(t)]
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
