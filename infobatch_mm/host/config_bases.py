"""Bases of configs by the name of their package, in either family."""

from mmengine.config.utils import MODULE2PACKAGE

from .packages import is_installed


def alias_config_bases() -> None:
    """Let ``_base_ = 'mmseg::...'`` find configs of the installed family.

    mmengine looks the package up by the name of the official distribution,
    which is not there if only the OneDL fork is. Must run before
    ``Config.fromfile``; the commands of this package do it.
    """
    for module, distribution in MODULE2PACKAGE.items():
        fork = f'onedl-{distribution}'
        if not is_installed(distribution) and is_installed(fork):
            MODULE2PACKAGE[module] = fork
