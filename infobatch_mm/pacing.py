"""The two ways to spend a pruned round: smaller batches, or fewer steps."""

from dataclasses import dataclass, replace

from .pruning.plan import Plan

SMALLER_BATCHES, FEWER_STEPS = 'smaller_batches', 'fewer_steps'
PACINGS = (SMALLER_BATCHES, FEWER_STEPS)


def next_batch(samples: int, steps: int) -> int:
    """Return the size of the next batch, where samples are dealt to steps.

    Dealt to the end like this, sizes differ by at most one, the larger first.
    As the next size depends on what is left alone, a round that is taken up
    in its middle goes on as it would have.

    Args:
        samples (int): Samples that are left.
        steps (int): Steps that are left, at least 1.
    """
    return -(-samples // steps)


@dataclass(frozen=True)
class Dealing:
    """How the kept samples of a round are dealt to the steps of a full pass.

    Attributes:
        steps (int): Steps of a full pass.
        batch_size (int): Samples of a step of it, over all ranks.
        world_size (int): Number of ranks.
        smallest_batch (int): The fewest samples of a step on a rank.
    """

    steps: int
    batch_size: int
    world_size: int = 1
    smallest_batch: int = 2

    @property
    def fewest(self) -> int:
        """int: The fewest samples that a pruned round keeps."""
        return self.smallest_batch * self.world_size * self.steps

    @property
    def limits(self) -> dict[str, int]:
        """dict: What a policy is asked to heed."""
        return dict(multiple_of=self.world_size, at_least=self.fewest)

    def check(self) -> None:
        """Raise a ValueError if no round could be pruned."""
        each = self.batch_size // self.world_size
        if self.smallest_batch >= each:
            raise ValueError(
                f'train_dataloader.batch_size is {each} and '
                f'smallest_batch={self.smallest_batch}, so '
                f'pacing={SMALLER_BATCHES!r} could make no batch smaller and '
                'would prune nothing. Raise the batch size, lower '
                'smallest_batch (1 suits models whose batch norm is '
                f'synchronised or absent), or set pacing={FEWER_STEPS!r}'
            )

    def paced(self, plan: Plan, total: int) -> Plan:
        """Return a plan that prunes, as it is spent in smaller batches.

        Its weights, n / m, are multiplied by K / N. Then each place of the
        order has the mean gradient of all samples as expectation, and so has
        the mean over a batch of any size.

        Args:
            plan (Plan): K samples with weights n / m.
            total (int): N, the samples of the data set.

        Returns:
            Plan: As many samples for each rank. Those that are too many for
            the full-size batches of a loop that drops the last one, as it
            drops them of a full pass, are left out; the order is random.
        """
        if len(plan) < self.fewest:
            raise ValueError(
                f'the policy kept {len(plan)} of {total} samples, but with '
                f'pacing={SMALLER_BATCHES!r} it was asked for at_least='
                f'{self.fewest}: smallest_batch={self.smallest_batch} on '
                f'{self.world_size} ranks in {self.steps} steps. Let its '
                'plan() heed at_least'
            )
        most = min(len(plan), self.steps * self.batch_size)
        scaled = replace(plan, weights=plan.weights * (len(plan) / total))
        return scaled.first(most // self.world_size * self.world_size)

    def steps_of_rest(self, samples: int, share: float) -> int:
        """Return the steps to which the rest of a round is dealt anew.

        Args:
            samples (int): Samples that are left, over all ranks.
            share (float): Their share of the round.

        Returns:
            int: The same share of a full pass, unless batches would be
            larger than the full ones, or smaller than allowed.
        """
        most = samples // (self.smallest_batch * self.world_size)
        least = -(-samples // self.batch_size)
        return max(least, min(most, round(share * self.steps)))
