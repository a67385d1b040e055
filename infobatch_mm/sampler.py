"""The sampler: hands out the samples of a planned round, in its order."""

from collections.abc import Iterator, Sized
from itertools import chain

import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, HOOKS
from torch import Tensor

from .host.stock_loops import iterating_loop
from .pruning import Plan

_CHUNK = 65536


@DATA_SAMPLERS.register_module()
class InfoBatchSampler(DefaultSampler):
    """Yield the samples of a planned round, or all of them.

    It differs from ``DefaultSampler`` in one thing: once :meth:`begin_round`
    was called for the present epoch, it yields that plan. Without a plan the
    order is that of ``DefaultSampler`` under the same seed and epoch.

    Iterating has no side effect: asking twice within a round gives the same
    order twice. Ranks take every ``world_size``-th sample, so that the global
    batches are those of a single process. The global random state is never
    touched.

    Args:
        dataset (Sized): The data set.
        shuffle (bool): Must be True; accepted so that the sampler of a stock
            config can be replaced by its type alone.
        seed (int, optional): Seed, the same on all ranks. None draws one and
            shares it.
        round_up (bool): Whether a round that does not divide by the world
            size is padded with its first samples. Defaults to True.
    """

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool = True,
    ) -> None:
        if not shuffle:
            raise ValueError(
                'InfoBatchSampler(shuffle=False) is not possible: a pruned '
                'round is a random draw. Leave shuffle at True'
            )
        super().__init__(dataset, shuffle=True, seed=seed, round_up=round_up)
        self._plan: Plan | None = None
        self._planned_epoch = -1
        self._start = 0
        self._steps: int | None = None
        self.iterations = 0  # of the round, begun so far

    def generator(self) -> torch.Generator:
        """Return a new generator for the present seed and epoch."""
        return torch.Generator().manual_seed(self.seed + self.epoch)

    def begin_round(
        self, plan: Plan, *, start: int = 0, steps: int | None = None
    ) -> None:
        """Set what the present epoch yields.

        Args:
            plan (Plan): The plan, the same on all ranks.
            start (int): How many samples of the plan, over all ranks, have
                been trained on already (in a resumed run).
            steps (int, optional): Steps to which what is left is dealt; None
                for batches of full size.
        """
        self._plan, self._planned_epoch = plan, self.epoch
        self._start, self._steps = start, steps
        self.iterations = 0

    @property
    def steps(self) -> int | None:
        """int: Steps to which the coming round is dealt; None if to none."""
        return self._steps if self._planned_epoch == self.epoch else None

    def _indices(self) -> Tensor:
        """Return this rank's indices, int64, in training order."""
        if self._plan is not None and self._planned_epoch == self.epoch:
            indices, start = self._plan.indices, self._start
        else:
            indices = torch.randperm(
                len(self.dataset), generator=self.generator()
            )
            start = 0
        rest = indices[start:]  # of any number, after other ranks' steps
        missing = -len(rest) % self.world_size
        if self.round_up and missing:
            padding = torch.arange(missing) % len(indices)
            rest = torch.cat([rest, indices[padding]])
        return rest[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[int]:
        if self._plan is None:
            _check_there_is_a_hook()
        self.iterations += 1
        # Python ints, but never one for every sample at a time.
        chunks = self._indices().split(_CHUNK)
        return chain.from_iterable(map(Tensor.tolist, chunks))

    def __len__(self) -> int:
        """Number of samples that this rank yields in the coming round."""
        if self._plan is None or self._planned_epoch != self.epoch:
            return self.num_samples
        total = self.samples_of_all_ranks
        return len(range(self.rank, total, self.world_size))

    @property
    def samples_of_all_ranks(self) -> int:
        """int: Samples of the planned round, with those that pad it."""
        assert self._plan is not None
        total = max(0, len(self._plan) - self._start)
        if self.round_up:
            total += -total % self.world_size
        return total


def _check_there_is_a_hook() -> None:
    """Raise a RuntimeError in a train loop whose run nobody plans.

    Without a plan the order is that of DefaultSampler, so that such a run
    would train on all data, or end with its first round.
    """
    loop = iterating_loop()
    kind = HOOKS.get('InfoBatchHook')
    if loop is None or any(isinstance(h, kind) for h in loop.runner.hooks):
        return
    raise RuntimeError(
        'the train dataloader has an InfoBatchSampler, but the run has no '
        'InfoBatchHook to plan its rounds, so that it would not prune. The '
        'custom_hooks of a config replace those of its base: add '
        "dict(type='InfoBatchHook') to them, or put it where configs are "
        "merged, default_hooks=dict(infobatch=dict(type='InfoBatchHook'))"
    )
