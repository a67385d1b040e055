"""The command line of the table of a run's training samples."""

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

from ..report import samples
from .ending import check_out, in_one_line, is_of_files, is_ours
from .running import positive

EPILOG = """\
columns:
  rank         1 is the first in the order asked for
  index        the index in the training data set as a whole
  path         img_path of the data set; empty where it has none, or where the
               data are not to be found: run the command in the folder where
               the run was started, if its data_root is a relative path
  score        the last loss, or the norm of its gradient where the run scored
               by that, or its average; empty if the sample has none yet, and
               then it comes last in either order
  times_kept   in how many rounds the sample was kept, that in progress
               included
  last_weight  its weight in the last round, 0 if it was left out of it. A
               checkpoint at the end of an epoch holds no plan: then it is 1 if
               the round kept all samples, and else empty

Label errors are often among the hardest, near duplicates among the easiest
and those of few times_kept.
"""

WRITERS = dict(csv=samples.write_csv, jsonl=samples.write_jsonl)
# Names of files may hold bytes that are no text.
FORM = dict(encoding='utf-8', errors='surrogateescape', newline='')


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Declare `WORK_DIR [--order] [--top] [--format] [--out]`."""
    parser = argparse.ArgumentParser(
        prog,
        description='List the training samples of a pruned run by their '
        'scores, from its last checkpoint. The run may be under way.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'work_dir', type=Path, help='the work directory of the run'
    )
    parser.add_argument(
        '--order',
        choices=['hardest', 'easiest'],
        default='hardest',
        help='what comes first (default: hardest)',
    )
    parser.add_argument(
        '--top',
        type=positive,
        metavar='N',
        help='list the first N alone (default: all)',
    )
    parser.add_argument(
        '--format',
        choices=['csv', 'jsonl'],
        default='csv',
        help='CSV, or a JSON object a line (default: csv)',
    )
    parser.add_argument(
        '--out', type=Path, help='the file to write (default: the output)'
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Write the table; what the reader has to know of it goes to stderr."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    table = sys.stdout
    # mmseg, or a data set, may print while it is built: not into the table.
    with redirect_stdout(sys.stderr):
        with in_one_line(parser, only=is_ours):
            check_out(args.out)
            found = samples.read(args.work_dir)
        for note in found.notes:
            print(f'{parser.prog}: {note}', file=sys.stderr)
        hardest_first = args.order == 'hardest'
        order = samples.order(found.state, hardest_first=hardest_first)
        rows = samples.rows(found, order[: args.top])
        if args.out is None:
            _print_table(rows, args.format, table)
            return
        with (
            in_one_line(parser, only=is_of_files),
            args.out.open('w', **FORM) as file,
        ):
            WRITERS[args.format](rows, file)


def _print_table(rows: Iterator[samples.Row], kind: str, out: TextIO) -> None:
    try:
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors=FORM['errors'])
        WRITERS[kind](rows, out)
        out.flush()
    except BrokenPipeError:  # its reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
