"""Packages that only some commands need, which an extra of ours installs."""

import importlib
from types import ModuleType


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
