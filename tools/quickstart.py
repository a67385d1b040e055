"""Train the quickstart's config with and without pruning, and compare.

tools/quickstart.py [--work-dir FOLDER] [--cfg-options KEY=VALUE ...]

Both runs start from the same weights (seed 0) and train one after the
other, each in a process of its own. The two are then printed side by side,
and `quickstart.png` is drawn in the work dir.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from infobatch_mm.commands.ending import in_one_line
from infobatch_mm.host.packages import require
from infobatch_mm.records import read_rounds, read_summary
from infobatch_mm.report import progress, runs

ROOT = Path(__file__).resolve().parents[1]
STOCK = ROOT / 'configs/quickstart/upernet_tiny_1xb16-20e_digits-48x48.py'
PRUNED = STOCK.with_name(f'infobatch_{STOCK.name}')


class Curve(NamedTuple):
    """What a run reached, and at what cost."""

    samples: list[int]  # trained on before each validation
    miou: list[float]  # at each validation, in percent
    train_seconds: float  # all iterations with loading, no validation
    wall_seconds: float  # the whole process, from start to exit


def train(config: Path, work_dir: Path, cfg_options: list[str]) -> float:
    """Train a config and return its wall-clock, or exit as it failed."""
    command = [sys.executable, '-u', '-m', 'infobatch_mm', 'train']
    command += [str(config), '--work-dir', str(work_dir)]
    command += ['--cfg-options', *cfg_options] if cfg_options else []
    print(f'Training {config.stem}', flush=True)
    begin = time.perf_counter()
    status, tail = follow(command)
    if status:
        print(*tail, sep='', file=sys.stderr)
        sys.exit(f'{config.name} failed with status {status}; see above')
    return time.perf_counter() - begin


def follow(command: list[str]) -> tuple[int, deque[str]]:
    """Run a command, print its log of epochs; return status and last lines."""
    tail: deque[str] = deque(maxlen=50)
    # The network is tiny: one thread for it and one for the loader's worker
    # use two cores best, and busy machines stall several threads for long.
    env = {'OMP_NUM_THREADS': '1', **os.environ}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with subprocess.Popen(command, text=True, env=env, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line)
            if 'Epoch(' in line:
                print(line[line.index('Epoch(') :], end='', flush=True)
    return process.returncode, tail


def read_curve(work_dir: Path, wall_seconds: float) -> Curve:
    """Read the results of a finished run."""
    lines = runs.scalars(work_dir)
    last = [line for line in lines if runs.is_train(line)][-1]
    return Curve(
        samples=progress.images_seen(work_dir),
        miou=[line['mIoU'] for line in runs.validations(work_dir)],
        train_seconds=last['mean_time'] * last['iter'],
        wall_seconds=wall_seconds,
    )


def print_table(stock: Curve, pruned: Curve, summary: dict[str, Any]) -> None:
    """Print the runs side by side."""
    table = Table(title='Quickstart: scenes of handwritten digits')
    for column in ('', 'stock', 'InfoBatch', 'saved'):
        table.add_column(column, justify='right')
    last = (f'{curve.miou[-1]:.2f}' for curve in (stock, pruned))
    table.add_row('mIoU', *last)
    budget, seen = summary['samples_budget'], summary['samples_seen']
    costs = {
        'samples seen': ('{:,.0f}', budget, seen),
        'training': ('{:.1f} s', stock.train_seconds, pruned.train_seconds),
        'whole run': ('{:.1f} s', stock.wall_seconds, pruned.wall_seconds),
    }
    for name, (style, full, part) in costs.items():
        saved = f'{1 - part / full:.1%}'
        table.add_row(name, style.format(full), style.format(part), saved)
    Console().print(table)


def draw(path: Path, curves: dict[str, Curve], rounds: list[dict]) -> None:
    """Draw mIoU against samples seen, and the kept share by round."""
    from matplotlib.figure import Figure

    from infobatch_mm.report.figures import draw_kept

    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        left.plot(curve.samples, curve.miou, marker='o', label=name)
    left.set(xlabel='samples seen', ylabel='mIoU (%)', title='Accuracy')
    left.legend()
    draw_kept(right, rounds, color='C1')
    right.set(xlabel='round', ylabel='kept (%)', title='Kept by InfoBatch')
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def compare(work_dir: Path, dirs: list[Path], walls: list[float]) -> None:
    """Print and draw what two finished runs left behind."""
    pairs = zip(dirs, walls, strict=True)
    stock, pruned = (read_curve(*pair) for pair in pairs)
    summary = read_summary(dirs[1])
    assert summary is not None  # the run has ended
    curves = {'stock': stock, 'InfoBatch': pruned}
    draw(work_dir / 'quickstart.png', curves, read_rounds(dirs[1]))
    print_table(stock, pruned, summary)
    print(f'Picture: {work_dir / "quickstart.png"}')
    print('One seed proves nothing about accuracy.')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--work-dir', type=Path, default='work_dirs/quickstart'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='settings of both runs'
    )
    args = parser.parse_args()
    with in_one_line(parser):
        require('matplotlib', 'quickstart')
        require('sklearn', 'quickstart')
    dirs = [args.work_dir / name for name in ('stock', 'infobatch')]
    walls = [
        train(config, work_dir, args.cfg_options)
        for config, work_dir in zip((STOCK, PRUNED), dirs, strict=True)
    ]
    compare(args.work_dir, dirs, walls)


if __name__ == '__main__':
    main()
