"""Cost of planning a round, as ratios to one permutation in the same run.

    python benchmarks/plan.py [--samples 1280000] [--repeats 15]

Best of several, so that what else the machine does matters little. The slow
twin is the paper's procedure in NumPy with Python lists.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from infobatch_mm.pruning import (
    InfoBatchPolicy,
    NoPruningPolicy,
    QuantilePolicy,
    RandomPolicy,
)


def best_of(function: Callable[[], object], repeats: int) -> float:
    """Return the shortest of several run times, in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


def with_lists(scores: np.ndarray) -> tuple[list[int], list[float]]:
    """Plan as the paper describes it, with NumPy and Python lists."""
    weights = np.ones(len(scores))
    low = scores < scores.mean()
    low_ids = np.where(low)[0]
    kept = np.random.choice(low_ids, len(low_ids) // 2, replace=False)
    weights[kept] = 2.0
    indices = [*np.where(~low)[0].tolist(), *kept.tolist()]
    np.random.shuffle(indices)
    return indices, [weights[i] for i in indices]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--samples', type=int, default=1_280_000)
    parser.add_argument('--repeats', type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    # Losses are skewed: more than half of them lie below their mean.
    scores = torch.rand(args.samples, generator=generator).square()
    numpy_scores = scores.numpy()
    work: dict[str, Callable[[], object]] = {
        f'torch.randperm({args.samples:,})': lambda: torch.randperm(
            args.samples, generator=generator
        )
    }
    for policy in (
        NoPruningPolicy(),
        RandomPolicy(0.5),
        InfoBatchPolicy(),
        QuantilePolicy(),
    ):
        work[repr(policy)] = lambda policy=policy: policy.plan(
            scores, generator=generator, multiple_of=256
        )
    seconds = {name: best_of(f, args.repeats) for name, f in work.items()}
    seconds['NumPy and Python lists'] = best_of(
        lambda: with_lists(numpy_scores), 3
    )
    unit = next(iter(seconds.values()))
    table = Table('what', 'ms', 'in permutations')
    for name, value in seconds.items():
        table.add_row(name, f'{value * 1e3:.1f}', f'{value / unit:.2f}')
    Console().print(table)


if __name__ == '__main__':
    main()
