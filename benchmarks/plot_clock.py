"""Draw learning rate and mIoU of two runs over the full-data clock.

python benchmarks/plot_clock.py STOCK_WORK_DIR PRUNED_WORK_DIR OUT.png

Both runs are iteration-based. A pruned run logs real iterations; its
`infobatch.jsonl` tells at which of them each round began, and a full round is
as many ticks of the clock as it has iterations.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')
from matplotlib import pyplot as plt

from infobatch_mm.records import read_rounds, read_summary
from infobatch_mm.report.runs import scalars


def read_scalars(work_dir: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the iterations and values at which a scalar was logged."""
    lines = [line for line in scalars(work_dir) if key in line]
    steps = [line['step'] for line in lines]
    return np.array(steps), np.array([line[key] for line in lines])


def ticks_of(iters: np.ndarray, work_dir: Path) -> np.ndarray:
    """Convert real iterations of a pruned run to ticks of the clock."""
    summary = read_summary(work_dir)
    if summary is None:
        raise FileNotFoundError(
            f'{work_dir} has no infobatch_summary.json; name the work '
            'directory of a pruned run that has ended'
        )
    begins = [line['iter'] for line in read_rounds(work_dir)]
    ticks = np.arange(len(begins) + 1) * begins[1]
    ends = [*begins, summary['iters_run']]
    ticks[-1] = min(ticks[-1], summary['iters_budget'])
    return np.interp(iters, ends, ticks)


def main() -> None:
    """Draw the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('stock', type=Path)
    parser.add_argument('pruned', type=Path)
    parser.add_argument('out', type=Path)
    args = parser.parse_args()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    titles = {'lr': 'learning rate', 'mIoU': 'mIoU (%), validation'}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        axis.plot(*read_scalars(args.stock, key), lw=4, label='stock')
        iters, values = read_scalars(args.pruned, key)
        ticks = ticks_of(iters, args.pruned)
        axis.plot(ticks, values, '--', marker='.', label='InfoBatch')
        axis.set(xlabel='full-data clock (iterations)', title=title)
        axis.legend()
    figure.tight_layout()
    figure.savefig(args.out, dpi=100)


if __name__ == '__main__':
    main()
