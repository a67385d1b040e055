"""The wrapper of a data set that writes its index into each sample."""

from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any

import torch
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement

from ..host.datasets import (
    initialise,
    leaves,
    listed_path,
    marked,
    note_fetches,
    text_of,
)
from ..randomness import seeded
from .identity import path_number, roots_of

_OWN = ('wrapped', '_notes', '_roots', '_key')


@DATASETS.register_module()
class IndexedDataset:
    """Wrap a data set so that each sample carries its index.

    The index is that of the wrapped data set as a whole: over ConcatDataset,
    RepeatDataset and ClassBalancedDataset it is the global one. It travels in
    the data sample's metainfo, so no worker, prefetching or batch sampler can
    credit a loss to another sample. It is written on a shallow copy, so that
    a data set may keep its samples and give them again under another index.
    Everything else is the wrapped data set's own, attributes and methods
    included; ``dataset`` too, where that is a wrapper itself.

    A data set may give another sample in place of one that cannot be read, as
    ``BaseDataset`` does if the pipeline returns None. The sample then says
    so, and it is trained on with the weight of the index asked for, but not
    scored (see :mod:`infobatch_mm.host.datasets`).

    The metainfo gets ``infobatch_index`` (int), ``infobatch_refetched``
    (bool) and ``infobatch_identity`` (int, a hash of ``img_path``, 0 if there
    is none).

    Args:
        dataset (dict | BaseDataset): The data set to wrap, or its config.

    Attributes:
        wrapped (BaseDataset): The wrapped data set.
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, dict):
            dataset = DATASETS.build(dataset)
        initialise(dataset)
        self.wrapped: Any = dataset
        self._notes = note_fetches(leaves(dataset))
        self._roots = roots_of(dataset)
        # Seed and round, where workers that live on can see them change. A
        # loop may start its workers before the first round.
        self._key = torch.full((2,), -1).share_memory_()

    def seed_round(self, seed: int, round_: int) -> None:
        """Make the draws of a sample depend on seed, round and index alone.

        Must be called before the round's dataloader is iterated. Whichever
        worker fetches a sample, Python's, NumPy's and PyTorch's global
        generators are then seeded for it; generators that a transform holds
        are not. Without this call they are left alone.
        """
        self._key.copy_(torch.tensor([seed, round_]))

    def _drawing(self, index: int) -> AbstractContextManager[None]:
        seed, round_ = self._key.tolist()
        return nullcontext() if round_ < 0 else seeded([seed, round_, index])

    def __getitem__(self, index: int) -> Any:
        self._notes.clear()
        with self._drawing(index):
            data = self.wrapped[index]
        sample = self._data_sample(data)
        path = text_of(sample.get('img_path'))
        # The data set may keep both, the dict and the data sample.
        data = copy(data)
        data['data_samples'] = marked(
            sample,
            infobatch_index=index,
            infobatch_refetched=self._is_substitute(index, path),
            infobatch_identity=path_number(path, self._roots),
        )
        return data

    def _data_sample(self, data: Any) -> BaseDataElement:
        """Return the data sample, or say why it cannot carry an index."""
        name = type(self.wrapped).__name__
        if not isinstance(data, dict) or 'data_samples' not in data:
            raise TypeError(
                'IndexedDataset needs samples with an entry data_samples to '
                f'carry their index, but {name} gave {type(data).__name__}. '
                'End its pipeline with PackSegInputs (mmseg) or PackInputs '
                '(mmpretrain)'
            )
        sample = data['data_samples']
        if not isinstance(sample, BaseDataElement):
            raise TypeError(
                f'{name} gave data_samples as a {type(sample).__name__}, but '
                'IndexedDataset needs one data sample for each index, as '
                'there is one weight and one score. End the pipeline with '
                'one data sample, and make views of it in the model. Batches '
                'of several branches (semi-supervised) cannot be pruned'
            )
        return sample

    def _is_substitute(self, index: int, path: str | None) -> bool:
        """Tell whether a sample stands in for the one asked for."""
        if self._notes.has_failed:
            return True
        if self._notes.is_conclusive or path is None:
            return False
        # Several samples were looked up, as for a mosaic, or none, as for
        # one kept in memory: it must be the first, or that of the index.
        paths = {self._notes.first_path, listed_path(self.wrapped, index)}
        paths.discard(None)
        return bool(paths) and path not in paths

    @property
    def dataset(self) -> Any:
        """BaseDataset: What the wrapped one wraps, as in a stock run; or it.

        So what looks for the innermost data set finds it.
        """
        return getattr(self.wrapped, 'dataset', self.wrapped)

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        # Dunders are looked up here by copy, pickle and the DataLoader's
        # __getitems__, which would fetch past __getitem__.
        if name.startswith('__') or 'wrapped' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Hooks that switch the pipeline set it on the outermost data set.
        if name in _OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.wrapped, name, value)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.wrapped!r})'
