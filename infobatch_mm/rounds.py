"""The rounds and steps of a pruned run, and what is counted of them."""

from typing import Any, Protocol

import torch
from torch import Tensor

from .clock import FullDataClock, RunTimes
from .pacing import FEWER_STEPS, SMALLER_BATCHES, Dealing, next_batch
from .pruning import Plan
from .pruning.plan import check_plan
from .scores import IMAGE_MEAN, ScoreBoard


class Policy(Protocol):
    """What plans a round; see :class:`infobatch_mm.pruning.PruningPolicy`."""

    def plan(
        self,
        scores: Tensor,
        *,
        generator: torch.Generator,
        multiple_of: int = 1,
        at_least: int = 0,
        progress: float = 0.0,
    ) -> Plan:
        """Plan a round."""


class Rounds:
    """The rounds of a pruned run.

    A round goes through :meth:`draw_plan`, :meth:`begin_round`, steps with
    :meth:`end_step`, and :meth:`end_round`. A run that is resumed within a
    round has the plan from its checkpoint and skips the first.

    Args:
        policy (Policy): What plans the rounds.
        clock (FullDataClock): Position in the full-data budget.
        board (ScoreBoard): The scores.
        batch_size (int): Samples of a step, over all ranks.
        samples_budget (int): Samples that a full-data run sees.
        seed (int): Seed of the draws.
        delta (float): Share of the clock from which all data is used.
        score (str): What the score of an image is.
        warmup_rounds (int): Rounds at the start that use all data.
        trims_rounds (bool): Whether a round leaves out a remainder smaller
            than a batch, as the loop by iterations needs it.
        keeps_order (bool): Whether samples are trained on in the order of
            the plan. A batch sampler that holds samples back does not; then
            it is noted which samples of the round were trained on.
        dealing (Dealing, optional): How samples are dealt to the steps of a
            full pass, with smaller batches; None with fewer steps.

    Attributes:
        plan (Plan, optional): The plan of the round; None between rounds.
        drawn (int): Samples that the policy kept, before any were left out.
        samples_done (int): Samples of the plan trained on, over all ranks.
        samples_left (int): Samples that the round still has.
        weights (Tensor): Gradient weights of all samples, float32, (N,), NaN
            where the round leaves a sample out.
        times_kept (Tensor): Rounds that kept each sample, int32, (N,),
            without what a loader drops at their end.
        rounds_pruned (int): Rounds so far that left samples out.
        samples_pruned (int): Samples that these rounds trained on.
        trained (Tensor, optional): What was trained on in this round, bool,
            (N,); None where the order of the plan tells it.
        times (RunTimes): What training has taken, and pruning of it.
    """

    def __init__(
        self,
        policy: Policy,
        clock: FullDataClock,
        board: ScoreBoard,
        *,
        batch_size: int,
        samples_budget: int,
        seed: int,
        delta: float = 0.875,
        score: str = IMAGE_MEAN,
        warmup_rounds: int = 0,
        trims_rounds: bool = False,
        keeps_order: bool = True,
        dealing: Dealing | None = None,
    ) -> None:
        self.policy, self.clock, self.board = policy, clock, board
        self.batch_size, self.samples_budget = batch_size, samples_budget
        self.seed, self.delta, self.score = seed, delta, score
        self.warmup_rounds, self.trims_rounds = warmup_rounds, trims_rounds
        self.dealing = dealing
        self.total = len(board)
        self.weights = torch.ones(self.total, dtype=torch.float32)
        self.times_kept = torch.zeros(self.total, dtype=torch.int32)
        self.trained: Tensor | None = None
        if not keeps_order:
            self.trained = torch.zeros(self.total, dtype=torch.bool)
        self.plan: Plan | None = None
        self.plan_digest = ''
        self.round = self.round_begin_iter = 0
        self.drawn = self.samples_done = self.samples_left = 0
        self.samples_seen = self.samples_planned = 0
        self.rounds_pruned = self.samples_pruned = 0
        self.times = RunTimes()
        self._has_new_layout = False
        self._share_left = 1.0  # of a round that is laid out anew

    # Rounds

    def draw_plan(self, generator: torch.Generator) -> None:
        """Plan the coming round from the scores.

        Args:
            generator (torch.Generator): That of the round, the same on all
                ranks.
        """
        scores = self.board.scores.cpu()
        if self.round < self.warmup_rounds:
            # As if there were none yet, which every policy keeps whole.
            scores = torch.full_like(scores, torch.nan)
        dealing = self.dealing
        options: dict[str, Any] = dict(multiple_of=self.batch_size)
        if dealing:
            options = dict(dealing.limits)
        drawn = plan = self.policy.plan(
            scores,
            generator=generator,
            progress=self.clock.progress,
            **options,
        )
        check_plan(drawn, self.total, self.policy)
        self.drawn, self.samples_done = len(drawn), 0
        if dealing and self.drawn < self.total:
            plan = dealing.paced(drawn, self.total)
        elif self.trims_rounds:
            plan = drawn.trimmed(self.batch_size)
        self.plan = plan
        loaded = plan.first(min(len(plan), self.pass_samples))
        self.times_kept[loaded.indices] += 1
        self.samples_planned += len(loaded)
        if self.drawn < self.total:
            self.rounds_pruned += 1
            self.samples_pruned += len(plan)
        if self.trained is not None:
            self.trained.zero_()

    @property
    def pass_samples(self) -> int:
        """int: Samples of a full pass, without what it drops at its end."""
        share = self.clock.pass_ticks / self.clock.budget
        return min(self.total, round(self.samples_budget * share))

    @property
    def pacing(self) -> str:
        """str: How a pruned round spends its samples."""
        return SMALLER_BATCHES if self.dealing else FEWER_STEPS

    @property
    def remaining(self) -> tuple[Plan, int]:
        """tuple: A plan, and how many of its samples are done already."""
        assert self.plan is not None
        if self.trained is None or not self.samples_done:
            return self.plan, self.samples_done
        left = ~self.trained[self.plan.indices]
        plan = Plan(self.plan.indices[left], self.plan.weights[left])
        return plan, 0

    @property
    def steps_to_deal(self) -> int | None:
        """int: Steps to which what is left of the round is dealt, if it is.

        None where batches have their full size: with fewer steps, and in a
        round that keeps all samples.
        """
        if not self._is_dealt:
            return None
        assert self.plan is not None and self.dealing is not None
        if not self.samples_done:
            return self.dealing.steps
        if not self._has_new_layout:
            return self.clock.round_iters - self.clock.position
        left = max(0, len(self.plan) - self.samples_done)
        return self.dealing.steps_of_rest(left, self._share_left)

    @property
    def keeps_fewest(self) -> bool:
        """bool: Whether the round keeps no more than its batches need."""
        return self._is_dealt and self.drawn == self.dealing.fewest  # type: ignore[union-attr]

    @property
    def missed(self) -> int | None:
        """int: What ``keep`` asks for, if the plan is 1 % of all off that."""
        asked = self.plan.asked if self.plan else None
        if asked is None or abs(self.drawn - asked) <= self.total / 100:
            return None
        return asked

    @property
    def is_tied(self) -> bool:
        """bool: Whether it keeps all since its scores are all the same."""
        assert self.plan is not None
        if self.drawn < self.total or self.plan.threshold is None:
            return False
        scores = self.board.scores
        scores = scores[scores.isfinite()]
        return len(scores) > 1 and bool((scores == scores[0]).all())

    @property
    def _is_dealt(self) -> bool:
        return self.dealing is not None and self.drawn < self.total

    def begin_round(
        self, *, iters: int, samples: int, first_iter: int
    ) -> None:
        """Begin the planned round, or go on with one that had begun.

        Args:
            iters (int): Iterations that are left of it, on each rank.
            samples (int): Samples that are left of it, over all ranks, with
                those that fill up the last batch.
            first_iter (int): The iteration with which it begins now.
        """
        assert self.plan is not None
        self.samples_left = samples
        self.plan_digest = self.plan.digest()
        self.weights.fill_(torch.nan)  # of what the round leaves out
        self.weights[self.plan.indices] = self.plan.weights
        if not self.samples_done:
            self.clock.begin_round(iters)
            self.round_begin_iter = first_iter
        elif self._has_new_layout:
            # The global batches, or the pacing, are others: the rest of the
            # round is laid out anew, and worth the rest of its share of the
            # clock.
            self.clock.begin_rest(iters, self._share_left, self.round)

    def end_round(self) -> None:
        """End the round, wherever it stands."""
        self.board.nonfinite = 0
        self.clock.end_round(self.round)
        self.plan = None
        self.round += 1
        self.times.begin_round()

    def iters_left(self) -> int:
        """Return how many iterations are still to come, estimated.

        Rounds that may be pruned are taken to be as long as those before
        them were on average; until there is one, to be full.
        """
        warmup = max(0, int(self.warmup_rounds) - self.round - 1)
        return self.clock.estimate_iters_left(
            self._mean_iters, delta=self.delta, full_rounds=warmup
        )

    @property
    def _mean_iters(self) -> float:
        """float: Iterations of a pruned round, on average."""
        if self.dealing or not self.rounds_pruned:
            return self.clock.pass_ticks
        return self.samples_pruned / self.rounds_pruned / self.batch_size

    @property
    def knows_iters(self) -> bool:
        """bool: Whether that is exact: each iteration is worth a tick."""
        return self.dealing is not None and self.clock.is_in_step

    # Steps

    def end_step(self, ids: Tensor) -> int:
        """Note that a batch was trained on.

        Args:
            ids (Tensor): The samples of this rank's batch, int64, (B,).

        Returns:
            int: The ticks of the clock that the step was worth.
        """
        if self.trained is not None:
            self.trained[ids] = True
        samples = self._step_samples()
        self.samples_left -= samples
        self.samples_done += samples
        self.samples_seen += samples
        return self.clock.tick()

    def _step_samples(self) -> int:
        """Return how many samples the present step has, over all ranks.

        They are counted by the plan, as a collate function may repeat some.
        """
        size = self.batch_size
        if self._is_dealt:
            assert self.dealing is not None
            ranks = self.dealing.world_size
            steps = self.clock.round_iters - self.clock.position
            size = ranks * next_batch(self.samples_left, ranks * steps)
        return min(size, self.samples_left)
