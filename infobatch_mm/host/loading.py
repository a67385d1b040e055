"""Loading checkpoints to resume from, in either family."""

import logging
import os
import pickle
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import checkpoint


def allow_resuming() -> None:
    """Let mmengine load its own checkpoints with torch 2.6 and later.

    Since then ``torch.load`` takes only tensors and plain types by default,
    while the message hub of a checkpoint holds other classes. OneDL's
    mmengine falls back to a full load; the official one cannot resume at
    all, so its loader of local files is replaced by one that does.
    """
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
