"""Cost of a round, planned and handed out, up to 100 million samples.

    python benchmarks/plan.py [--samples 20000 1280000 10000000 100000000]

Prints a table and writes ``benchmarks/plan/results.json``. Handing out is what
the sampler does for the data loader. Beside it stands the paper's own
procedure, in NumPy with Python lists.

Seconds are CPU seconds of one thread, the best of several turns in which all
take part, so that other work on the machine matters little; it still does,
through caches and memory. Each peak is that of a process of its own: the most
resident memory (``VmHWM``, set back by ``clear_refs``; Linux) less what was
resident before, so without the scores themselves.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from infobatch_mm.pruning import (
    InfoBatchPolicy,
    NoPruningPolicy,
    Plan,
    PruningPolicy,
    QuantilePolicy,
    RandomPolicy,
)
from infobatch_mm.sampler import InfoBatchSampler

OUT = Path(__file__).parent / 'plan'
SAMPLES = [20_000, 1_280_000, 10_000_000, 100_000_000]
POLICIES = dict(
    none=NoPruningPolicy(),
    random=RandomPolicy(0.5),
    InfoBatch=InfoBatchPolicy(),
    quantile=QuantilePolicy(),
)
PERMUTATION, READ = 'torch.randperm(N)', 'scores.sum()'
LISTS = 'NumPy and Python lists'
# 80 bytes a sample and more than a minute, on a machine with other work.
MOST_FOR_LISTS = 10_000_000
LEFT_OUT = (
    f'{LISTS}: not run above {MOST_FOR_LISTS:,} samples, where it takes 80 '
    'bytes a sample and more than a minute on a shared machine'
)


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


def make_work(num_samples: int) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name, for a number of samples."""
    generator = torch.Generator().manual_seed(0)
    # Losses are skewed: more than half of them lie below their mean.
    scores = torch.rand(num_samples, generator=generator).square_()
    sampler = InfoBatchSampler(range(num_samples), seed=0)

    def plan(policy: PruningPolicy) -> Plan:
        return policy.plan(scores, generator=generator, multiple_of=256)

    def plan_and_hand_out(policy: PruningPolicy) -> None:
        sampler.begin_round(plan(policy))
        deque(sampler, maxlen=0)

    work: dict[str, Callable[[], object]] = {
        PERMUTATION: lambda: torch.randperm(num_samples, generator=generator),
        READ: lambda: scores.sum(),
    }
    for name, policy in POLICIES.items():
        work[f'{name}: plan'] = partial(plan, policy)
    for name in ('none', 'InfoBatch'):
        work[f'{name}: plan, hand out'] = partial(
            plan_and_hand_out, POLICIES[name]
        )
    if num_samples <= MOST_FOR_LISTS:
        work[LISTS] = lambda: with_lists(scores.numpy())
    return work


def time_work(num_samples: int, turns: int) -> dict[str, float]:
    """Return the least CPU seconds of each of several turns, by name."""
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    for turn in range(turns):
        for name, function in make_work(num_samples).items():
            if name == LISTS and turn:
                continue
            begin = time.process_time()
            function()
            passed = time.process_time() - begin
            seconds[name] = min(seconds.get(name, passed), passed)
    return seconds


def resident(field: str) -> int:
    """Return a field of the memory status of this process, in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no {field}')


def peak_bytes(num_samples: int, name: str) -> int:
    """Return the bytes that the work takes at its peak."""
    torch.set_num_threads(1)
    make_work(1000)[name]()  # what is loaded at first use
    function = make_work(num_samples)[name]
    Path('/proc/self/clear_refs').write_text('5')
    before = resident('VmRSS')
    function()
    return resident('VmHWM') - before


def in_own_process(function: Callable, *args: object) -> object:
    """Return the result of a function called in a process of its own."""
    with multiprocessing.get_context('fork').Pool(1) as pool:
        return pool.apply(function, args)


def measure(num_samples: int) -> list[dict]:
    """Return a row for each kind of work."""
    turns = min(15, 3 + 20_000_000 // num_samples)
    if num_samples > MOST_FOR_LISTS:
        turns = 2
    seconds = in_own_process(time_work, num_samples, turns)
    assert isinstance(seconds, dict)
    rows = []
    for name, value in seconds.items():
        peak = in_own_process(peak_bytes, num_samples, name)
        assert isinstance(peak, int)
        rows.append(
            dict(
                samples=num_samples,
                work=name,
                seconds=value,
                in_permutations=value / seconds[PERMUTATION],
                in_reads=value / seconds[READ],
                peak_bytes_a_sample=peak / num_samples,
            )
        )
    return rows


def print_table(rows: list[dict]) -> None:
    """Print the rows, and what is missing."""
    table = Table('samples', 'work', 'ms', 'permutations', 'reads', 'B/sample')
    for row in rows:
        table.add_row(
            f'{row["samples"]:,}',
            row['work'],
            f'{row["seconds"] * 1e3:,.2f}',
            f'{row["in_permutations"]:.2f}',
            f'{row["in_reads"]:,.0f}',
            f'{row["peak_bytes_a_sample"]:.1f}',
        )
    console = Console(width=100)
    console.print(table)
    console.print(LEFT_OUT)


def main() -> None:
    """Measure, print the table, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--samples', type=int, nargs='+', default=SAMPLES)
    args = parser.parse_args()
    rows = [row for samples in args.samples for row in measure(samples)]
    print_table(rows)
    OUT.mkdir(exist_ok=True)
    results = dict(
        machine=f'shared: load {os.getloadavg()[2]:.1f} over 15 minutes on '
        f'{os.cpu_count()} cores',
        torch=torch.__version__,
        numpy=np.__version__,
        left_out=LEFT_OUT,
        rows=rows,
    )
    (OUT / 'results.json').write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()
