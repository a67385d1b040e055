"""The scores: the last loss of every sample, or an average of its losses."""

import torch
from torch import Tensor

# What a score can be; see InfoBatchHook.
IMAGE_MEAN = 'image_mean'
CLASS_BALANCED = 'class_balanced'
GRADIENT_NORM = 'gradient_norm'
SCORES = (IMAGE_MEAN, CLASS_BALANCED, GRADIENT_NORM)
_MOST_WAITING = 1024  # batches; bounds the memory that they take


class ScoreBoard:
    """One score a sample, kept on the training device.

    A score is the last training loss of the sample, or with ``momentum`` the
    exponential moving average of its losses, beginning with the first:
    ``momentum * score + (1 - momentum) * loss``. A sample that was never
    seen, or whose last loss was not finite, has no score: NaN. Updates
    make no host synchronisation. The ranks of a distributed run hold their
    own updates until they exchange what is new: :meth:`take_new` gives it,
    and :meth:`put` takes what the other ranks gave.

    Args:
        num_samples (int): Number of samples, N.
        device (torch.device | str): Where the scores live.
        momentum (float): Share of the old score in the new one, in [0, 1).
            Defaults to 0.0, the last loss.
        shared (bool): Whether other ranks score too, so that what is new has
            to be remembered. Defaults to False.

    Attributes:
        nonfinite (int): Losses that were not finite since it was last set to
            zero, over all ranks, as of the last exchange.
        unscored (int): An id that is no sample's. What is written under it is
            never read; a loss that belongs to no known sample goes there.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        device: torch.device | str = 'cpu',
        momentum: float = 0.0,
        shared: bool = False,
    ) -> None:
        self.momentum = momentum
        self.shared = shared
        self.unscored = num_samples
        # One slot more than samples, so that no update needs a branch.
        self._slots = torch.full(
            (num_samples + 1,), torch.nan, dtype=torch.float32, device=device
        )
        self.nonfinite = 0
        self._new_nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        self._no_ids = torch.empty(0, dtype=torch.int64, device=device)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._updated: list[Tensor] = []

    def __len__(self) -> int:
        return self.unscored

    @property
    def scores(self) -> Tensor:
        """Tensor: The scores, float32, shape (N,), NaN where there is none."""
        self._take_in()
        return self._slots[:-1]

    def update(self, ids: Tensor, losses: Tensor) -> None:
        """Set the scores of a batch.

        Args:
            ids (Tensor): Sample ids, int64, shape (B,), on the device.
            losses (Tensor): Their losses, shape (B,), on the device.
        """
        # Many at a time are taken in several times faster than one in each
        # step, between whose kernels the code is cold.
        self._waiting.append((ids, losses))
        if len(self._waiting) == _MOST_WAITING:
            self._take_in()

    def _take_in(self) -> None:
        for ids, losses in self._waiting:
            self._set(ids, losses)
        self._waiting = []

    def _set(self, ids: Tensor, losses: Tensor) -> None:
        finite = losses.isfinite()
        scores = losses.where(finite, torch.nan).float()
        if self.momentum:
            old = self._slots[ids]
            # A score begins with the first finite loss, also anew.
            old = old.where(old.isfinite(), scores)
            scores = scores.lerp(old, self.momentum)
        self._slots[ids] = scores
        self._new_nonfinite += (~finite & (ids != self.unscored)).sum()
        if self.shared:
            self._updated.append(ids)

    def take_new(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hand over what is new since the last call.

        Returns:
            tuple: The ids that were updated, int64, shape (U,), none of them
            where nothing is shared; their scores, float32, shape (U,); and
            the number of losses that were not finite, int64, shape ().
        """
        self._take_in()
        nonfinite = self._new_nonfinite.clone()
        self._new_nonfinite.zero_()
        ids = torch.cat([self._no_ids, *self._updated])
        self._updated = []
        return ids, self._slots[ids], nonfinite

    def put(self, ids: Tensor, scores: Tensor) -> None:
        """Take over scores that a rank gave, both of shape (U,)."""
        self._slots[ids] = scores

    def load(self, scores: Tensor) -> None:
        """Take over saved scores, shape (N,)."""
        self._slots[:-1] = scores.to(self._slots)
