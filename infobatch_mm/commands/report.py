"""The command line of the page about runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..host.packages import require
from .ending import check_out, in_one_line, is_of_files, is_ours

DESCRIPTION = """
Make a page about runs, from what they left in their work directories. A run
may be under way, and may be a stock run.

Several runs are grouped into arms: runs whose configs differ in nothing but
the seed. Write NAME=DIR to say yourself which arm a run belongs to, as you
must for controls at equal cost, whose configs differ from seed to seed:

  infobatch report work_dirs/pruned work_dirs/stock
  infobatch report pruned=a0 pruned=a1 short=b0 short=b1 full=c0 full=c1

All arms are compared with the one that trained on the most samples without
pruning, seed by seed. One seed gives no verdict. The intervals of several
need scipy, which the extra `compare` installs.

The folder of `infobatch compare`, which has a compare.json, is named alone.
"""


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Declare `[ARM=]DIR ... [--out FILE]`."""
    parser = argparse.ArgumentParser(
        prog,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='[ARM=]DIR',
        help='the work directory of a run, or that of a comparison',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='the page (default: report.html in the first DIR)',
    )
    return parser


def named(argument: str) -> tuple[str | None, Path]:
    """Split the arm from a folder; a folder may have a `=` in its name."""
    arm, is_named, folder = argument.partition('=')
    if not is_named or Path(argument).exists():
        return None, Path(argument)
    return arm, Path(folder)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Write the page; an error ends with one line, exit status 2."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    with in_one_line(parser):
        check_out(args.out)
        require('jinja2', 'report')
        require('matplotlib', 'report')
    from ..report import page

    runs = [named(argument) for argument in args.runs]
    out = args.out or runs[0][1] / page.PAGE_FILE
    with in_one_line(parser, only=is_ours):
        text = page.render(*((arm, folder.resolve()) for arm, folder in runs))
    with in_one_line(parser, only=is_of_files):
        out.write_text(text, encoding='utf-8')
    print(f'Report: {out}')
