"""What a check was made with: the installed packages and this checkout."""

import functools
import subprocess
from importlib import metadata
from pathlib import Path

# The extras of infobatch_mm that install a package, by family.
EXTRAS = dict(
    mmseg=dict(onedl='onedl', openmmlab='openmmlab'),
    mmpretrain=dict(onedl='cls', openmmlab='cls-openmmlab'),
)
FAMILIES = ('onedl', 'openmmlab')


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    names = ('mmengine', 'mmcv', 'mmsegmentation', 'mmdet', 'mmpretrain')
    known = {d.name: d.version for d in metadata.distributions()}
    wanted = [*names, *(f'onedl-{name}' for name in names), 'torch']
    return {name: known[name] for name in wanted if name in known}


@functools.cache
def commit() -> str:
    """Return the commit of this checkout; '' if it is none of git's."""
    command = ['git', 'describe', '--always', '--abbrev=12', '--dirty']
    try:
        found = subprocess.run(
            [*command, '--exclude=*'],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:  # git itself is missing
        return ''
    return found.stdout.strip()


def installed_family() -> str:
    """Return the family of the packages of this environment."""
    return 'onedl' if 'onedl-mmengine' in versions() else 'openmmlab'


def check_family(wanted: str | None, package: str) -> None:
    """Raise a ValueError if the packages are not of the family asked for."""
    installed = installed_family()
    if wanted not in (None, installed):
        raise ValueError(
            f'--family {wanted} was asked for, but the packages of this '
            f'environment are of the family {installed}. Run the check in an '
            'environment made with: pip install '
            f'"infobatch_mm[{EXTRAS[package][wanted]}]"'
        )
