"""Data sets, unpacked and checked: a folder is either absent or complete."""

import errno
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

# What unpacking a damaged archive may raise.
BROKEN = (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error)
# Of an OSError: there is no room for the folder, or no permission.
NOT_BROKEN = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, never outside the folder."""
    if not hasattr(tarfile, 'data_filter'):
        raise ValueError(
            f'{archive}: this version of Python cannot unpack archives '
            'safely; take 3.10.12, 3.11.4 or a later one'
        )
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter='data')
            assert tar.fileobj is not None
            while tar.fileobj.read(1 << 20):  # to the checksum at its end
                pass
    except BROKEN as error:
        if getattr(error, 'errno', None) in NOT_BROKEN:
            raise
        raise ValueError(
            f'{archive} cannot be unpacked ({error}); fetch a '
            'complete, trusted copy of it'
        ) from error


def prepare_once(
    archive: Path,
    out: Path,
    *,
    unpack: Callable[[Path, Path], Path],
    check: Callable[[Path], str],
) -> str:
    """Unpack a data set, or check the folder if it is there already.

    Args:
        archive (Path): The archive; needed only if there is no folder yet.
        out (Path): The folder.
        unpack (Callable): Unpacks the archive, its first argument, into the
            empty folder that is its second; gives back the root of the data
            set in it.
        check (Callable): Checks the data set in a root; gives back a summary
            of one line.

    Returns:
        str: What was done, and the summary.
    """
    if out.is_symlink():
        out = out.resolve()
    if out.exists() and not out.is_dir():
        raise ValueError(f'{out} is a file; set --out to a folder')
    if out.is_dir() and any(out.iterdir()):
        try:
            return f'checked, already there: {check(out)}'
        except ValueError as error:
            raise ValueError(
                f'{error}. {out} was there already: remove it to unpack '
                f'{archive} anew'
            ) from error
    if not archive.is_file():
        raise ValueError(
            f'{archive} is not a file; give the path of the archive'
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside `out`, and moved there only when all is right.
    with tempfile.TemporaryDirectory(
        dir=out.parent, prefix=f'.{out.name}.'
    ) as temporary:
        # Within it, since only its owner may look into a temporary folder.
        folder = Path(temporary, 'unpacked')
        folder.mkdir()
        root = unpack(archive, folder)
        try:
            summary = check(root)
        except ValueError as error:
            message = str(error).replace(str(root), str(archive))
            raise ValueError(message) from error
        root.rename(out)
    return f'unpacked: {summary.replace(str(root), str(out))}'
