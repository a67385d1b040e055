"""The command line of the page about a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..host.packages import require
from .ending import in_one_line, is_ours


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Declare `WORK_DIR [BASELINE_WORK_DIR] [--out FILE]`."""
    parser = argparse.ArgumentParser(
        prog,
        description='Make a page about a run, from what it left in its work '
        'directory. The run may be under way, and may be a stock run.',
    )
    parser.add_argument(
        'work_dir', type=Path, help='the work directory of the run'
    )
    parser.add_argument(
        'baseline',
        type=Path,
        nargs='?',
        help='the work directory of a run to compare it with',
    )
    parser.add_argument(
        '--out', type=Path, help='the page (default: WORK_DIR/report.html)'
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Write the page; an error ends with one line, exit status 2."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    with in_one_line(parser):
        require('jinja2', 'report')
        require('matplotlib', 'report')
    from ..report.page import render

    folders = (args.work_dir, args.baseline)
    with in_one_line(parser, only=is_ours):
        page = render(*(folder and folder.resolve() for folder in folders))
    out = args.out or args.work_dir / 'report.html'
    out.write_text(page, encoding='utf-8')
    print(f'Report: {out}')
