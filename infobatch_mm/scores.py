"""The last loss of every sample, or a moving average of its losses."""

import torch
from mmengine.dist import all_gather, all_reduce, get_world_size
from torch import Tensor

_MOST_WAITING = 1024  # batches; bounds the memory that they take


class ScoreBoard:
    """One score a sample, kept on the training device.

    A score is the last training loss of the sample, or with ``momentum`` the
    exponential moving average of its losses, beginning with the first:
    ``momentum * score + (1 - momentum) * loss``. A sample that was never
    seen, or whose last loss was not finite, has no score: NaN. Updates
    make no host synchronisation; the ranks of a distributed run hold their
    own updates until :meth:`merge`.

    Args:
        num_samples (int): Number of samples, N.
        device (torch.device | str): Where the scores live.
        momentum (float): Share of the old score in the new one, in [0, 1).
            Defaults to 0.0, the last loss.

    Attributes:
        nonfinite (int): Losses that were not finite since it was last set to
            zero, over all ranks, as of the last merge.
        unscored (int): An id that is no sample's. What is written under it is
            never read; a loss that belongs to no known sample goes there.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        device: torch.device | str = 'cpu',
        momentum: float = 0.0,
    ) -> None:
        self.momentum = momentum
        self.unscored = num_samples
        # One slot more than samples, so that no update needs a branch.
        self._slots = torch.full(
            (num_samples + 1,), torch.nan, dtype=torch.float32, device=device
        )
        self.nonfinite = 0
        self._new_nonfinite = torch.zeros((), dtype=torch.int64, device=device)
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
        if get_world_size() > 1:
            self._updated.append(ids)

    def merge(self) -> None:
        """Exchange the updates since the last merge between all ranks.

        Ids travel as int64 and scores as float32. Every rank must call it,
        after equally many updates of equal size.
        """
        self._take_in()
        all_reduce(self._new_nonfinite)
        self.nonfinite += int(self._new_nonfinite.item())
        self._new_nonfinite.zero_()
        if not self._updated:
            return
        ids = torch.cat(self._updated)
        scores = self._slots[ids]
        # In the order of ranks, so that a padded sample that was trained on
        # two of them ends with the same score everywhere.
        pairs = zip(all_gather(ids), all_gather(scores), strict=True)
        for rank_ids, rank_scores in pairs:
            self._slots[rank_ids] = rank_scores
        self._updated = []

    def load(self, scores: Tensor) -> None:
        """Take over saved scores, shape (N,)."""
        self._slots[:-1] = scores.to(self._slots)
