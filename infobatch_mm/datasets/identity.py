"""Tell whether an index still stands for the image that it stood for.

The scores of a checkpoint belong to indices. If the list of samples has
another order when the run is resumed, each score is that of another image.
"""

import hashlib
import pickle
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from torch import Tensor

from ..host.datasets import leaves, text_of

_CURE = (
    'Give the data set the order that it had (sort its list; where its files '
    'have moved, name their folder in its data_root), or start anew with '
    'load_from and without resume'
)


def roots_of(dataset: Any) -> tuple[str, ...]:
    """Return the folders that the data sets of a nest lie in, longest first.

    One may begin with another: data/mine2, and data/mine.
    """
    roots = (getattr(leaf, 'data_root', None) for leaf in leaves(dataset))
    found = {text for root in roots if (text := text_of(root))}
    return tuple(sorted(found, key=len, reverse=True))


def _without_root(path: str, roots: Iterable[str]) -> str:
    """Return a path that stays the same when the data set is moved."""
    for root in roots:
        if path.startswith(root):
            return path[len(root) :].lstrip('/\\')
    return path


def _bytes_of(text: str, roots: Iterable[str]) -> bytes:
    """Return the bytes of a path, of which not all need be text."""
    return _without_root(text, roots).encode(errors='surrogateescape')


def path_number(path: Any, roots: Iterable[str]) -> int:
    """Return a number in int32 for a path; 0 where there is none."""
    text = text_of(path)
    if text is None:
        return 0
    number = zlib.crc32(_bytes_of(text, roots))
    return (number - 2**31) or 1


def fingerprint(dataset: Any) -> str:
    """Return a hash of the samples of a data set, in their order.

    A sample counts by its ``img_path`` within the folder of the data set, so
    that the folder may move and labels may be corrected; by all that is known
    of it where it has no path. What is not a ``BaseDataset`` counts by its
    type and length.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    for wrapper in _wrappers(dataset):
        for name in ('indices', 'repeat_indices'):
            _feed(digest, getattr(wrapper, name, None), ())
        for place, part in enumerate(getattr(wrapper, 'datasets', ())):
            if hasattr(part, 'dataset'):  # one that repeats some of it, say
                _feed(digest, [place, len(part)], ())
    for leaf in leaves(dataset):
        roots = roots_of(leaf)
        if not isinstance(leaf, BaseDataset):
            _feed(digest, [type(leaf).__name__, len(leaf)], roots)
            continue
        for info in _infos(leaf):
            path = info.get('img_path') if isinstance(info, dict) else None
            if (text := text_of(path)) is not None:
                digest.update(_bytes_of(text, roots) + b'\n')
            else:
                _feed(digest, info, roots)
    return digest.hexdigest()


def _wrappers(dataset: Any) -> Iterator[Any]:
    """Yield what a nest of data sets wraps its leaves in, outermost first."""
    if (inner := getattr(dataset, 'dataset', None)) is not None:
        yield dataset
        yield from _wrappers(inner)
    elif parts := getattr(dataset, 'datasets', None):  # one after another
        yield dataset
        yield from chain.from_iterable(map(_wrappers, parts))


def _infos(leaf: BaseDataset) -> Iterator[Any]:
    """Yield what a base data set has listed, past its own methods.

    These may open files, or draw random numbers.
    """
    if not hasattr(leaf, 'data_bytes'):  # not serialized, or kept otherwise
        known = hasattr(leaf, 'data_list')
        yield from (
            leaf.data_list if known else [type(leaf).__name__, len(leaf)]
        )
        return
    start, data = 0, memoryview(leaf.data_bytes)
    for end in leaf.data_address.tolist():
        yield pickle.loads(data[start:end])
        start = end


def _feed(digest: Any, value: Any, roots: Sequence[str]) -> None:
    """Hash plain values, nested in any way, by what they are equal by."""
    if isinstance(value, dict):
        value = sorted(value.items(), key=lambda item: str(item[0]))
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (list, tuple, np.ndarray)):
        digest.update(b'[%d]' % len(value))
        for item in value:
            _feed(digest, item, roots)
    elif (text := text_of(value)) is not None:
        digest.update(_bytes_of(text, roots) + b'\n')
    elif isinstance(value, (int, float, bytes, np.generic)):
        plain = value.item() if isinstance(value, np.generic) else value
        digest.update(b'%r\n' % plain)


class Identities:
    """Which image each index has been seen to stand for.

    It knows what a list does not: a data set may choose in its methods what
    an index stands for. One that gives another image each time by intention
    (a random frame of a clip) is noticed, and left alone.

    Args:
        dataset (Any): The data set.
        total (int): The number of indices.
    """

    def __init__(self, dataset: Any, total: int) -> None:
        self.dataset = dataset
        self.numbers = np.zeros(total, dtype=np.int32)
        self.is_resumed = False
        self.has_repeated = False
        self.has_changed = False

    @cached_property
    def fingerprint(self) -> str:
        """str: A hash of the list; 1.2 s for 1.28 million samples."""
        return fingerprint(self.dataset)

    @property
    def are_unknown(self) -> bool:
        """bool: Whether another order of the samples could not be seen."""
        listed = all(isinstance(x, BaseDataset) for x in leaves(self.dataset))
        return not listed and not self.numbers.any()

    def note(self, samples: Sequence[Any]) -> None:
        """Note the images of a batch, by its data samples.

        Raises:
            ValueError: If an index stands for another image than in the run
                that was resumed.
        """
        seen = [s for s in samples if not s.infobatch_refetched]
        self._note(
            np.array([s.infobatch_index for s in seen], np.int64),
            np.array([s.infobatch_identity for s in seen], np.int32),
        )

    def _note(self, ids: np.ndarray, numbers: np.ndarray) -> None:
        known = self.numbers[ids]
        again = (known != 0) & (numbers != 0)
        moved = again & (known != numbers)
        if moved.any():
            if self.is_resumed and self.has_repeated and not self.has_changed:
                raise ValueError(
                    f'the sample {ids[moved][0]} of the train data set is '
                    'another image than when the checkpoint was made, so '
                    f'that its score is not its own. {_CURE}'
                )
            self.has_changed = True
        self.has_repeated |= bool(again.any())
        self.numbers[ids] = np.where(numbers != 0, numbers, known)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds, as tensors and plain values."""
        return dict(
            fingerprint=self.fingerprint,
            identities=torch.from_numpy(self.numbers),
            identities_repeated=self.has_repeated,
            identities_changed=self.has_changed,
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what a run has seen before it was resumed.

        Checkpoints of older versions do not tell.

        Raises:
            ValueError: If the data set lists other samples.
        """
        if 'fingerprint' not in state:
            return
        if state['fingerprint'] != self.fingerprint:
            raise ValueError(
                'the train data set lists other samples, or lists them in '
                'another order, than when the checkpoint was made, so that '
                f'each score would go to another image. {_CURE}'
            )
        self.numbers = state['identities'].cpu().numpy().copy()
        self.has_repeated = state['identities_repeated']
        self.has_changed = state['identities_changed']
        self.is_resumed = True
