"""Where torch cuts the order of a sampler into batches, and we cut otherwise.

A ``DataLoader`` takes no other ``batch_sampler`` once it is built. One in its
config would take ``batch_size`` and ``drop_last`` from it, which other code
reads there, and would have to be named in each of the ways in. So the batch
sampler of the dataloader, which its iterators (and their workers) ask at the
start of each round, is given a subclass.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from ..pacing import next_batch


class DealtBatchSampler(BatchSampler):
    """Deal the order of the sampler evenly to the steps that it names.

    Where the sampler names none, batches are those of ``BatchSampler``.

    Attributes:
        sampler (InfoBatchSampler): Has ``steps``, those of its round.
    """

    sampler: Any

    def __iter__(self) -> Iterator[list[int]]:
        steps = self.sampler.steps
        if steps is None:
            yield from super().__iter__()
            return
        order, left = iter(self.sampler), len(self.sampler)
        for steps_left in range(steps, 0, -1):
            batch = [*islice(order, next_batch(left, steps_left))]
            left -= len(batch)
            yield batch

    def __len__(self) -> int:
        steps = self.sampler.steps
        return super().__len__() if steps is None else steps


def deal_batches(dataloader: DataLoader) -> None:
    """Let a dataloader deal samples to steps, where its sampler says so.

    Raises:
        ValueError: If a batch sampler of the user's cuts the batches.
    """
    batch_sampler: Any = dataloader.batch_sampler
    if type(batch_sampler) is not BatchSampler:
        raise ValueError(
            'train_dataloader.batch_sampler is '
            f'{type(batch_sampler).__name__}, which decides itself what a '
            "batch is, so pacing='smaller_batches' has no say in it. Take it "
            "out, or set pacing='fewer_steps'"
        )
    batch_sampler.__class__ = DealtBatchSampler
