"""Cost of pruning in a training step, as ratios to the stock step.

    python benchmarks/step.py [MODEL ...] [--pairs 7] [--json OUT]

Stock and pruned steps of one model alternate in one process, the order of
each pair turned round from the last, so that what else the machine does falls
on both alike. Seconds are those of the CPU, which it disturbs least, and the
memory of a step is kept for the next, so that the kernel does not hand it out
anew. A pruned step is the stock one with all that this package adds to it:
weights looked up, gradients weighted, images scored, scores kept. Intervals
are those of the median, 95 %, by bootstrap.

Since a step on a CPU varies by more than pruning costs, the parts are timed
by themselves too: the losses of all heads, forward and backward, from the
same logits, stock and weighted in turn; and the hook's own work.
"""

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from rich.console import Console
from rich.table import Table
from torch import Tensor

from infobatch_mm.heads import attach, outermost_heads
from infobatch_mm.heads.scoring import total_loss
from infobatch_mm.host.packages import alias_config_bases, require
from infobatch_mm.ledger import Ledger
from infobatch_mm.ranks import merge_scores
from infobatch_mm.scores import ScoreBoard

CONFIGS = {
    'upernet_r50': 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    'segformer_b0': 'mmseg::segformer/'
    'segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'bisenetv2': 'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-'
    '1024x1024.py',
}
NUM_SAMPLES = 20_210


def random_batch(cfg: Config, batch_size: int, num_classes: int) -> dict:
    """Return a batch as a dataloader gives it, of the config's size."""
    height, width = cfg.model.data_preprocessor.size
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch_size):
        labels = torch.randint(
            num_classes, (1, height, width), generator=generator
        )
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        sample.set_metainfo(dict(img_shape=(height, width)))
        samples.append(sample)
    images = torch.randint(
        256, (batch_size, 3, height, width), generator=generator
    )
    return dict(inputs=list(images.byte()), data_samples=samples)


class Steps:
    """A model that can be trained by a stock or by a pruned step."""

    def __init__(self, name: str, batch_size: int) -> None:
        alias_config_bases()
        cfg = get_config(CONFIGS[name])
        init_default_scope('mmseg')
        cfg.model.pretrained = None
        cfg.model.backbone.init_cfg = None
        self.model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
        self.optim = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.heads: list[Any] = [
            head for _, head in outermost_heads(self.model)
        ]
        classes = self.model.decode_head.num_classes
        self.batch = random_batch(cfg, batch_size, classes)
        self.ids = list(range(batch_size))
        self.ledger = Ledger()
        for head in self.heads:
            weighted: Any = attach(head)
            weighted.infobatch_ledger = self.ledger
        self.board = ScoreBoard(NUM_SAMPLES)
        self.weights = torch.full((NUM_SAMPLES,), 1.5)

    def stock(self) -> None:
        """Make one stock step."""
        self.model.train_step(self.batch, self.optim)

    def pruned(self) -> None:
        """Make one pruned step."""
        with self.pruning():
            self.model.train_step(self.batch, self.optim)

    @contextmanager
    def pruning(self) -> Iterator[None]:
        """Do what the hook does before and after a step."""
        self.ledger.open(torch.tensor(self.ids), self.weights[self.ids])
        yield
        self.board.update(*self.ledger.close())
        merge_scores(self.board)  # of one batch; a run does it once a round

    def loss_inputs(self) -> list[tuple[Any, tuple]]:
        """Return what enters the loss of each head, cut off before it."""
        seen: list[tuple[Any, tuple]] = []

        def keep(head: Any) -> Callable:
            stock_loss = head.loss_by_feat

            def loss_by_feat(*args: Any) -> dict:
                seen.append((head, _cut_off(args)))
                return stock_loss(*args)

            return loss_by_feat

        for head in self.heads:
            head.loss_by_feat = keep(head)
        with torch.no_grad():
            data = self.model.data_preprocessor(self.batch, True)
            self.model(**data, mode='loss')
        for head in self.heads:
            del head.loss_by_feat
        return seen


def _cut_off(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.is_floating_point())
    if isinstance(value, (tuple, list)):
        return type(value)(_cut_off(item) for item in value)
    return value


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, whatever its size."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
    libc.mallopt(-4, 0)  # M_MMAP_MAX: none


def seconds_of(function: Callable[[], object]) -> float:
    """Return the CPU seconds of one call, over all threads."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def in_turn(
    first: Callable[[], object], second: Callable[[], object], pairs: int
) -> tuple[list[float], list[float]]:
    """Time two functions in turn, after one call of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(-1, pairs):
        order = [(0, first), (1, second)]
        for which, function in order if pair % 2 else reversed(order):
            seconds = seconds_of(function)
            if pair >= 0:
                times[which].append(seconds)
    return times


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median."""
    stats = require('scipy.stats', 'compare')
    found = stats.bootstrap((values,), median, method='percentile', rng=0)
    low, high = found.confidence_interval
    return float(low), float(high)


def measure(name: str, batch_size: int, pairs: int) -> dict[str, Any]:
    """Return the step times of one model and the cost of our parts."""
    steps = Steps(name, batch_size)
    stock, pruned = in_turn(steps.stock, steps.pruned, pairs)
    inputs = steps.loss_inputs()

    def losses() -> None:
        for head, args in inputs:
            total_loss(head.loss_by_feat(*args)).backward()

    def weighted_losses() -> None:
        with steps.pruning():
            losses()

    def hook() -> None:
        with steps.pruning():
            for head in steps.heads:
                steps.ledger.record(head, zeros)

    zeros = torch.zeros(batch_size)
    plain, weighted = in_turn(losses, weighted_losses, 3 * pairs)
    step = median(stock)
    ratios = [b / a for a, b in zip(stock, pruned, strict=True)]
    heads = [(b - a) / step for a, b in zip(plain, weighted, strict=True)]
    return dict(
        model=name,
        batch_size=batch_size,
        pairs=pairs,
        stock_seconds=step,
        step_ratio=median(ratios),
        step_ratio_interval=interval(ratios),
        heads_share=median(heads),
        heads_share_interval=interval(heads),
        hook_share=median(seconds_of(hook) for _ in range(200)) / step,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'models', nargs='*', metavar='MODEL', help=f'of {", ".join(CONFIGS)}'
    )
    parser.add_argument('--pairs', type=int, default=7)
    parser.add_argument('--batch-size', type=int, default=2)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--json', type=Path, help='append the figures here')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    table = Table(
        'model',
        'stock step (s)',
        'pruned / stock',
        'interval',
        'of it: heads',
        'interval',
        'hook',
    )
    for name in args.models or CONFIGS:
        result = measure(name, args.batch_size, args.pairs)
        if args.json:
            with args.json.open('a') as file:
                file.write(json.dumps(result) + '\n')
        low, high = result['step_ratio_interval']
        low_heads, high_heads = result['heads_share_interval']
        table.add_row(
            name,
            f'{result["stock_seconds"]:.2f}',
            f'{result["step_ratio"]:.3f}',
            f'{low:.3f} to {high:.3f}',
            f'{result["heads_share"]:+.2%}',
            f'{low_heads:+.2%} to {high_heads:+.2%}',
            f'{result["hook_share"]:+.3%}',
        )
    Console().print(table)


if __name__ == '__main__':
    main()
