"""The command line: ``python -m zoo check`` and ``python -m zoo report``.

``check`` proves that stock configs of the installed mmseg or mmpretrain
prune. Each is given to infobatch_mm.enable, which must change what it should
and nothing else. It is then made small (random weights, tiny images, all its
heads and losses as they are), trained for three rounds, and measured against
the stock model. A config that fails is run without pruning too: only where
the stock run fails alike is the failure upstream's. Configs that are the same
once they are small run once.

``report`` writes the tables of the kept records, without torch or mmengine.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo.record import EXTRAS, FAMILIES


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m zoo', description='Check that stock configs prune.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    add_check(commands.add_parser('check', help='check configs'))
    report = commands.add_parser(
        'report', help='write what zoo/records/ says into docs/zoo.md'
    )
    report.add_argument(
        '--tables',
        type=Path,
        metavar='FOLDER',
        help='write tables of each file of records there too, by folder of '
        'configs and by head',
    )
    args = parser.parse_args(argv)
    if args.command == 'check' and args.keep and args.json:
        parser.error('--keep has a file of its own: leave --json out')
    return args


def add_check(parser: argparse.ArgumentParser) -> None:
    """Add what the check can be told."""
    parser.add_argument(
        'patterns',
        nargs='*',
        metavar='PATTERN',
        help='part of the path of a config, or a glob (default: all configs)',
    )
    parser.add_argument(
        '--package',
        choices=list(EXTRAS),
        default='mmseg',
        help='whose configs are checked (default: %(default)s)',
    )
    parser.add_argument(
        '--family',
        choices=FAMILIES,
        help='refuse an environment of the other family (default: take '
        'whichever is installed)',
    )
    parser.add_argument(
        '--all',
        action='store_true',
        help='not only one config for each combination of heads and losses',
    )
    parser.add_argument(
        '--json',
        type=Path,
        metavar='OUT',
        help='add a line for each config; what has one is not checked again',
    )
    parser.add_argument(
        '--markdown',
        type=Path,
        metavar='OUT',
        help='write tables of these records',
    )
    parser.add_argument(
        '--keep',
        action='store_true',
        help='write to work_dirs/zoo/ (and go on from there if it was '
        'stopped), and put all into zoo/records/ at the end; with --all and '
        'no PATTERN it replaces what is there',
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='configs at a time (default: 1)'
    )
    parser.add_argument(
        '--timeout',
        type=float,
        default=300,
        help='seconds of CPU time that a run may take (default: 300)',
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    args = parse_args(argv)
    if args.command == 'report':
        from zoo import report

        report.run(args.tables)
        return 0
    from zoo import check  # it imports torch, which a report does without

    return check.run(args)


if __name__ == '__main__':
    sys.exit(main())
