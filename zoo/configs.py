"""The stock configs of an installed package, and which of them to check."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from zoo.package import Package
from zoo.processes import attempt
from zoo.record import Record, natural


def config_root(package: str) -> Path:
    """Return the folder of the configs of an installed package."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / '.mim' / 'configs'


def list_configs(root: Path, first: str) -> list[str]:
    """Return the configs below a folder, those named with `first` first."""
    names = [
        str(path.relative_to(root))
        for path in root.rglob('*.py')
        if '_base_' not in path.parts
    ]
    return sorted(names, key=lambda name: (first not in name, natural(name)))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a name contains, or as a glob is, one of the patterns."""
    return not patterns or any(p in name or fnmatch(name, p) for p in patterns)


def describe_heads(path: Path, package: Package) -> str:
    """Return the types of a config's model, its heads and their losses."""

    def describe() -> Record:
        # Without the imports: a package that is missing does not matter.
        cfg = Config.fromfile(path, import_custom_modules=False)
        return dict(heads=package.describe(cfg.get('model')))

    described = attempt(describe)
    return described.get('heads') or f'not loaded: {described["error"]}'


def one_a_head(names: Iterable[str], heads: dict[str, str]) -> list[str]:
    """Return the first config of each combination of heads."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(heads[name], name)
    return list(first.values())
