"""How a command ends where it cannot go on: one line, and exit status 2.

An error that this package raises says what is wrong in the config, the data or
the model, and what to do, so a traceback adds nothing to it. Any other error
keeps its traceback.
"""

import argparse
import linecache
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..host.packages import MissingExtraError

PACKAGE = Path(__file__).resolve().parents[1]
# What this package raises for its users. An AttributeError of the hook, which
# has those of the run, is the mistake of whoever asks for it, in their code.
KINDS = (ImportError, OSError, RuntimeError, TypeError, ValueError)
# A line of a traceback, as Python writes it.
FRAME = re.compile(r'^  File "(.+)", line (\d+), in ', re.MULTILINE)


def is_ours(error: BaseException) -> bool:
    """Tell whether a ``raise`` in this package made an error.

    What fails in the midst of our code, such as torch when the memory of a
    GPU is used up, is not ours.
    """
    if not isinstance(error, KINDS):
        return False
    file, number = raised_at(original(error))
    is_raised = linecache.getline(file, number).lstrip().startswith('raise ')
    return is_raised and Path(file).resolve().is_relative_to(PACKAGE)


def is_explained(error: BaseException) -> bool:
    """Tell whether the message of an error is enough where settings are read.

    The config may be at fault, a file or an extra that is not there.
    """
    settings = (ValueError, FileNotFoundError, MissingExtraError)
    return isinstance(error, settings) or is_ours(error)


def is_of_files(error: BaseException) -> bool:
    """Tell whether an error is explained, or one of the file system.

    Such as a full disk, or a folder that must not be written to.
    """
    return isinstance(error, OSError) or is_explained(error)


@contextmanager
def in_one_line(
    parser: argparse.ArgumentParser,
    *,
    only: Callable[[BaseException], bool] = is_explained,
) -> Iterator[None]:
    """End the process with the message of an error, without a traceback.

    Args:
        parser (argparse.ArgumentParser): Its ``prog`` begins the line.
        only (Callable): Tells which of them end so; others are raised.
    """
    try:
        yield
    except Exception as error:
        if not only(error):
            raise
        # Other packages' messages, which ours quote, may have several lines.
        message = ' '.join(message_of(original(error)).splitlines())
        parser.exit(2, f'{parser.prog}: error: {message}\n')


def check_exists(setting: str, path: str) -> None:
    """Raise a ValueError for a file that is asked for and not there.

    Those that a file client gets, as in ``s3://``, are left to it.
    """
    if '://' in path or Path(path).is_file():
        return
    if Path(path).is_dir():
        raise ValueError(f'{setting} {path} is a folder; name a file in it')
    raise ValueError(f'{setting} {path}: there is no such file')


def check_out(out: Path | None) -> None:
    """Raise an error, before the work, unless a file can be written there."""
    if out is None:
        return
    if out.is_dir():
        raise ValueError(f'--out {out} is a folder; name a file in it')
    if not out.parent.is_dir():
        raise ValueError(f'--out {out}: there is no folder {out.parent}')
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f'--out {out}: no permission to write there')


def original(error: BaseException) -> BaseException:
    """Return the error that a hook raised, before mmengine raised it again.

    Of a TypeError ``Runner.call_hook`` makes a new one, with the hook's name
    behind the message.
    """
    first = error.__context__
    if isinstance(first, TypeError) and str(error).startswith(f'{first} in '):
        return first
    return error


def raised_at(error: BaseException) -> tuple[str, int]:
    """Return the file and the line that an error was raised in.

    PyTorch raises the error of a worker once more in the training process;
    the traceback of the first is in its message.
    """
    if frames := FRAME.findall(_text_of_worker(error)):
        file, number = frames[-1]
        return file, int(number)
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_filename, line


def message_of(error: BaseException) -> str:
    """Return the message of an error, for a worker's that of the first."""
    text = _text_of_worker(error)
    return text.rpartition(f'\n{type(error).__name__}: ')[2] or str(error)


def _text_of_worker(error: BaseException) -> str:
    """Return the traceback that a worker's error brings along, if any."""
    heading = '.\nOriginal Traceback '
    text = str(error)
    return text if text.startswith('Caught ') and heading in text else ''
