"""Our benchmarks; and the blocks of pages that their commands write.

A block stands in a Markdown file between two markers.

Imports nothing but the standard library, so that tables can be written, and
checked, where torch is not installed.
"""

from pathlib import Path


def markers(name: str) -> tuple[str, str]:
    """Return the lines between which the block of a name stands."""
    return f'<!-- begin: {name} -->', f'<!-- end: {name} -->'


def find_block(text: str, name: str) -> tuple[int, int]:
    """Return where the block of a name begins and ends, without its markers.

    Raises:
        ValueError: If one of its markers is missing or stands there twice.
    """
    begin, end = markers(name)
    for marker in (begin, end):
        if text.count(marker) != 1:
            raise ValueError(
                f'the marker {marker!r} stands {text.count(marker)} times in '
                'the text, and must stand in it once'
            )
    start, stop = text.index(begin) + len(begin), text.index(end)
    if stop < start:
        raise ValueError(f'the marker {end!r} stands before {begin!r}')
    return start, stop


def replace_block(text: str, name: str, body: str) -> str:
    """Put a body between the markers of a name, in place of what is there.

    Raises:
        ValueError: If one of its markers is missing or stands there twice.
    """
    start, stop = find_block(text, name)
    return f'{text[:start]}\n{body.strip()}\n{text[stop:]}'


def read_block(text: str, name: str) -> str:
    """Return what stands between the markers of a name.

    Raises:
        ValueError: If one of its markers is missing or stands there twice.
    """
    start, stop = find_block(text, name)
    return text[start:stop].strip()


def write_block(path: str | Path, name: str, body: str) -> None:
    """Put a body between the markers of a name in a file."""
    path = Path(path)
    text = path.read_text(encoding='utf-8')
    path.write_text(replace_block(text, name, body), encoding='utf-8')


def is_current(path: str | Path, name: str, body: str) -> bool:
    """Tell whether a file has this body between the markers of a name.

    For the test that fails when what a command wrote has become stale.
    """
    text = Path(path).read_text(encoding='utf-8')
    return read_block(text, name) == body.strip()
