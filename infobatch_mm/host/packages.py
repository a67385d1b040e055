"""Which packages are there: OpenMMLab's, and those that extras install.

open-mmlab (mmengine, mmcv, mmsegmentation, mmpretrain) and the OneDL forks
(onedl-mmengine, ...) share their import names. Everything in this package
asks what the installed packages can do, never which version they are.
"""

import functools
import importlib
from importlib import metadata, util
from types import ModuleType

INSTALL_HINT = (
    'infobatch_mm needs one family of OpenMMLab packages, and {missing} '
    'cannot be imported. Install one of them: '
    'pip install "infobatch_mm[onedl]" (recommended, pure Python) or '
    'pip install "infobatch_mm[openmmlab]" (official; mmcv with compiled '
    'ops); for classification "infobatch_mm[cls]" or '
    '"infobatch_mm[cls-openmmlab]"'
)
# The distributions of the official family; OneDL's begin with onedl-.
FAMILY = ('mmengine', 'mmcv', 'mmsegmentation', 'mmdet', 'mmpretrain')
# What the heads come from; one of them is enough.
TASKS = ('mmseg', 'mmpretrain')


def is_importable(package: str) -> bool:
    """Tell whether a package is there, without importing it."""
    return util.find_spec(package) is not None


def require_family() -> None:
    """Raise an ImportError that names the extras if a package is missing."""
    for name in ('mmengine', 'mmcv'):
        if not is_importable(name):
            raise ImportError(INSTALL_HINT.format(missing=name))
    if not any(map(is_importable, TASKS)):
        missing = f'none of {" and ".join(TASKS)}'
        raise ImportError(INSTALL_HINT.format(missing=missing))


def is_installed(distribution: str) -> bool:
    """Tell whether a distribution is there, by its name on the index."""
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what a run depends on, as far as it is there.

    These are the OpenMMLab packages of either family, and torch.
    """
    known: dict[str, str] = {}
    for found in metadata.distributions():
        known.setdefault(found.name, found.version)  # as Python imports
    names = [*FAMILY, *(f'onedl-{name}' for name in FAMILY), 'torch']
    return {name: known[name] for name in names if name in known}


def alias_config_bases() -> None:
    """Let ``_base_ = 'mmseg::...'`` find configs of the installed family.

    mmengine looks the package up by the name of the official distribution,
    which is not there if only the OneDL fork is. Must run before
    ``Config.fromfile``; the commands of this package do it.
    """
    # Not at the top, where require_family has yet to say what is missing.
    from mmengine.config.utils import MODULE2PACKAGE

    for module, distribution in MODULE2PACKAGE.items():
        fork = f'onedl-{distribution}'
        if not is_installed(distribution) and is_installed(fork):
            MODULE2PACKAGE[module] = fork


class MissingExtraError(ModuleNotFoundError):
    """A package is not installed that an extra of ours would install."""


def require(package: str, extra: str) -> ModuleType:
    """Import a package, or say which extra installs it.

    Args:
        package (str): The module to import, such as ``'scipy.stats'``.
        extra (str): The extra of infobatch_mm that installs it.

    Raises:
        MissingExtraError: If the package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        top = package.partition('.')[0]
        if error.name != top:  # installed, but something that it needs is not
            raise
        raise MissingExtraError(
            f'{top} is not installed, and this needs it: '
            f'pip install "infobatch_mm[{extra}]"',
            name=top,
        ) from error
