"""Cost of pruning in a training step, as ratios to the stock step.

    python benchmarks/step.py [MODEL ...] [--pairs 7] [--device cuda]
        [--json OUT] [--score gradient_norm] [--loss DiceLoss]

Stock and pruned steps of one model alternate in one process, the order of
each pair turned round from the last, so that what else the machine does falls
on both alike. Seconds on a CPU are those that it worked, which others disturb
least, and the memory of a step is kept for the next, so that the kernel does
not hand it out anew; on a GPU they are those until it has finished. A pruned
step is the stock one with all that this package adds to it: weights looked up,
gradients weighted, images scored, scores kept. Intervals are those of the
median, 95 %, by bootstrap.

Since a step on a CPU varies by more than pruning costs, the parts are timed
by themselves too: the losses of all heads, forward and backward, from the
same logits, stock and weighted in turn; and the hook's own work.

What a round that keeps a share of the samples saves of its time, over what it
saves of its samples, is given for both pacings: with fewer steps, of the full
size, and with smaller batches, in as many steps. 1 is all that there is.
"""

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from infobatch_mm.commands.running import read_config
from infobatch_mm.heads import attach, outermost_heads
from infobatch_mm.heads.scoring import total_loss
from infobatch_mm.host.packages import require
from infobatch_mm.ledger import Ledger, copy_to_device
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

    def __init__(
        self,
        name: str,
        batch_size: int,
        device: str,
        score: str = 'image_mean',
        loss: str | None = None,
    ) -> None:
        cfg = read_config(CONFIGS[name])
        init_default_scope('mmseg')
        cfg.model.pretrained = None
        cfg.model.backbone.init_cfg = None
        for head in _heads_of(cfg.model) if loss else ():
            head.loss_decode = dict(type=loss)
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        self.device = torch.device(device)
        self.model = model.to(self.device).train()
        self.optim = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.heads: list[Any] = [
            head for _, head in outermost_heads(self.model)
        ]
        classes = self.model.decode_head.num_classes
        self.batch = random_batch(cfg, batch_size, classes)
        self.ids = torch.arange(batch_size)
        self.ledger = Ledger(gradient_norm=score == 'gradient_norm')
        for head in self.heads:
            weighted: Any = attach(head)
            weighted.infobatch_ledger = self.ledger
        self.board = ScoreBoard(NUM_SAMPLES, device=self.device)
        self.weights = torch.full((NUM_SAMPLES,), 1.5)

    def stock(self) -> None:
        """Make one stock step."""
        self.model.train_step(self.batch, self.optim)

    def pruned(self, size: int | None = None) -> None:
        """Make one pruned step, with the first images of the batch."""
        batch = {name: items[:size] for name, items in self.batch.items()}
        with self.pruning(size):
            self.model.train_step(batch, self.optim)

    @contextmanager
    def pruning(self, size: int | None = None) -> Iterator[None]:
        """Do what the hook does before and after a step."""
        ids = self.ids[:size]
        weights = copy_to_device(self.weights[ids], self.device)
        self.ledger.open(copy_to_device(ids, self.device), weights)
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


def _heads_of(model: Any) -> list[Any]:
    extra = model.get('auxiliary_head') or []
    extra = extra if isinstance(extra, list) else [extra]
    return [model.decode_head, *extra]


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


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call.

    On a GPU they are those until it has finished, else those of the CPU, over
    all threads.
    """
    if device.type != 'cuda':
        begin = time.process_time()
        function()
        return time.process_time() - begin
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    function()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def in_turn(
    functions: Sequence[Callable[[], object]],
    pairs: int,
    device: torch.device,
) -> list[list[float]]:
    """Time functions in turn, after one call of each."""
    times: list[list[float]] = [[] for _ in functions]
    for pair in range(-1, pairs):
        order = list(enumerate(functions))
        for which, function in order if pair % 2 else reversed(order):
            seconds = seconds_of(function, device)
            if pair >= 0:
                times[which].append(seconds)
    return times


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median."""
    stats = require('scipy.stats', 'compare')
    found = stats.bootstrap((values,), median, method='percentile', rng=0)
    low, high = found.confidence_interval
    return float(low), float(high)


def measure(
    name: str,
    batch_size: int,
    pairs: int,
    device: str = 'cpu',
    kept: float = 0.75,
    score: str = 'image_mean',
    loss: str | None = None,
) -> dict[str, Any]:
    """Return the step times of one model and the cost of our parts."""
    steps = Steps(name, batch_size, device, score, loss)
    stock, pruned = in_turn((steps.stock, steps.pruned), pairs, steps.device)
    size = round(kept * batch_size)
    ratios = [b / a for a, b in zip(stock, pruned, strict=True)]
    saved = time_saved(steps, size, pairs, median(ratios))
    inputs = steps.loss_inputs()

    def losses() -> None:
        for head, args in inputs:
            total_loss(head.loss_by_feat(*args)).backward()

    def weighted_losses() -> None:
        with steps.pruning():
            losses()

    def hook() -> None:
        steps.ledger.gradient_norm = False  # it comes from the heads alone
        with steps.pruning():
            for head in steps.heads:
                steps.ledger.record(head, zeros)

    zeros = torch.zeros(batch_size, device=steps.device)
    parts = (losses, weighted_losses)
    plain, weighted = in_turn(parts, 3 * pairs, steps.device)
    step = median(stock)
    heads = [(b - a) / step for a, b in zip(plain, weighted, strict=True)]
    hooks = [seconds_of(hook, steps.device) for _ in range(200)]
    return dict(
        model=name,
        score=score,
        loss=loss,
        device=device,
        batch_size=batch_size,
        pairs=pairs,
        stock_seconds=step,
        step_ratio=median(ratios),
        step_ratio_interval=interval(ratios),
        heads_share=median(heads),
        heads_share_interval=interval(heads),
        hook_share=median(hooks) / step,
        kept=size / batch_size,
        **saved,
    )


def time_saved(
    steps: Steps, size: int, pairs: int, step_ratio: float
) -> dict[str, float]:
    """Return the share of time saved over that of samples, by pacing.

    Args:
        steps (Steps): The model.
        size (int): Samples of a smaller batch: at least 2, for batch norm,
            and fewer than those of a full one, or nothing is returned.
        pairs (int): How often each is timed.
        step_ratio (float): A pruned step of the full size, to a stock one.
    """
    full = len(steps.ids)
    if not 1 < size < full:
        return {}
    smaller = partial(steps.pruned, size)
    times = in_turn((steps.stock, smaller), pairs, steps.device)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return dict(
        fewer_steps=(1 - step_ratio * size / full) / (1 - size / full),
        smaller_batches=(1 - median(ratios)) / (1 - size / full),
    )


def build_parser() -> argparse.ArgumentParser:
    """Declare what is timed, where and how often."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'models', nargs='*', metavar='MODEL', help=f'of {", ".join(CONFIGS)}'
    )
    parser.add_argument('--pairs', type=int, default=7)
    parser.add_argument('--batch-size', type=int, default=2)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument(
        '--kept', type=float, default=0.75, help='share of a pruned round'
    )
    parser.add_argument(
        '--score',
        choices=('image_mean', 'gradient_norm'),
        default='image_mean',
    )
    parser.add_argument(
        '--loss', help="of all heads (default: that of the model's config)"
    )
    parser.add_argument('--json', type=Path, help='append the figures here')
    return parser


def shown(value: Any) -> str:
    """Return a figure, or an interval, as it is printed."""
    if isinstance(value, tuple):
        return ' to '.join(map(shown, value))
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def main() -> None:
    """Print the figures of each model."""
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for name in args.models or CONFIGS:
        settings = args.batch_size, args.pairs, args.device, args.kept
        result = measure(name, *settings, args.score, args.loss)
        if args.json:
            with args.json.open('a') as file:
                file.write(json.dumps(result) + '\n')
        lines = (f'{key:22} {shown(v)}' for key, v in result.items())
        print(*lines, '', sep='\n')


if __name__ == '__main__':
    main()
