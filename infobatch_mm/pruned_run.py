"""The state of a pruned run: its rounds, its counters, its checkpoint entry.

It knows neither mmengine nor a runner. :class:`InfoBatchHook` tells it what
happens, and carries its answers to the sampler, the heads and the files.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .pacing import FEWER_STEPS, SMALLER_BATCHES
from .pruning import Plan
from .rounds import Rounds
from .scores import IMAGE_MEAN

# The entry of a checkpoint, and the version of its layout.
STATE_KEY = 'infobatch'
STATE_VERSION = 2

# Counters that a checkpoint holds as they are.
_COUNTERS = ('round', 'round_begin_iter', 'samples_seen', 'samples_planned')
# ... and those that older ones lack, whose mean then begins anew.
_COUNTERS_OF_MEAN = ('rounds_pruned', 'samples_pruned')


class PrunedRun(Rounds):
    """What is known of a pruned run: its rounds, which checkpoints hold.

    See :class:`Rounds` for the arguments.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on.

        It holds tensors and plain values alone, so that it loads with
        ``weights_only=True``.
        """
        state = dict(
            version=STATE_VERSION,
            policy=repr(self.policy),
            score=self.score,
            pacing=self.pacing,
            total=self.total,
            seed=self.seed,
            batch_size=self.batch_size,
            clock=self.clock.state_dict(),
            scores=self.board.scores.cpu(),
            times_kept=self.times_kept,
            nonfinite=self.board.nonfinite,
            **{
                name: getattr(self, name)
                for name in _COUNTERS + _COUNTERS_OF_MEAN
            },
            **self.times.state_dict(),
        )
        if self.plan is not None:
            state['indices'] = self.plan.indices
            state['weights'] = self.plan.weights
            state['threshold'] = self.plan.threshold
            state['variance_ratio'] = self.plan.variance_ratio
            state['drawn'] = self.drawn
            state['samples_done'] = self.samples_done
            if self.trained is not None:
                state['trained'] = self.trained
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Go on where a checkpoint left off.

        Args:
            state (dict): What :meth:`state_dict` gave.

        Returns:
            list[str]: What the user should be warned of.

        Raises:
            ValueError: If this run cannot go on from it.
        """
        check_state(state, self.total)
        warnings = []
        if state['policy'] != repr(self.policy):
            warnings.append(
                f'the checkpoint was made with {state["policy"]}; from its '
                f'next round on the run uses {self.policy!r}'
            )
        # Checkpoints older than an option were made with its default.
        pacing = state.get('pacing', FEWER_STEPS)
        if pacing != self.pacing:
            warnings.append(
                f'the checkpoint was made with pacing={pacing!r}; from here '
                f'on the run uses pacing={self.pacing!r}'
            )
        if state.get('score', IMAGE_MEAN) == self.score:
            self.board.load(state['scores'])
        else:
            warnings.append(
                f'the scores of the checkpoint are not of the kind '
                f'score={self.score!r}: they are dropped, and samples are '
                'kept until they have new ones'
            )
        self.seed = state['seed']
        for name in _COUNTERS:
            setattr(self, name, state[name])
        for name in _COUNTERS_OF_MEAN:
            setattr(self, name, state.get(name, 0))
        self.board.nonfinite = state['nonfinite']
        self.times_kept = state['times_kept'].cpu()
        self.times.load_state_dict(state)
        self._has_new_layout = (
            state['batch_size'] != self.batch_size
            or state['clock']['pass_ticks'] != self.clock.pass_ticks
        )
        self.clock.load_state_dict(state['clock'])
        if self.clock.round_start > self.clock.budget:
            raise ValueError(
                f'the checkpoint stands at {self.clock.round_start} of the '
                'iterations of a run on all data, and train_cfg gives this '
                f'run {self.clock.budget}. Give it as many as the run had, '
                'or more'
            )
        if 'indices' in state:
            self._load_plan(state)
            self._share_left = self._share_left_in(state['clock'], pacing)
            self._pace_anew(pacing)
            if self._deals_too_little:
                self._has_new_layout = True
        return warnings

    def _load_plan(self, state: Mapping[str, Any]) -> None:
        self.plan = Plan(
            state['indices'].cpu(),
            state['weights'].cpu(),
            state['threshold'],
            state['variance_ratio'],
        )
        self.drawn = state.get('drawn', len(self.plan))
        self.samples_done = state['samples_done']
        if 'trained' in state:
            self.trained = state['trained'].cpu()
        elif self.trained is not None:
            self.trained[self.plan.indices[: self.samples_done]] = True

    def _share_left_in(self, clock: Mapping[str, int], pacing: str) -> float:
        """Return the share of a full pass that a round still has.

        Args:
            clock (dict): The clock of its checkpoint.
            pacing (str): That of the checkpoint. Batches that are dealt are
                not of one size, and their steps count.
        """
        assert self.plan is not None
        if pacing == SMALLER_BATCHES and self.drawn < self.total:
            steps = 1 - clock['position'] / clock['round_iters']
            return steps * clock['round_ticks'] / clock['pass_ticks']
        return max(0.0, 1 - self.samples_done / len(self.plan))

    def _pace_anew(self, pacing: str) -> None:
        """Go on with a plan that was made in a pacing, in the present one."""
        if pacing == self.pacing or self.drawn == self.total:
            return
        assert self.plan is not None
        share = self.drawn / self.total
        factor = share if self.pacing == SMALLER_BATCHES else 1 / share
        self.plan = replace(self.plan, weights=self.plan.weights * factor)
        self._has_new_layout = True

    @property
    def _deals_too_little(self) -> bool:
        """bool: Whether batches of the rest would be smaller than allowed.

        That is where it was dealt to fewer ranks, or with another limit.
        """
        if not self._is_dealt:
            return False
        assert self.plan is not None and self.dealing is not None
        steps = self.clock.round_iters - self.clock.position
        fewest = replace(self.dealing, steps=steps).fewest
        return len(self.plan) - self.samples_done < fewest

    def begin_without_state(self, *, iters: int, epochs: int) -> None:
        """Go on from a checkpoint of a run that did not prune.

        Args:
            iters (int): Iterations that it has made.
            epochs (int): Epochs that it has made.
        """
        self.clock.move_to(self.clock.tick_at(iters=iters, epochs=epochs))
        self.round = self.clock.now // self.clock.pass_ticks
        self.samples_planned = self.round * self.pass_samples
        # More than the clock says if the last epoch is to be repeated.
        done = iters / self.clock.budget
        self.samples_seen = round(done * self.samples_budget)

    def costs(self, iters: int) -> dict[str, Any]:
        """Return what the run has cost, against a full-data run.

        A run that was stopped early is measured against a full-data run that
        stops at the same point of the clock, so that what neither of them
        has done does not count as saved.

        Args:
            iters (int): Iterations that it has made.
        """
        budget = round(self.samples_budget * self.clock.progress)
        seconds = self.times.train.read()
        # What a run did before it began to prune has not been timed, and
        # smaller batches do not tell what full ones take.
        is_timed = (
            iters
            and self.pacing == FEWER_STEPS
            and self.samples_planned == self.times_kept.sum()
        )
        return dict(
            policy=repr(self.policy),
            total=self.total,
            rounds=self.round,
            samples_budget=budget,
            samples_seen=self.samples_seen,
            saved_ratio=1 - self.samples_seen / budget if budget else 0.0,
            iters_budget=self.clock.now,
            iters_run=iters,
            train_seconds=seconds,
            overhead_seconds=self.times.overhead.read(),
            train_seconds_budget=(
                seconds / iters * self.clock.now if is_timed else None
            ),
        )


def check_state(state: Mapping[str, Any], total: int) -> None:
    """Raise a ValueError if a run cannot go on from a checkpoint's entry.

    Args:
        state (dict): The entry.
        total (int): Number of samples of the run.
    """
    if state['version'] != STATE_VERSION:
        raise ValueError(
            f'the checkpoint holds the state of InfoBatch in version '
            f'{state["version"]}, but this package reads {STATE_VERSION}. '
            'Resume with the package that wrote it'
        )
    if state['total'] != total:
        raise ValueError(
            f'the checkpoint holds the scores of {state["total"]} samples, '
            f'but the train data set has {total}. Resume with the data set '
            'of the checkpoint, or start anew with load_from and without '
            'resume'
        )
