"""How a command ends where it cannot go on: one line, and exit status 2."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..host.packages import MissingExtraError


@contextmanager
def in_one_line(
    parser: argparse.ArgumentParser,
    *,
    only: Callable[[Exception], bool] = lambda error: True,
) -> Iterator[None]:
    """End the process with the message of an error, without a traceback.

    The errors are those of a wrong setting, and of a file or an extra that is
    not there.

    Args:
        parser (argparse.ArgumentParser): Its ``prog`` begins the line.
        only (Callable): Tells which of them end so; others are raised.
    """
    try:
        yield
    except (ValueError, FileNotFoundError, MissingExtraError) as error:
        if not only(error):
            raise
        # Other packages' messages, which ours quote, may have several lines.
        message = ' '.join(str(error).splitlines())
        parser.exit(2, f'{parser.prog}: error: {message}\n')


def is_ours(error: Exception) -> bool:
    """Tell whether this package raised an error, and no other below it."""
    place = error.__traceback__
    assert place is not None  # the error has been raised
    while place.tb_next is not None:
        place = place.tb_next
    package = __name__.partition('.')[0]
    return place.tb_frame.f_globals['__name__'].partition('.')[0] == package
