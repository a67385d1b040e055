"""Train the cells of our suites, and write what came out.

python -m benchmarks SUITE [--arms ARM ...] [--seeds SEED ...] [--jobs 2]
python -m benchmarks report

A cell that is finished is not run again, one that was cut off is resumed
from its last checkpoint. Finished cells are lines of
`benchmarks/cells/DATA.jsonl`; what their runs write lies under
`work_dirs/benchmark`. `report` writes the tables and pictures of RESULTS.md
and the tables of other pages.
"""

import argparse
import sys
from collections.abc import Sequence

from infobatch_mm.compare.cells import order
from infobatch_mm.compare.running import missing, result_text, run_all

from . import report
from .suites import ARMS, CORE, SUITES, study


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks', description=__doc__.partition('\n')[0]
    )
    parser.add_argument(
        'suite',
        choices=[*SUITES, 'report'],
        metavar='SUITE',
        help=f'what to train, of {", ".join(SUITES)}; or report',
    )
    parser.add_argument(
        '--arms',
        nargs='+',
        choices=list(ARMS),
        default=list(CORE),
        metavar='ARM',
        help=f'of {", ".join(ARMS)} (default: {" ".join(CORE)})',
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0], metavar='SEED'
    )
    parser.add_argument(
        '--jobs', type=int, default=2, help='cells at a time (default: 2)'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; return 1 if a cell failed."""
    args = parse_args(argv)
    if args.suite == 'report':
        report.main()
        return 0
    ours = study(args.suite)
    cells = order(
        ours,
        [ours.cell(arm, seed) for seed in args.seeds for arm in args.arms],
    )
    todo = missing(ours, cells)
    print(f'{len(cells) - len(todo)} of {len(cells)} cells are finished')
    failed = 0
    for cell, result in run_all(ours, todo, args.jobs):
        if isinstance(result, BaseException):
            failed += 1
            print(f'{cell.name}: {result}', file=sys.stderr)
        else:
            print(result_text(cell, result), flush=True)
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
