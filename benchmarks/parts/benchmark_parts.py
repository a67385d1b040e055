"""What the runs of our suites import; this folder is on their path.

``infobatch_mm.compare.parts`` has the name here that our cells' digests hold;
cells of other studies import the module of the package.
"""

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from infobatch_mm.compare import parts as parts
from infobatch_mm.pruning.draw import whole_plan
from infobatch_mm.pruning.plan import Plan
from infobatch_mm.pruning.registry import PRUNING_POLICIES


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Mixed precision on a CPU, where mmengine's AmpOptimWrapper refuses."""

    @contextmanager
    def optim_context(
        self, model: torch.nn.Module
    ) -> Generator[None, None, None]:
        """Let the model compute in bfloat16, the weights stay float32."""
        with super().optim_context(model), torch.autocast('cpu'):
            yield


@PRUNING_POLICIES.register_module()
class ProportionalPolicy:
    """Keep each sample with a probability in proportion to its score.

    How far can the choice of samples go? InfoBatch and its quantiles tell a
    few strata of scores from one another, this every score.

    Args:
        keep (float): The share of all samples that a round keeps.
        floor (float): Scores below this part of their mean count as that, so
            that once all are scored no weight is above
            ``(1 + floor) / (floor * keep)``.
        delta (float): See :class:`infobatch_mm.pruning.PruningPolicy`.
    """

    def __init__(
        self, keep: float, *, floor: float = 0.2, delta: float
    ) -> None:
        self.keep, self.floor, self.delta = keep, floor, delta

    def plan(
        self,
        scores: torch.Tensor,
        *,
        generator: torch.Generator,
        multiple_of: int = 1,
        at_least: int = 0,
        progress: float = 0.0,
    ) -> Plan:
        """Plan a round: a systematic sample (Madow, 1949) of a random order.

        So the number kept is exact, and so is each probability. Samples
        without a score are kept.
        """
        total, is_scored = len(scores), scores.isfinite().numpy()
        wanted = max(round(self.keep * total), at_least)
        wanted = min(-(-wanted // multiple_of) * multiple_of, total)
        unseen = total - int(np.count_nonzero(is_scored))
        if progress >= self.delta or wanted <= unseen or wanted == total:
            return whole_plan(total, generator)
        scored = scores.numpy()[is_scored].astype(float)
        sizes = np.maximum(scored, self.floor * scored.mean())
        chances = np.ones(total)
        chances[is_scored] = inclusion_probabilities(sizes, wanted - unseen)
        order = torch.randperm(total, generator=generator)
        start = torch.rand((), generator=generator, dtype=torch.float64).item()
        steps = chances[order.numpy()].cumsum()
        steps *= wanted / steps[-1]  # of rounding
        picks = np.diff(np.floor(steps + start), prepend=0.0) > 0
        kept = order[torch.from_numpy(picks)]
        weights = torch.from_numpy(1 / chances).float()[kept]
        return Plan(kept, weights)

    def __repr__(self) -> str:
        return f'ProportionalPolicy(keep {self.keep:g}, floor {self.floor:g})'


def inclusion_probabilities(sizes: np.ndarray, wanted: int) -> np.ndarray:
    """Return probabilities in proportion to sizes, of which none is above 1.

    Args:
        sizes (ndarray): Positive, shape (N,).
        wanted (int): Their sum, at most N.
    """
    is_sure = np.zeros(len(sizes), bool)
    while True:
        left = wanted - np.count_nonzero(is_sure)
        chances = sizes * (left / sizes[~is_sure].sum())
        too_large = ~is_sure & (chances > 1)
        if not too_large.any():
            return np.where(is_sure, 1.0, chances)
        is_sure |= too_large
