"""Files of checkpoints: written whole, found, loaded, and read safely."""

import logging
import os
import pickle
import types
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log
from mmengine.runner import checkpoint

ATOMIC = 'infobatch_atomic'  # the name of a file backend


@register_backend(ATOMIC)
class AtomicLocalBackend(LocalBackend):
    """Write files of the local disk whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write to a temporary file, and rename it once it is on the disk."""
        temporary = f'{filepath}.tmp'
        super().put(obj, temporary)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, filepath)

    def put_text(
        self, obj: str, filepath: str | Path, encoding: str = 'utf-8'
    ) -> None:
        """Write text as :meth:`put` writes bytes."""
        self.put(obj.encode(encoding), filepath)


def last_checkpoint(work_dir: Path) -> Path:
    """Return the last checkpoint, also if the folder was moved since.

    Raises:
        FileNotFoundError: If there is none.
    """
    name = work_dir / 'last_checkpoint'
    if not name.exists():
        raise FileNotFoundError(
            f'{work_dir} has no last_checkpoint; name the work directory of '
            'a run that has saved a checkpoint'
        )
    named = Path(name.read_text().strip())
    # The folder may be a copy, beside a run that goes on where it was.
    for path in work_dir / named.name, named:
        if path.exists():
            return path
    raise FileNotFoundError(
        f'{work_dir} names {named} as its last checkpoint, which is not there'
    )


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


# Reading one without running what it holds


class _Unread:
    """Takes the place of what a checkpoint holds beside plain values."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def take(self, *args: Any) -> None:
        """Take what a pickle puts into a list, a dict or an object."""

    append = extend = add = __setitem__ = __setstate__ = take


class _PlainUnpickler(pickle.Unpickler):
    """Builds tensors and plain values alone.

    torch's own, of ``weights_only=True``, takes stand-ins for classes that it
    does not know, but not for those that derive from list or dict.
    """

    # torch names storages by itself, and asks for what else there is.
    BUILT = (
        ('torch._utils', '_rebuild_tensor_v2'),
        ('collections', 'OrderedDict'),
    )

    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in self.BUILT
        return super().find_class(module, name) if known else _Unread


def read_plain(path: Path) -> dict[str, Any]:
    """Read the tensors and plain values of a checkpoint.

    The code that it names is not run: there are stand-ins for the rest.

    Raises:
        ValueError: If it is not whole.
    """
    reader = types.SimpleNamespace(
        Unpickler=_PlainUnpickler, load=_load_plain, __name__=__name__
    )
    try:
        return torch.load(
            str(path),
            map_location='cpu',
            pickle_module=reader,
            weights_only=False,
            mmap=True,
        )
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition('\n')[0]
        text = f'{path} is no whole checkpoint ({reason})'
        raise ValueError(text) from error


def _load_plain(file: Any, **options: Any) -> Any:
    return _PlainUnpickler(file, **options).load()
