"""The ledger: ids and weights of the batch in flight, and its scores."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .rescale import GradientNorms


class Rows(NamedTuple):
    """The rows of the batch that a head has been given.

    Attributes:
        weights (Tensor): Gradient weight of each row, float32, (R,).
        places (Tensor, optional): The place of each row's sample in the batch
            of the data loader, int64, (R,); None where they are the same.
    """

    weights: Tensor
    places: Tensor | None = None


class Ledger:
    """Ids and weights of the batch in flight, and the losses it gave.

    The hook begins a batch before each training step and ends it after; the
    weighted heads read the weights and record the losses of their images, but
    only while the ledger is open, which is within the step itself. While it
    is closed (a hook's own losses, validation, a copy of the model) they act
    as stock heads. A copied or unpickled ledger is a new, closed one, so a
    copy of a model never records for the original.

    Args:
        class_balanced (bool): Whether heads average the pixel losses of an
            image over its classes before they record them.
        gradient_norm (bool): Whether heads record no losses, since the
            backward pass tells the norms of the gradients.

    Attributes:
        is_open (bool): Whether heads weight and record.
        samples (list[int], optional): Sample ids of the batch, by which heads
            find the weight of each of their rows. None: by their place.
        guards_inputs (bool): Whether heads refuse what is weighted already.
            It takes a walk through the graph, so the hook does not ask for
            it in every step.
        noted (Any): The samples that the call under way was given; see
            ``heads/rows.py``.
        norms (GradientNorms, optional): Of the batch, if they are its scores.
        is_within (bool): Whether a head is computing its losses.
    """

    def __init__(
        self, *, class_balanced: bool = False, gradient_norm: bool = False
    ) -> None:
        self.class_balanced = class_balanced
        self.gradient_norm = gradient_norm
        self.is_open = False
        self.guards_inputs = True
        self.ids: Tensor | None = None
        self.weights: Tensor | None = None
        self.samples: list[int] | None = None
        self.noted: Any = None
        self.is_within = False
        self._nowhere = 0
        self._repeats = False
        self._forget()

    def _forget(self) -> None:
        self.losses: Tensor | None = None
        self.norms: GradientNorms | None = None
        if self.gradient_norm and self.weights is not None:
            size, device = len(self.weights), self.weights.device
            self.norms = GradientNorms(size, device)
        self.reporters: list[Any] = []
        self._missing: set[int] = set(range(len(self.samples or ())))

    def open(
        self,
        ids: Tensor,
        weights: Tensor,
        *,
        samples: Sequence[int] | None = None,
        nowhere: int = 0,
    ) -> None:
        """Begin a batch.

        Args:
            ids (Tensor): Where the score of each image goes, int64, (B,).
            weights (Tensor): Gradient weight of each image, float32, (B,).
            samples (Sequence[int], optional): Sample ids of the batch.
            nowhere (int): Where the score of a sample goes that the model has
                left out of its loss.
        """
        self.ids, self.weights = ids, weights
        self.samples = None if samples is None else list(samples)
        self._repeats = len(set(self.samples or ())) < len(self.samples or ())
        self._nowhere = nowhere
        self._forget()
        self.is_open = True

    @contextmanager
    def open_again(self) -> Iterator[None]:
        """Be open within a block, and know nothing from before it."""
        self._forget()
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False

    def rows(self, samples: list[int] | None) -> Rows:
        """Return the rows of a head that was given these samples.

        Raises:
            KeyError: If one of them is not of the batch.
        """
        assert self.weights is not None
        if samples == self.samples and not self._repeats:
            self._missing = set()
            return Rows(self.weights)
        assert samples is not None and self.samples is not None
        # The first place of a sample that the batch holds twice, as views of
        # it; its score is their mean.
        order = {
            sample: place
            for place, sample in reversed(list(enumerate(self.samples)))
        }
        where = [order[sample] for sample in samples]
        self._missing -= set(where)
        places = copy_to_device(torch.tensor(where), self.weights.device)
        return Rows(self.weights.index_select(0, places), places)

    def record(
        self, reporter: Any, losses: Tensor, rows: Rows | None = None
    ) -> None:
        """Add the losses of one head, shape (R,), to those of the batch.

        The loss of a sample of which the head has several rows is their mean.
        """
        losses = losses.detach().float()
        if rows is not None and rows.places is not None:
            losses = self._mean_by_sample(losses, rows.places)
        self.losses = losses if self.losses is None else self.losses + losses
        self.reporters.append(reporter)

    def _mean_by_sample(self, losses: Tensor, places: Tensor) -> Tensor:
        assert self.weights is not None
        zeros = losses.new_zeros(len(self.weights))
        counts = zeros.index_add(0, places, torch.ones_like(losses))
        return zeros.index_add(0, places, losses) / counts.clamp(min=1)

    def close(self) -> tuple[Tensor, Tensor]:
        """End the batch and return its ids and scores, each (B,)."""
        if self.ids is None or not self.reporters:
            raise RuntimeError(
                'no weighted head has computed a loss in a training step, so '
                'nothing was weighted. Train this model without InfoBatch'
            )
        ids, scores = self.ids, self.losses
        if self.norms is not None:
            scores = self.norms.scores()
        if scores is None:
            raise RuntimeError(
                "score='gradient_norm' found no gradient in a training step: "
                'train_step must go backward through the losses of the '
                "weighted heads. Set score='image_mean'"
            )
        if self._missing and self.samples is not None:
            missing = [i in self._missing for i in range(len(self.samples))]
            mask = copy_to_device(torch.tensor(missing), ids.device)
            ids = ids.masked_fill(mask, self._nowhere)
        self.ids = self.weights = self.samples = None
        self.is_open = False
        self._forget()
        return ids, scores

    def __reduce__(self) -> tuple[type['Ledger'], tuple[()]]:
        return Ledger, ()


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small host tensor without waiting for the device."""
    if device.type == 'cuda':
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
