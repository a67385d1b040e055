"""Samples that know their index."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS


class _Redraw:
    """Stands in for ``BaseDataset._rand_another`` and notes its use."""

    def __init__(self, dataset: BaseDataset) -> None:
        self._draw = partial(type(dataset)._rand_another, dataset)
        self.used = False

    def __call__(self) -> int:
        self.used = True
        return self._draw()


def _leaves(dataset: Any) -> Iterator[BaseDataset]:
    """Yield the base data sets within any nest of wrappers."""
    if isinstance(dataset, BaseDataset):
        yield dataset
        return
    inner = getattr(dataset, 'datasets', None) or [
        getattr(dataset, 'dataset', None)
    ]
    for child in inner:
        if child is not None:
            yield from _leaves(child)


@DATASETS.register_module()
class IndexedDataset:
    """Wrap a data set so that each sample carries its index.

    The index is that of the wrapped data set as a whole: over ConcatDataset,
    RepeatDataset and ClassBalancedDataset it is the global one. It travels in
    the data sample's metainfo, so no worker, prefetching or batch sampler can
    credit a loss to another sample. Everything else is the wrapped data set's
    own, attributes and methods included.

    If the pipeline returns None, ``BaseDataset`` fetches another sample in
    place of the one asked for. The sample then says so, and it is trained on
    with the weight of the index asked for, but not scored.

    The metainfo gets ``infobatch_index`` (int) and ``infobatch_refetched``
    (bool).

    Args:
        dataset (dict | BaseDataset): The data set to wrap, or its config.
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, dict):
            dataset = DATASETS.build(dataset)
        self.dataset: Any = dataset
        self._redraws: list[_Redraw] = []
        for leaf in _leaves(dataset):
            leaf._rand_another = _Redraw(leaf)
            self._redraws.append(leaf._rand_another)

    def __getitem__(self, index: int) -> Any:
        for redraw in self._redraws:
            redraw.used = False
        data = self.dataset[index]
        refetched = any(redraw.used for redraw in self._redraws)
        if not isinstance(data, dict) or 'data_samples' not in data:
            raise TypeError(
                'IndexedDataset needs samples with an entry data_samples to '
                f'carry their index, but {type(self.dataset).__name__} gave '
                f'{type(data).__name__}. End its pipeline with PackSegInputs'
            )
        # Field by field: set_metainfo copies its dict deeply, each time.
        set_field = partial(
            data['data_samples'].set_field, field_type='metainfo'
        )
        set_field(index, 'infobatch_index')
        set_field(refetched, 'infobatch_refetched')
        return data

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        # Dunders are looked up here by copy, pickle and the DataLoader's
        # __getitems__, which would fetch past __getitem__.
        if name.startswith('__') or 'dataset' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Hooks that switch the pipeline set it on the outermost data set.
        if name in ('dataset', '_redraws'):
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.dataset!r})'
