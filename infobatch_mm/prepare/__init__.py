"""Data sets, unpacked and checked: a folder is either absent or complete."""

import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar archive, never outside the folder."""
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter='data')
    except (tarfile.TarError, EOFError, OSError) as error:
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
    if out.exists() and not out.is_dir():
        raise ValueError(f'{out} is a file; set --out to a folder')
    if out.is_dir() and any(out.iterdir()):
        return f'checked, already there: {check(out)}'
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
