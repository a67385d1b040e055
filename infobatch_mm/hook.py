"""The conductor: plans rounds, hands out weights, collects losses."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor

from . import binding
from .checkpoint import bind_checkpoint_hooks
from .clock import Stopwatch
from .datasets.identity import Identities, check_fingerprint, fingerprint
from .ledger import Ledger
from .policies import build_policy
from .pruning import NoPruningPolicy, Plan
from .randomness import RandomStates
from .records import RunRecords, score_histogram, summary_table
from .schedule import announce_max_iters, step_schedulers
from .scores import ScoreBoard

# The entry of a checkpoint.
STATE_KEY = 'infobatch'
SCORES = ('image_mean', 'class_balanced')


@HOOKS.register_module()
class InfoBatchHook(Hook):
    """Prune the training data dynamically (InfoBatch, arXiv 2303.04947).

    Before training it binds the :class:`InfoBatchSampler`, the
    :class:`IndexedDataset` and the weighted heads of a run. Before each round
    it plans the round from the scores; before each step it looks up the
    weights of the batch by the ids that came with it; after the step it takes
    the losses of its images as their new scores.

    It writes ``infobatch.jsonl`` (a line a round) and
    ``infobatch_summary.json`` to the work directory, and the scalars
    ``infobatch/kept_ratio``, ``infobatch/saved_ratio``,
    ``infobatch/threshold``, ``infobatch/mean_weight`` and
    ``infobatch/variance_ratio`` (see :class:`Plan`) to all visualizer
    backends.

    Args:
        policy (dict): Config of the pruning policy. Defaults to
            ``dict(type='InfoBatchPolicy')``.
        delta (float): The share of the full-data budget from which all data
            is used (annealing), in [0, 1]. Defaults to 0.875.
        score_momentum (float): Makes a score an exponential moving average
            of the losses of its sample, in [0, 1): the share of the old score
            in the new one. Defaults to 0.0, the last loss alone.
        score (str): What the score of an image is. ``'image_mean'`` (default):
            its loss. ``'class_balanced'``: the mean over its classes of the
            mean loss of their pixels, so that a small object counts as much
            as a large one; for heads of mmseg with plain cross-entropy.
        warmup_rounds (int): Number of rounds at the start of the run that
            use all data, while scores are taken. Defaults to 0; the first
            round, which has no scores, uses all data in any case.
        exact_resume (bool, optional): Whether a resumed run repeats the
            random draws of an uninterrupted one: states of the random number
            generators go into checkpoints, and a sample is augmented by
            draws that depend on seed, round and index alone. None (default):
            yes, unless the policy is ``NoPruningPolicy``, with which a run is
            the stock run to the bit and draws what that draws.
    """

    # After ParamSchedulerHook (70), whose steps the clock completes, and
    # before CheckpointHook (90), which must save the clock and the scores of
    # the iteration that it saves.
    priority = 75

    def __init__(
        self,
        policy: Mapping[str, Any] = dict(type='InfoBatchPolicy'),
        *,
        delta: float = 0.875,
        score: str = 'image_mean',
        score_momentum: float = 0.0,
        warmup_rounds: int = 0,
        exact_resume: bool | None = None,
    ) -> None:
        if score not in SCORES:
            raise ValueError(
                f'score={score!r} is not known; there are {", ".join(SCORES)}'
            )
        if not 0 <= score_momentum < 1:
            raise ValueError(
                f'score_momentum={score_momentum} is not in [0, 1); 0 scores '
                'a sample by its last loss'
            )
        if warmup_rounds != int(warmup_rounds) or warmup_rounds < 0:
            raise ValueError(
                f'warmup_rounds={warmup_rounds} is not a number of rounds; 0 '
                'prunes as soon as there are scores'
            )
        self.policy = build_policy(policy, delta)
        self.delta = delta
        self.score = score
        self.score_momentum = score_momentum
        self.warmup_rounds = warmup_rounds
        if exact_resume is None:
            exact_resume = not isinstance(self.policy, NoPruningPolicy)
        self.exact_resume = exact_resume
        self.fingerprint = ''
        self.random_states = RandomStates()
        self.ledger = Ledger(class_balanced=score == 'class_balanced')
        self.plan: Plan | None = None
        self.samples_done = 0
        self.round = 0
        self.round_begin_iter = 0
        self.samples_seen = 0
        self.samples_planned = 0
        self.train_time = Stopwatch()
        self.round_time = Stopwatch()
        self.overhead = Stopwatch()
        self._is_resumed = False
        self._saved: dict[str, Any] | None = None
        self._has_new_layout = False

    # The run

    def before_train(self, runner: Any) -> None:
        """Bind the parts of the run, or say which one is missing."""
        binding.check_single(runner.hooks, InfoBatchHook)
        loop, loader = runner.train_loop, runner.train_dataloader
        self.sampler = binding.find_sampler(loader)
        self.dataset = binding.find_dataset(loader)
        self.heads = binding.find_heads(runner.model)
        if self.ledger.class_balanced:
            binding.check_class_balanced(self.heads)
        self.clock = binding.clock_of(loop)
        for head in self.heads.values():
            head.infobatch_ledger = self.ledger
        bind_checkpoint_hooks(runner, self)
        self.is_epoch_based = isinstance(loop, EpochBasedTrainLoop)
        self.batch_size = binding.global_batch_size(loader, get_world_size())
        self.samples_budget = binding.samples_budget(loader, loop)
        self.device = next(runner.model.parameters()).device
        self.board = ScoreBoard(
            len(loader.dataset),
            device=self.device,
            momentum=self.score_momentum,
        )
        self.weights = torch.ones(len(loader.dataset), dtype=torch.float32)
        self.times_kept = torch.zeros(len(self.weights), dtype=torch.int32)
        self.identities = Identities(len(loader.dataset))
        self.random_states.device = self.device
        if self.exact_resume:
            # Else each iteration of the dataloader draws from the global one,
            # a seed for workers whose samples have seeds of their own.
            loader.generator = torch.Generator()
        if self._is_resumed:
            self._restore(runner)
            self._saved = None
            self.random_states.put_back()
        self.records = RunRecords(runner.work_dir)
        if is_main_process():
            self.records.begin(self.round)

    def after_train(self, runner: Any) -> None:
        """Write the summary and log it as a table."""
        if is_main_process():
            summary = self.summary(runner)
            self.records.write_summary(summary)
            runner.logger.info(f'\n{summary_table(summary)}')

    def summary(self, runner: Any) -> dict[str, Any]:
        """Return what the run has cost, against its full-data budget."""
        return dict(
            policy=repr(self.policy),
            total=len(self.weights),
            rounds=self.round,
            samples_budget=self.samples_budget,
            samples_seen=self.samples_seen,
            saved_ratio=1 - self.samples_seen / self.samples_budget,
            iters_budget=self.clock.budget,
            iters_run=runner.iter,
            train_seconds=self.train_time.read(),
            overhead_seconds=self.overhead.read(),
        )

    # Rounds

    def before_train_epoch(self, runner: Any) -> None:
        """Begin the round, where an epoch is a round."""
        if self.is_epoch_based:
            self.before_train_round(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """End the round, where an epoch is a round."""
        if self.is_epoch_based:
            self.after_train_round(runner)

    def before_train_round(self, runner: Any) -> None:
        """Plan the coming round and hand the plan to the sampler."""
        if self.plan is None:
            self.round_time = Stopwatch()
        self._go_on()
        with self._counted():
            self.sampler.set_epoch(self.round)
            if self.exact_resume:
                self.dataset.seed_round(self.sampler.seed, self.round)
            if self.plan is None:
                self._begin_round(runner)
            else:
                self._continue_round(runner)
            assert self.plan is not None
            self.plan_digest = self.plan.digest()
            binding.check_same_on_all_ranks(self.plan_digest)
            self.weights[self.plan.indices] = self.plan.weights
            left = self.clock.estimate_iters_left(self.delta)
            announce_max_iters(runner, runner.iter + left)
            runner.visualizer.add_scalars(self._scalars(), step=runner.iter)

    def _begin_round(self, runner: Any) -> None:
        scores = self.board.scores.cpu()
        if self.round < self.warmup_rounds:
            # As if there were none yet, which every policy keeps whole.
            scores = torch.full_like(scores, torch.nan)
        plan = self.policy.plan(
            scores,
            generator=self.sampler.generator(),
            multiple_of=self.batch_size,
            progress=self.clock.progress,
        )
        if not self.is_epoch_based:
            # An epoch may end with a smaller batch, as with DefaultSampler.
            plan = plan.trimmed(self.batch_size)
        self.plan, self.samples_done = plan, 0
        self.times_kept[plan.indices] += 1
        self.sampler.begin_round(plan)
        self.clock.begin_round(len(runner.train_dataloader))
        self.round_begin_iter = runner.iter
        self.samples_planned += len(plan)

    def _continue_round(self, runner: Any) -> None:
        """Go on with a round that a resumed run had begun."""
        assert self.plan is not None
        self.sampler.begin_round(self.plan, start=self.samples_done)
        # Once more, for what hooks have drawn at the beginning of an epoch.
        self.random_states.put_back()
        if not self._has_new_layout:
            return
        # The global batches have another size: the rest of the round is laid
        # out anew, and is worth the rest of its share of the clock.
        iters = len(runner.train_dataloader)
        left = max(0, 1 - self.samples_done / len(self.plan))
        ticks = max(iters, round(left * self.clock.pass_ticks))
        if self.is_epoch_based:
            ends = (self.round + 1) * self.clock.pass_ticks
            self.clock.move_to(ends - ticks)
        self.clock.begin_round(iters, ticks=ticks)

    def after_train_round(self, runner: Any) -> None:
        """Merge the scores and record the round that ended."""
        with self._counted():
            self.merge_scores()
            if self.board.nonfinite:
                runner.logger.warning(
                    f'InfoBatch round {self.round}: '
                    f'{self.board.nonfinite} losses were NaN or infinite. '
                    'Their samples are kept at weight 1 until they give a '
                    'finite one'
                )
        self._pause()
        if is_main_process():
            self._write_round()
        self.board.nonfinite = 0
        self.clock.end_round()
        self.plan = None
        self.round += 1

    def merge_scores(self) -> None:
        """Exchange the new scores between the ranks; all must call it."""
        self.board.merge()
        if self.exact_resume:
            self.random_states.gather(at=(self.round, self.samples_done))

    def _scalars(self) -> dict[str, float]:
        assert self.plan is not None
        planned_of = len(self.weights) * (self.round + 1)
        scalars = {
            'infobatch/kept_ratio': len(self.plan) / len(self.weights),
            'infobatch/saved_ratio': 1 - self.samples_planned / planned_of,
            'infobatch/mean_weight': self.plan.mean_weight,
            'infobatch/variance_ratio': self.plan.variance_ratio,
        }
        if self.plan.threshold is not None:
            scalars['infobatch/threshold'] = self.plan.threshold
        return scalars

    def _write_round(self) -> None:
        assert self.plan is not None
        self.records.add_round(
            dict(
                round=self.round,
                iter=self.round_begin_iter,
                total=len(self.weights),
                kept=len(self.plan),
                threshold=self.plan.threshold,
                mean_weight=self.plan.mean_weight,
                max_weight=self.plan.weights.max().item(),
                variance_ratio=self.plan.variance_ratio,
                score_histogram=score_histogram(self.board.scores),
                digest=self.plan_digest,
                nonfinite=self.board.nonfinite,
                seconds=self.round_time.seconds,
            )
        )

    # Steps

    def before_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Look up the weights of the batch by the ids that came with it."""
        with self._counted():
            ids, slots = self._ids(data_batch)
            self.ledger.open(
                self._to_device(slots),
                self._to_device(self.weights.index_select(0, ids)),
            )
            self.random_states.forget()
            self.samples_seen += self.sampler.samples_of_step(
                self.samples_done, self.batch_size
            )

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Score the batch and advance the clock."""
        with self._counted():
            binding.check_reported(self.heads, self.ledger)
            self.board.update(*self.ledger.close())
            self.samples_done += self.batch_size
            for _ in range(self.clock.tick() - 1):
                step_schedulers(runner.param_schedulers)

    def _ids(self, data_batch: Any) -> tuple[Tensor, Tensor]:
        """Return the ids of a batch, and where their scores go."""
        samples = data_batch['data_samples']
        ids = torch.tensor([sample.infobatch_index for sample in samples])
        refetched = [sample.infobatch_refetched for sample in samples]
        self.identities.note(
            ids.numpy(),
            np.array(
                [
                    0
                    if sample.infobatch_refetched
                    else sample.infobatch_identity
                    for sample in samples
                ],
                np.int32,
            ),
        )
        if not any(refetched):
            return ids, ids
        elsewhere = torch.tensor(refetched)
        return ids, ids.masked_fill(elsewhere, self.board.unscored)

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Copy a small host tensor without waiting for the device."""
        if self.device.type == 'cuda':
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    # Checkpoints

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the state of the run, as tensors and plain scalars."""
        checkpoint[STATE_KEY] = self.state_dict()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the state of a run that is resumed; ``load_from`` has none."""
        if runner._resume:
            self._is_resumed = True
            self._saved = checkpoint.get(STATE_KEY)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on."""
        state = dict(
            version=binding.STATE_VERSION,
            policy=repr(self.policy),
            score=self.score,
            total=len(self.weights),
            seed=self.sampler.seed,
            batch_size=self.batch_size,
            round=self.round,
            round_begin_iter=self.round_begin_iter,
            clock=self.clock.state_dict(),
            scores=self.board.scores.cpu(),
            times_kept=self.times_kept,
            nonfinite=self.board.nonfinite,
            samples_seen=self.samples_seen,
            samples_planned=self.samples_planned,
            train_seconds=self.train_time.read(),
            round_seconds=self.round_time.read(),
            overhead_seconds=self.overhead.read(),
            fingerprint=self.fingerprint or fingerprint(self.dataset.dataset),
            identities=self.identities.state_dict(),
        )
        self.fingerprint = state['fingerprint']
        if self.exact_resume:
            state['random_states'] = self.random_states.state_dict(
                at=(self.round, self.samples_done)
            )
        if self.plan is not None:
            state['indices'] = self.plan.indices
            state['weights'] = self.plan.weights
            state['threshold'] = self.plan.threshold
            state['variance_ratio'] = self.plan.variance_ratio
            state['samples_done'] = self.samples_done
        return state

    def _restore(self, runner: Any) -> None:
        """Take up a resumed run where its checkpoint left it."""
        state = self._saved
        if state is None:
            self._restore_without_state(runner)
            return
        binding.check_state(runner, state, len(self.weights))
        self._restore_data(state)
        if self.exact_resume:
            self._restore_draws(runner, state.get('random_states', []))
        if state['policy'] != repr(self.policy):
            runner.logger.warning(
                f'the checkpoint was made with {state["policy"]}; from its '
                f'next round on the run uses {self.policy!r}'
            )
        self.sampler.seed = state['seed']
        self.round = state['round']
        self.round_begin_iter = state['round_begin_iter']
        # Checkpoints older than the option have image means.
        if state.get('score', 'image_mean') == self.score:
            self.board.load(state['scores'])
        else:
            runner.logger.warning(
                f'the scores of the checkpoint are not of the kind '
                f'score={self.score!r}: they are dropped, and samples are '
                'kept until they have new ones'
            )
        self.times_kept = state['times_kept'].cpu()
        self.board.nonfinite = state['nonfinite']
        self.samples_seen = state['samples_seen']
        self.samples_planned = state['samples_planned']
        self.train_time = Stopwatch(state['train_seconds'])
        self.round_time = Stopwatch(state['round_seconds'])
        self.overhead = Stopwatch(state['overhead_seconds'])
        self._has_new_layout = state['batch_size'] != self.batch_size
        self.clock.load_state_dict(state['clock'])
        if self.is_epoch_based and self._has_new_layout:
            # The tick of an epoch loop is a batch, so its size has changed.
            ratio = self.clock.pass_ticks / state['clock']['pass_ticks']
            self.clock.move_to(round(self.clock.now * ratio))
        if 'indices' in state:
            self.plan = Plan(
                state['indices'].cpu(),
                state['weights'].cpu(),
                state['threshold'],
                state['variance_ratio'],
            )
            self.samples_done = state['samples_done']

    def _restore_data(self, state: dict[str, Any]) -> None:
        """Make sure that indices stand for the images of the checkpoint.

        Checkpoints of older versions do not tell.
        """
        if 'fingerprint' in state:
            self.fingerprint = fingerprint(self.dataset.dataset)
            check_fingerprint(state['fingerprint'], self.fingerprint)
        if 'identities' in state:
            self.identities.load_state_dict(state['identities'])

    def _restore_draws(self, runner: Any, states: list[Any]) -> None:
        if not self.random_states.load_state_dict(states):
            runner.logger.warning(
                f'the checkpoint has the random states of {len(states)} '
                f'processes, and this run has {get_world_size()}: what the '
                'model draws at random (dropout) is drawn anew'
            )

    def _restore_without_state(self, runner: Any) -> None:
        """Start pruning in a run that began without it."""
        runner.logger.warning(
            'the checkpoint has no state of InfoBatch, so no sample has a '
            'score yet: the first round after it uses all data'
        )
        passed = self.clock.pass_ticks
        if self.is_epoch_based:
            self.clock.move_to(runner.epoch * passed)
        else:
            self.clock.move_to(runner.iter)
        self.round = self.clock.now // passed
        self.samples_planned = self.round * len(self.weights)
        self.samples_seen = round(self.clock.progress * self.samples_budget)

    # Time

    def before_val(self, runner: Any) -> None:
        """Leave validation out of the training's time and draws."""
        self._pause()
        if self.exact_resume:
            self.random_states.set_aside()

    def after_val(self, runner: Any) -> None:
        """Go on with the training's draws, and its time within a round."""
        self.random_states.take_up()
        if self.plan is not None:
            self._go_on()

    def _go_on(self) -> None:
        self.round_time.start()
        self.train_time.start()

    def _pause(self) -> None:
        self.round_time.stop()
        self.train_time.stop()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the time of a block as overhead."""
        self.overhead.start()
        try:
            yield
        finally:
            self.overhead.stop()
