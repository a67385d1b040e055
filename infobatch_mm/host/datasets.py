"""What the host's data sets do not tell of their samples.

Of most concern is that one gave another sample than the one asked for.
Data sets replace samples that they cannot read. mmengine's ``BaseDataset``
does when a pipeline returns None; many of users do in a ``__getitem__`` of
their own. Nothing public says so, hence what a data set asks of itself while
it fetches is written down: its ``prepare_data``, ``get_data_info`` and
``_rand_another`` are noted on the instance. ``_rand_another`` is mmengine's
private name for the draw of a substitute, and data sets with a retry of their
own call it too, some with the index that failed, as in mmdetection 2.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.runner.runner import _SlicedDataset
from mmengine.structures import BaseDataElement
from torch import Tensor


class FetchNotes:
    """What base data sets were asked for during one fetch.

    Attributes:
        paths (dict): ``img_path`` of each sample that was looked up, None
            where it has none, in the order of the looking up.
        failed (set): The samples that could not be prepared.
        redrawn (bool): Whether a substitute was drawn.
    """

    def __init__(self) -> None:
        self.paths: dict[tuple[int, str], str | None] = {}
        self.failed: set[tuple[int, str]] = set()
        self.redrawn = False

    def clear(self) -> None:
        """Begin a new fetch."""
        self.paths.clear()
        self.failed.clear()
        self.redrawn = False

    @property
    def is_conclusive(self) -> bool:
        """bool: Whether the fetch was an ordinary one, of one sample."""
        return len(self.paths) == 1

    @property
    def has_failed(self) -> bool:
        """bool: Whether a sample could not be had, or another was drawn."""
        return self.redrawn or bool(self.failed)

    @property
    def first_path(self) -> str | None:
        """str: ``img_path`` of the sample that was looked up first."""
        return next(iter(self.paths.values()), None)


def _index_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return what a call asks for: its first argument, as text.

    It may have any name, and be anything: a list of indices, or nothing.
    """
    first = next(iter([*args, *kwargs.values()]), None)
    return repr(first.item() if isinstance(first, np.generic) else first)


class _Prepare:
    """Stands in for ``prepare_data`` and notes what fails."""

    def __init__(self, notes: FetchNotes, leaf: int, stock: Any) -> None:
        self.notes, self.leaf, self.stock = notes, leaf, stock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        sample = self.leaf, _index_of(args, kwargs)
        # Until it is prepared, whatever the way in which it is not.
        self.notes.failed.add(sample)
        data = self.stock(*args, **kwargs)
        if data is not None:
            self.notes.failed.discard(sample)
        return data


class _LookUp:
    """Stands in for ``get_data_info`` and notes the sample's path."""

    def __init__(self, notes: FetchNotes, leaf: int, stock: Any) -> None:
        self.notes, self.leaf, self.stock = notes, leaf, stock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        info = self.stock(*args, **kwargs)
        path = info.get('img_path') if isinstance(info, dict) else None
        sample = self.leaf, _index_of(args, kwargs)
        self.notes.paths.setdefault(sample, text_of(path))
        return info


class _Redraw:
    """Stands in for ``_rand_another`` and notes its use."""

    def __init__(self, notes: FetchNotes, stock: Any) -> None:
        self.notes, self.stock = notes, stock

    def __call__(self, *args: Any, **kwargs: Any) -> int:
        self.notes.redrawn = True
        return self.stock(*args, **kwargs)


def text_of(path: Any) -> str | None:
    """Return a path, a str or one of pathlib, as text; else None."""
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else None


def listed_path(dataset: Any, index: int) -> str | None:
    """Return the ``img_path`` that a data set lists for an index, if any.

    A wrapper that hands on the attributes of what it wraps is not asked: its
    own indices may be others.
    """
    if not hasattr(type(dataset), 'get_data_info'):
        return None
    try:
        info = dataset.get_data_info(index)
    except Exception:  # anybody's code, which may open a file a sample
        return None
    return text_of(info.get('img_path') if isinstance(info, dict) else None)


def initialise(dataset: Any) -> None:
    """Let a data set with ``lazy_init`` list its samples, as Runner does.

    mmengine's Runner asks the outermost one. Not all wrappers pass that on,
    so that a data set within would list its samples at the first fetch, in
    each worker for itself.
    """
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    for leaf in leaves(dataset):
        if isinstance(leaf, BaseDataset) and not leaf._fully_initialized:
            leaf.full_init()


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets at the bottom of any nest of wrappers."""
    if isinstance(dataset, BaseDataset):
        yield dataset
        return
    inner = _data_sets_in(getattr(dataset, 'datasets', None))
    inner = inner or _data_sets_in(getattr(dataset, 'dataset', None))
    if not inner:  # a wrapper may name what it wraps otherwise
        inner = _wrapped_base(dataset, {id(dataset)})
    for child in inner:
        yield from leaves(child)
    if not inner:
        yield dataset


def _data_sets_in(value: Any) -> list[Any]:
    """Return a data set, or several in a list or a dict; else nothing."""
    values = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, list, tuple)):
        values = [value]
    # Samples in a list are none, and there may be millions.
    return [*values] if all(map(_is_data_set, values)) else []


def _is_data_set(value: Any) -> bool:
    """Tell whether something gives samples by their index."""
    plain = (str, bytes, Mapping, list, tuple, np.ndarray, Tensor)
    gives = hasattr(value, '__getitem__') and hasattr(value, '__len__')
    return gives and not isinstance(value, plain)


def _wrapped_base(dataset: Any, seen: set[int]) -> list[Any]:
    """Return what a wrapper holds at the bottom of which are base data sets.

    Args:
        dataset (Any): The wrapper.
        seen (set[int]): The ids of those it lies within, which it may name.
    """
    found = []
    for value in getattr(dataset, '__dict__', {}).values():
        for each in _data_sets_in(value):
            if id(each) in seen:
                continue
            inner = _wrapped_base(each, seen | {id(each)})
            if isinstance(each, BaseDataset) or inner:
                found.append(each)
    return found


def note_fetches(datasets: Iterable[Any]) -> FetchNotes:
    """Let base data sets note what they are asked for; return the notes.

    Doing it again, for another wrapper of the same data set, does not stack.
    """
    notes = FetchNotes()
    for number, leaf in enumerate(datasets):
        if not isinstance(leaf, BaseDataset):
            continue
        prepare, look_up, redraw = (
            _stock(leaf, name)
            for name in ('prepare_data', 'get_data_info', '_rand_another')
        )
        leaf.prepare_data = _Prepare(notes, number, prepare)
        leaf.get_data_info = _LookUp(notes, number, look_up)
        leaf._rand_another = _Redraw(notes, redraw)
    return notes


def _stock(leaf: Any, name: str) -> Any:
    """Return a method of a data set, as it was before it was noted."""
    method = getattr(leaf, name)
    if isinstance(method, (_Prepare, _LookUp, _Redraw)):
        return method.stock
    if name in vars(leaf):  # one that the data set has chosen for itself
        return method
    # A partial, since a deep copy of it belongs to the copied data set; and
    # by name, since a worker that is spawned may not import what decorates.
    return partial(_call_stock, leaf, name)


def _call_stock(leaf: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(type(leaf), name)(leaf, *args, **kwargs)


def unsliced(dataset: Any) -> Any:
    """Return the data set of a dataloader, without mmengine's slice.

    ``Runner.build_dataloader`` wraps it in the private ``_SlicedDataset``,
    which gives the first samples of it alone, if
    ``train_dataloader.num_batch_per_epoch`` is set.
    """
    if isinstance(dataset, _SlicedDataset):
        return dataset._dataset
    return dataset


def marked(sample: BaseDataElement, **fields: Any) -> BaseDataElement:
    """Return a data sample with more metainfo, which shares all else.

    ``BaseDataElement.new`` and ``set_metainfo`` copy all metainfo deeply,
    each time, and ``copy.copy`` would share the sets that list the fields,
    ``_metainfo_fields`` and ``_data_fields``, private names of mmengine.
    """
    copy: Any = object.__new__(type(sample))
    copy.__dict__.update(sample.__dict__)
    copy.__dict__['_metainfo_fields'] = set(sample._metainfo_fields)
    copy.__dict__['_data_fields'] = set(sample._data_fields)
    for name, value in fields.items():
        copy.set_field(value, name, field_type='metainfo')
    return copy
