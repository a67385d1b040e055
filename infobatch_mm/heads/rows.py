"""Which sample each row of a head's batch is of.

A model may sort, repeat, leave out or replace samples between the data loader
and its heads. So a row is not known by its place, but by the id in the data
samples that are given to the call that computes the loss or, where that gets
none (the loss modules of mmpretrain, SAN of mmseg), to the nearest call around
it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from mmengine.structures import BaseDataElement
from torch import nn

from ..host.classes import Swapped, swap_class
from ..ledger import Ledger, Rows

INDEX = 'infobatch_index'


class HasLedger(Protocol):
    """A weighted module, as far as it is needed here."""

    infobatch_ledger: Ledger


class Noted(NamedTuple):
    """The samples that a call was given.

    Attributes:
        ids (list[int | None]): None for a sample without an id.
        kind (type): The class of the samples.
    """

    ids: list[int | None]
    kind: type


def index_of(sample: Any) -> int | None:
    """Return the id in a data sample, or in its metainfo."""
    if isinstance(sample, dict):
        return sample.get(INDEX)
    return getattr(sample, INDEX, None)


def sample_lists(args: Any, kwargs: Any) -> list[Sequence[Any]]:
    """Return the lists of data samples among the arguments of a call."""
    return [
        value
        for value in (*args, *kwargs.values())
        if isinstance(value, (list, tuple))
        and value
        and isinstance(value[0], (BaseDataElement, dict))
    ]


def note(outer: Noted | None, args: Any, kwargs: Any) -> Noted | None:
    """Return the samples that a call was given, or else the one around it.

    Of several lists, as the mask heads get, it is the one with ids. Samples
    of another kind than those around may lack ids: they are parts of them, as
    the tasks of a MultiTaskHead and the instances of SAN are.
    """
    found = outer
    for samples in sample_lists(args, kwargs):
        ids = [index_of(sample) for sample in samples]
        own = Noted(ids, type(samples[0]))
        if any(index is not None for index in ids):
            return own
        if outer is None or own.kind is outer.kind:
            found = own
    return found


@contextmanager
def noting(ledger: Ledger, args: Any, kwargs: Any) -> Iterator[None]:
    """Note the samples that a call is given, within it."""
    outer = ledger.noted
    ledger.noted = note(outer, args, kwargs)
    try:
        yield
    finally:
        ledger.noted = outer


def rows_of(head: HasLedger, args: Any, kwargs: Any) -> Rows:
    """Return the rows that a seam is called with.

    Raises:
        RuntimeError: If a sample has no id, or one that is not of the batch.
    """
    ledger = head.infobatch_ledger
    if ledger.samples is None:
        assert ledger.weights is not None  # it is open
        return Rows(ledger.weights)
    noted = note(ledger.noted, args, kwargs)
    if noted is not None and noted.ids == ledger.samples:
        return ledger.rows(ledger.samples)
    if noted is None:
        raise RuntimeError(
            f'{type(head).__name__} was called in a training step past the '
            'loss() of its head, and is given no data samples itself, so it '
            'cannot be told which weight belongs to which row. Let the model '
            'call loss(features, data_samples) of the head, and that the rest'
        )
    ids = [index for index in noted.ids if index is not None]
    if len(ids) < len(noted.ids):
        raise RuntimeError(
            f'{type(head).__name__} computed a loss in a training step from '
            f'samples that carry no {INDEX}, so it cannot be told which '
            'weight belongs to which row. Where the model makes new data '
            f'samples, it must copy {INDEX} from the metainfo of the sample '
            'that each is made of'
        )
    strangers = sorted(set(ids) - set(ledger.samples))
    if strangers:
        raise RuntimeError(
            f'{type(head).__name__} computed a loss in a training step of '
            f'samples that are not of its batch: {INDEX} {strangers}. Their '
            'weights are not known. A model that trains on samples which it '
            'has kept from other batches cannot be pruned'
        )
    return ledger.rows(ids)


class NotesSamplesMixin(Swapped):
    """Note the samples that a module's loss is computed of."""

    infobatch_ledger: Ledger
    infobatch_noted: tuple[str, ...] = ('loss', '_get_loss')

    def infobatch_note(self, args: Any, kwargs: Any) -> Any:
        """Note them while the ledger is open."""
        if not self.infobatch_ledger.is_open:
            return super().infobatch_note(args, kwargs)
        return noting(self.infobatch_ledger, args, kwargs)


def note_samples(owner: Any, ledger: Ledger) -> None:
    """Let a module that owns a weighted loss note the samples it gets."""
    if not isinstance(owner, Swapped):
        swap_class(owner, NotesSamplesMixin)
    owner.infobatch_ledger = ledger


def note_samples_around(
    model: nn.Module, names: Sequence[str], ledger: Ledger
) -> None:
    """Let the owners of weighted losses, and what is around them, note.

    Args:
        model (nn.Module): The model; it notes nothing unless it is an owner.
        names (Sequence[str]): Names of the owners in it.
        ledger (Ledger): The ledger of the run.
    """
    around = {
        '.'.join(parts[:depth])
        for name in names
        for parts in [name.split('.')]
        for depth in range(1, len(parts) + 1)
    }
    for name in sorted(around):
        module = model.get_submodule(name)
        if callable(getattr(module, 'loss', None)):
            note_samples(module, ledger)
