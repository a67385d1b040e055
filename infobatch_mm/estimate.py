"""What a pruned run will cost, worked out before it begins.

The rounds are gone through on the clock that the run itself will use, with
the counts that its policy would keep. Nothing here imports mmengine.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .clock import FullDataClock
from .pacing import Dealing
from .pruning import PruningPolicy
from .pruning.draw import strata_of


class Budget(NamedTuple):
    """What the full-data run is.

    Attributes:
        samples (int): Samples of the data set, N.
        batch_size (int): Samples of a step, over all ranks.
        iters (int): Iterations of the run.
        drops_rest (bool): Whether a pass leaves out a remainder smaller than
            a batch, as the loop by iterations and ``drop_last`` do.
        ranks (int): Processes, if each drops its own, as with ``drop_last``:
            a sampler of mmengine fills them up to equal numbers first.
    """

    samples: int
    batch_size: int
    iters: int
    drops_rest: bool
    ranks: int = 1

    def iters_of(self, kept: int) -> int:
        """Return the iterations of a round that keeps so many samples."""
        if self.drops_rest:
            return -(-kept // self.ranks) // (self.batch_size // self.ranks)
        return -(-kept // self.batch_size)

    def samples_in(self, iters: int, kept: int) -> int:
        """Return the samples of the first iterations of a round."""
        return min(kept, iters * self.batch_size)


class Schedule(NamedTuple):
    """What a run comes to.

    Attributes:
        rounds (int): Rounds, the last of which may be cut off by the budget.
        pruned (int): How many of them leave samples out.
        iters (int): Iterations.
        samples (int): Samples trained on.
        fewest (int): Samples that the smallest of its rounds keeps.
    """

    rounds: int
    pruned: int
    iters: int
    samples: int
    fewest: int


class Case(NamedTuple):
    """Scores that a run may have, shape (N,)."""

    name: str  # of the share below the mean
    scores: Tensor


class Row(NamedTuple):
    """What a run comes to, by its policy and its scores."""

    policy: str
    share: str  # below the mean
    run: Schedule


def schedule(
    policy: PruningPolicy,
    scores: Tensor,
    budget: Budget,
    *,
    warmup_rounds: int = 0,
    dealing: Dealing | None = None,
) -> Schedule:
    """Go through a run whose scores stay as they are given.

    A sample that the first round leaves out, as a remainder smaller than a
    batch, is taken to have a score all the same.

    Args:
        policy (PruningPolicy): What plans its rounds.
        scores (Tensor): Finite scores, shape (N,): those that the first
            round leaves behind, and each round after it.
        budget (Budget): The full-data run.
        warmup_rounds (int): Rounds at the start that use all data.
        dealing (Dealing, optional): How pruned rounds are dealt to smaller
            batches. None (default): they have fewer steps of the full size.
    """
    if not isinstance(policy, PruningPolicy):
        raise ValueError(
            f'policy.type={type(policy).__name__!r} plans in its own way, '
            'which can only be run, not estimated: a policy that derives '
            'from PruningPolicy can'
        )
    sizes = strata_sizes(policy, scores)
    limits = dealing.limits if dealing else {'multiple_of': budget.batch_size}
    clock = FullDataClock(budget.iters, budget.iters_of(budget.samples))
    rounds = pruned = iters = samples = 0
    fewest = budget.samples
    while not clock.done:
        kept = budget.samples
        # The first round has no scores.
        if rounds >= max(1, warmup_rounds):
            kept = _kept(policy, sizes, clock.progress, limits)
        dealt = dealing if kept < budget.samples else None
        clock.begin_round(dealt.steps if dealt else budget.iters_of(kept))
        done = clock.iters_left_in_round
        clock.position = done
        clock.end_round(rounds)
        rounds, iters = rounds + 1, iters + done
        samples += (
            dealt_samples(dealt, done, kept)
            if dealt
            else budget.samples_in(done, kept)
        )
        pruned += kept < budget.samples
        fewest = min(fewest, kept)
    return Schedule(rounds, pruned, iters, samples, fewest)


def schedules(
    policies: Iterable[PruningPolicy],
    kinds: Sequence[Case],
    budget: Budget,
    **settings: Any,
) -> Iterator[Row]:
    """Yield what a run comes to, by policy and the share below the mean.

    Where it comes to the same whatever the share is, there is one row.

    Args:
        policies (Iterable): The policies.
        kinds (Sequence): Scores that the run may have.
        budget (Budget): The full-data run.
        **settings: Of :func:`schedule`.
    """
    for policy in policies:
        name = type(policy).__name__
        found = [
            schedule(policy, case.scores, budget, **settings) for case in kinds
        ]
        if len(set(found)) == 1 < len(found):
            yield Row(name, 'any', found[0])
            continue
        for case, run in zip(kinds, found, strict=True):
            yield Row(name, case.name, run)


def dealt_samples(dealing: Dealing, iters: int, kept: int) -> int:
    """Return the samples of the first iterations of a round that is dealt.

    Args:
        dealing (Dealing): How it is.
        iters (int): Iterations, at most the steps of a full pass.
        kept (int): Samples that the round keeps.
    """
    most = dealing.steps * dealing.batch_size
    each = min(kept, most) // dealing.world_size
    size, larger = divmod(each, dealing.steps)  # the larger ones come first
    return dealing.world_size * (iters * size + min(iters, larger))


def full_schedule(budget: Budget) -> Schedule:
    """Return what the full-data run comes to."""
    each = budget.iters_of(budget.samples)
    whole, rest = divmod(budget.iters, each)
    samples = whole * budget.samples_in(each, budget.samples)
    samples += budget.samples_in(rest, budget.samples)
    rounds = whole + bool(rest)
    return Schedule(rounds, 0, budget.iters, samples, budget.samples)


def strata_sizes(policy: PruningPolicy, scores: Tensor) -> list[int]:
    """Return the samples of each stratum, those always kept at the end."""
    edges = policy.edges(scores)
    strata = strata_of(scores.numpy(), edges)
    return np.bincount(strata, minlength=len(edges) + 1).tolist()


def _kept(
    policy: PruningPolicy,
    sizes: Sequence[int],
    progress: float,
    limits: Mapping[str, int],
) -> int:
    """Return how many samples a round keeps; see `PruningPolicy.plan`."""
    return sum(policy.kept_counts(sizes, progress, **limits))


def scores_below_mean(share: float, total: int) -> Tensor:
    """Return scores of which a share is below their mean, all distinct.

    Args:
        share (float): In (0, 1); exact to a sample.
        total (int): Number of scores, at least 2.

    Returns:
        Tensor: float64, shape (total,), ascending.
    """
    easy = min(max(1, round(share * total)), total - 1)
    hard = total - easy
    # The easy ones lie in [0, 1) and the hard ones in [gap, gap + 1), so far
    # above that the mean is between the two.
    gap = 1 + total / min(easy, hard)
    low = torch.arange(easy, dtype=torch.float64) / easy
    high = torch.arange(hard, dtype=torch.float64) / hard
    return torch.cat([low, gap + high])


def share_below_mean(scores: Tensor) -> float:
    """Return the share of finite scores that is below their mean."""
    return (scores < scores.mean(dtype=torch.float64)).double().mean().item()


def memory(total: int) -> dict[str, int]:
    """Return the bytes that pruning takes on each rank, by what for.

    The plan is that of a full round; a pruned one is smaller.

    Args:
        total (int): Samples of the data set.
    """
    return {
        'scores, on the device': 4 * total,
        'weights, counts and identities, on the host': 12 * total,
        'the plan, on the host': 12 * total,
        'while a round is planned, for seconds, at most': 24 * total,
        'more in a checkpoint, at most': 24 * total,
    }
