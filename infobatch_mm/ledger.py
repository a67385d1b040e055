"""What is known of the batch in flight."""

from typing import Any

from torch import Tensor


class Ledger:
    """Ids and weights of the batch in flight, and the losses it gave.

    The hook opens it before each training step and closes it after; the
    weighted heads read the weights and record the losses of their images.
    While it is closed (validation, a copy of the model) they act as stock
    heads. A copied or unpickled ledger is a new, closed one, so a copy of a
    model never records for the original.

    Args:
        class_balanced (bool): Whether heads average the pixel losses of an
            image over its classes before they record them.
    """

    def __init__(self, *, class_balanced: bool = False) -> None:
        self.class_balanced = class_balanced
        self.ids: Tensor | None = None
        self.weights: Tensor | None = None
        self.losses: Tensor | None = None
        self.reporters: list[Any] = []

    @property
    def is_open(self) -> bool:
        """bool: Whether a training step is under way."""
        return self.weights is not None

    def open(self, ids: Tensor, weights: Tensor) -> None:
        """Begin a batch.

        Args:
            ids (Tensor): Where the score of each image goes, int64, (B,).
            weights (Tensor): Gradient weight of each image, float32, (B,).
        """
        self.ids, self.weights = ids, weights
        self.losses = None
        self.reporters = []

    def record(self, reporter: Any, losses: Tensor) -> None:
        """Add the losses of one head, shape (B,), to those of the batch."""
        losses = losses.detach().float()
        self.losses = losses if self.losses is None else self.losses + losses
        self.reporters.append(reporter)

    def close(self) -> tuple[Tensor, Tensor]:
        """End the batch and return its ids and losses, each (B,)."""
        assert self.ids is not None and self.losses is not None
        ids, losses = self.ids, self.losses
        self.ids = self.weights = self.losses = None
        self.reporters = []
        return ids, losses

    def __reduce__(self) -> tuple[type['Ledger'], tuple[()]]:
        return Ledger, ()
