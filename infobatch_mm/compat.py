"""What the two families of OpenMMLab packages differ in.

open-mmlab (mmengine, mmcv, mmsegmentation, mmpretrain) and the OneDL forks
(onedl-mmengine, ...) share their import names. Everything here asks what the
installed packages can do, never which version they are.
"""

import logging
import os
import pickle
from importlib import metadata, util
from typing import Any

INSTALL_HINT = (
    'infobatch_mm needs one family of OpenMMLab packages, and {missing} '
    'cannot be imported. Install one of them: '
    'pip install "infobatch_mm[onedl]" (recommended, pure Python) or '
    'pip install "infobatch_mm[openmmlab]" (official; mmcv with compiled '
    'ops); for classification "infobatch_mm[cls]" or '
    '"infobatch_mm[cls-openmmlab]"'
)
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


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def alias_config_bases() -> None:
    """Let ``_base_ = 'mmseg::...'`` find configs of the installed family.

    mmengine looks the package up by the name of the official distribution,
    which is not there if only the OneDL fork is. Must run before
    ``Config.fromfile``; importing infobatch_mm does.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    for module, distribution in MODULE2PACKAGE.items():
        fork = f'onedl-{distribution}'
        if not _is_installed(distribution) and _is_installed(fork):
            MODULE2PACKAGE[module] = fork


def allow_resuming() -> None:
    """Let mmengine load its own checkpoints with torch 2.6 and later.

    Since then ``torch.load`` takes only tensors and plain types by default,
    while the message hub of a checkpoint holds other classes. OneDL's
    mmengine falls back to a full load; the official one cannot resume at
    all, so its loader of local files is replaced by one that does.
    """
    from mmengine.runner import checkpoint

    if not hasattr(checkpoint, '_safe_torch_load'):
        checkpoint.CheckpointLoader.register_scheme(
            prefixes='', loader=load_from_local, force=True
        )


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a checkpoint file, if need be with the classes it names.

    Args:
        filename (str): A file of the local disk.
        map_location (optional): As in ``torch.load``.
    """
    import torch
    from mmengine.logging import print_log

    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'{filename} is not a file')
    try:
        return torch.load(filename, map_location, weights_only=True)
    except pickle.UnpicklingError:
        print_log(
            f'{filename} holds more than tensors, as checkpoints to resume '
            'from do; it is loaded in full. Only load files that you trust',
            logger='current',
            level=logging.WARNING,
        )
        return torch.load(filename, map_location, weights_only=False)
