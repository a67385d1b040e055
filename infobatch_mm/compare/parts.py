"""What the runs of a comparison import: hooks that measure, and arms' parts.

Importing this module registers ``BenchmarkHook``, ``ProbeHook``,
``UnscaledPolicy``, the samplers of a fixed subset and, where mmseg is
installed, ``ClassIoUMetric``.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import mmengine
import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS

from ..host.datasets import unsliced
from ..host.packages import is_importable
from ..pruning.plan import Plan
from ..pruning.registry import PRUNING_POLICIES, build_policy

COSTS_FILE, PROBE_FILE = 'benchmark.json', 'probe.json'
PROBE_ITERS = 10
KEY = 'benchmark'  # of the message hub, which is saved in checkpoints


@HOOKS.register_module()
class BenchmarkHook(Hook):
    """Write what a run has cost and reached to `benchmark.json`.

    Times leave out the start and validation; `cpu_seconds` are those of this
    process, which other work on the machine disturbs less. What was counted
    is saved in checkpoints, so that a resumed run goes on with it.

    Args:
        channels_last (bool): Lay out the model's memory so.
    """

    # Before CheckpointHook (90), which saves the count with the iteration.
    priority = 80

    def __init__(self, channels_last: bool = False) -> None:
        self.channels_last = channels_last
        self._began: tuple[float, float] | None = None

    def before_train(self, runner: Any) -> None:
        """Begin, or go on where a checkpoint stood."""
        if self.channels_last:
            runner.model.to(memory_format=torch.channels_last)
        known = runner.message_hub.runtime_info.get(KEY)
        self.state = known or dict(
            starts=0,
            samples_seen=0,
            train_seconds=0.0,
            cpu_seconds=0.0,
            validations=[],
        )
        self.state['starts'] += 1
        runner.message_hub.update_info(KEY, self.state)
        self._start()

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Count the samples of the batch, on all ranks."""
        samples = len(data_batch['data_samples']) * get_world_size()
        self.state['samples_seen'] += samples

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Bring the times up to date before they are saved."""
        if self._began is not None:  # else in a validation, as for save_best
            self._stop()
            self._start()

    def before_val(self, runner: Any) -> None:
        """Leave validation out."""
        self._stop()

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        """Note what was reached, and at what cost."""
        costs = ('samples_seen', 'train_seconds', 'cpu_seconds')
        self.state['validations'].append(
            dict(iter=runner.iter)
            | {name: self.state[name] for name in costs}
            | _scalars(metrics)
        )

    def after_val(self, runner: Any) -> None:
        """Go on counting."""
        self._start()

    def after_train(self, runner: Any) -> None:
        """Write the file.

        A run that was cut off in its last validation, and resumed from the
        checkpoint before it, has nothing left to train and validates here.
        """
        done = self.state['validations']
        if not done or done[-1]['iter'] != runner.iter:
            runner.val_loop.run()
        state = dict(
            self.state,
            iters=runner.iter,
            dataset_size=len(unsliced(runner.train_dataloader.dataset)),
            world_size=get_world_size(),
        )
        if is_main_process():
            mmengine.dump(state, f'{runner.work_dir}/{COSTS_FILE}')

    def _start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def _stop(self) -> None:
        assert self._began is not None
        wall, cpu = self._began
        self._began = None
        self.state['train_seconds'] += time.perf_counter() - wall
        self.state['cpu_seconds'] += time.process_time() - cpu


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are numbers, not lists with one for a class."""
    return {
        name: float(f'{float(value):.7g}')
        for name, value in metrics.items()
        if np.ndim(value) == 0 and not isinstance(value, str)
    }


class TimesHook(Hook):
    """Time iterations.

    Attributes:
        seconds (list[float]): What each took, its data included.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_train_epoch(self, runner: Any) -> None:
        """Begin to time."""
        self.began = time.perf_counter()

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Note what an iteration took."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.began)
        self.began = now


@HOOKS.register_module()
class ProbeHook(TimesHook):
    """Time a few iterations and one validation, and end the process.

    What they took goes to `probe.json` in the work directory, with the
    metrics of the validation and the length of the run: enough to say what a
    whole run will take, and whether the metric that is to count is there.

    Args:
        iters (int): Iterations, of which the first two are not timed.
    """

    def __init__(self, iters: int = PROBE_ITERS) -> None:
        super().__init__()
        self.iters = iters

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Time the iteration, and end after the last."""
        super().after_train_iter(runner)
        if len(self.seconds) >= min(self.iters, runner.max_iters):
            self._end(runner)

    def after_val(self, runner: Any) -> None:
        """Leave a validation between iterations out."""
        self.began = time.perf_counter()

    def _end(self, runner: Any) -> None:
        began = time.perf_counter()
        metrics = _scalars(runner.val_loop.run())
        state = dict(
            seconds=statistics.median(self.seconds[2:] or self.seconds),
            val_seconds=time.perf_counter() - began,
            iters=runner.max_iters,
            metrics=metrics,
        )
        if is_main_process():
            mmengine.dump(state, f'{runner.work_dir}/{PROBE_FILE}')
        raise SystemExit


@PRUNING_POLICIES.register_module()
class UnscaledPolicy:
    """Another policy without its rescaling: all it keeps has weight 1.

    Args:
        policy (dict): Config of the other policy.
        delta (float): See :class:`infobatch_mm.pruning.PruningPolicy`.
    """

    def __init__(self, policy: dict, *, delta: float) -> None:
        self.policy = build_policy(policy, delta)

    def plan(self, scores: torch.Tensor, **options: Any) -> Plan:
        """Plan as the other policy does, and forget its weights."""
        plan = self.policy.plan(scores, **options)
        weights = torch.ones(len(plan))
        if 'at_least' in options:  # smaller batches, which multiply by K / N
            weights *= len(scores) / len(plan)
        return Plan(plan.indices, weights, plan.threshold)

    def __repr__(self) -> str:
        return f'Unscaled{self.policy!r}'


class _Subset:
    """A fixed random part of the data set, for a sampler.

    Args:
        dataset (Sized): The data set.
        share (float): The share of it to train on.
        subset_seed (int): Seed of the choice.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        share: float,
        subset_seed: int,
        **settings: Any,
    ) -> None:
        kept = round(share * len(dataset))
        super().__init__(  # type: ignore[call-arg] # the sampler beside it
            range(kept), **settings
        )
        order = np.random.default_rng(subset_seed).permutation(len(dataset))
        self.kept = order[:kept].tolist()

    def __iter__(self) -> Iterator[int]:
        for position in super().__iter__():  # type: ignore[misc]
            yield self.kept[position]


@DATA_SAMPLERS.register_module()
class InfiniteSubsetSampler(_Subset, InfiniteSampler):
    """mmengine's InfiniteSampler on a fixed random subset."""


@DATA_SAMPLERS.register_module()
class DefaultSubsetSampler(_Subset, DefaultSampler):
    """mmengine's DefaultSampler on a fixed random subset."""


if is_importable('mmseg'):
    from mmseg.evaluation import IoUMetric
    from mmseg.registry import METRICS

    @METRICS.register_module()
    class ClassIoUMetric(IoUMetric):
        """mmseg's IoUMetric, which also returns `IoU/NAME` of each class."""

        def compute_metrics(self, results: list) -> dict[str, Any]:
            """Compute the metrics from the areas of all images."""
            metrics = super().compute_metrics(results)
            intersect, union, *_ = (
                sum(areas) for areas in zip(*results, strict=True)
            )
            iou = (100 * intersect / union).tolist()
            names = self.dataset_meta['classes']
            ours = {f'IoU/{n}': v for n, v in zip(names, iou, strict=True)}
            return metrics | ours
