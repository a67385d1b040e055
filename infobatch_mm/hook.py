"""The hook: what happens in a run, told to the parts of pruning."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from . import binding, checks, ranks, records
from .datasets.identity import Identities
from .host.checkpoint import allow_resuming, bind_checkpoint_hooks
from .host.running import (
    announce_max_iters,
    is_resuming,
    step_schedulers,
    steps_schedulers,
)
from .ledger import Ledger
from .pacing import FEWER_STEPS
from .pruned_run import STATE_KEY, PrunedRun
from .pruning import NoPruningPolicy
from .pruning.registry import build_policy
from .randomness import RandomStates
from .reach import check_unweighted
from .settings import check_settings
from .steps import Steps


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
    ``infobatch/clock``, ``infobatch/kept_ratio``, ``infobatch/saved_ratio``,
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
        unweighted (str | list[str]): What to do if a part of the loss
            escapes the weights of the samples, which is looked for before the
            first step. ``'refuse'`` (default): stop. ``'allow'``: do not
            look. A list of names of parameters, or of modules: only these may
            get a gradient from such a part, for instance a weight penalty.
        exact_resume (bool, optional): Whether a resumed run repeats the
            random draws of an uninterrupted one: states of the random number
            generators go into checkpoints, and a sample is augmented by
            draws that depend on seed, round and index alone. None (default):
            yes, unless the policy is ``NoPruningPolicy``, with which a run is
            the stock run to the bit and draws what that draws.
        pacing (str): How a pruned round spends its samples.
            ``'fewer_steps'`` (default): in batches of full size, of which
            there are fewer, each a longer step (the paper).
            ``'smaller_batches'``: in as many steps as a full pass has, so that
            all that counts steps is that of the stock run.
        smallest_batch (int): The fewest samples of a batch on a rank, with
            smaller batches. Rounds keep as many samples as that takes.
            Defaults to 2, for batch norm that is not synchronised.

    Attributes:
        run (PrunedRun, optional): The state of the run, once it has begun.
            What it knows can be read off the hook as well: ``hook.board``,
            ``hook.clock``, ``hook.plan``, ``hook.samples_seen``, ...
    """

    # After ParamSchedulerHook (70), whose steps the clock completes, and
    # before CheckpointHook (90), which must save the clock and the scores of
    # the iteration that it saves.
    priority = 75

    run: PrunedRun | None = None

    def __init__(
        self,
        policy: Mapping[str, Any] = dict(type='InfoBatchPolicy'),
        *,
        delta: float = 0.875,
        score: str = 'image_mean',
        score_momentum: float = 0.0,
        warmup_rounds: int = 0,
        unweighted: str | Sequence[str] = 'refuse',
        exact_resume: bool | None = None,
        pacing: str = FEWER_STEPS,
        smallest_batch: int = 2,
    ) -> None:
        check_unweighted(unweighted)
        check_settings(
            score, score_momentum, warmup_rounds, pacing, smallest_batch
        )
        self.policy = build_policy(policy, delta)
        self.delta = delta
        self.score = score
        self.score_momentum = score_momentum
        self.warmup_rounds = warmup_rounds
        self.unweighted = unweighted
        self.pacing, self.smallest_batch = pacing, smallest_batch
        if exact_resume is None:
            exact_resume = not isinstance(self.policy, NoPruningPolicy)
        self.exact_resume = exact_resume
        self.random_states = RandomStates()
        self.ledger = Ledger(class_balanced=score == 'class_balanced')
        self._resumed: Mapping[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        run = self.__dict__.get('run')
        if run is None or name.startswith('_'):
            raise AttributeError(
                f'{type(self).__name__} has no {name}, or not before its run '
                'has begun'
            )
        return getattr(run, name)

    # The run

    def before_run(self, runner: Any) -> None:
        """Make sure that a checkpoint can be resumed."""
        if is_resuming(runner):
            allow_resuming()

    def before_train(self, runner: Any) -> None:
        """Bind the parts of the run, or say which one is missing."""
        checks.check_once(self.run)
        checks.check_hooks(runner.hooks, self)
        self.loader = runner.train_dataloader
        self.sampler = binding.find_sampler(self.loader)
        self.dataset = binding.find_dataset(self.loader)
        self.identities = Identities(
            self.dataset.dataset, len(self.loader.dataset)
        )
        self.steps_schedulers = steps_schedulers(runner)
        run = binding.new_run(
            runner,
            self.policy,
            self.sampler,
            delta=self.delta,
            score=self.score,
            score_momentum=self.score_momentum,
            warmup_rounds=self.warmup_rounds,
            pacing=self.pacing,
            smallest_batch=self.smallest_batch,
        )
        checks.check_pacing(run, runner.logger)
        self.steps = Steps(
            runner.model, run, self.ledger, self.identities, self.unweighted
        )
        self.random_states.device = run.board.scores.device
        if self.exact_resume:
            # Else each iteration of the dataloader draws from the global one,
            # a seed for workers whose samples have seeds of their own.
            self.loader.generator = torch.Generator()
        if self._resumed is not None:
            self._go_on_from(self._resumed, run, runner)
        bind_checkpoint_hooks(runner, self)
        self.records = records.RunRecords(runner.work_dir)
        if is_main_process():
            self.records.begin(run.round if is_resuming(runner) else None)
        self.run, self._resumed = run, None

    def _go_on_from(
        self, state: Mapping[str, Any], run: PrunedRun, runner: Any
    ) -> None:
        """Take up a resumed run where its checkpoint left it."""
        if not state:
            runner.logger.warning(
                'the checkpoint has no state of InfoBatch, so no sample has '
                'a score yet: the first round after it uses all data'
            )
            run.begin_without_state(iters=runner.iter, epochs=runner.epoch)
            return
        warnings = run.load_state_dict(state)
        checks.check_seed(*binding.seed_setting(runner.cfg), state)
        self.identities.load_state_dict(state)
        if self.exact_resume:
            warnings += self.random_states.load_state_dict(state)
            self.random_states.put_back()
        self.sampler.seed = run.seed
        for warning in warnings:
            runner.logger.warning(warning)
        runner.logger.info(records.resumed_text(run))

    def after_train(self, runner: Any) -> None:
        """Write the summary and log it as a table."""
        if is_main_process():
            summary = self.summary(runner)
            self.records.write_summary(summary)
            runner.logger.info(f'\n{records.summary_table(summary)}')

    def summary(self, runner: Any) -> dict[str, Any]:
        """Return what the run has cost, against its full-data budget."""
        assert self.run is not None
        metric = records.metric_of(runner.message_hub.log_scalars)
        return records.summary_of(self.run, runner.iter) | metric

    # Rounds

    def before_train_epoch(self, runner: Any) -> None:
        """Begin the round, where an epoch is a round."""
        if not binding.has_rounds(runner.train_loop):
            self.before_train_round(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """End the round, where an epoch is a round."""
        if not binding.has_rounds(runner.train_loop):
            self.after_train_round(runner)

    def before_train_round(self, runner: Any) -> None:
        """Plan the coming round and hand the plan to the sampler."""
        run = self.run
        assert run is not None
        run.times.go_on()
        with run.times.counted():
            checks.check_heads(runner.model, self.steps.heads)
            self.sampler.set_epoch(run.round)
            if self.exact_resume:
                self.dataset.seed_round(run.seed, run.round)
            if run.plan is None:
                self._begin_round(runner)
            else:
                # Once more, after what hooks draw when an epoch begins.
                self.random_states.put_back()
            plan, done = run.remaining
            steps = run.steps_to_deal
            if steps is None:
                checks.check_equal_batches(
                    self.sampler,
                    len(plan) - done,
                    run.batch_size // self.sampler.world_size,
                )
            self.sampler.begin_round(plan, start=done, steps=steps)
            run.begin_round(
                iters=len(self.loader),
                samples=self.sampler.samples_of_all_ranks,
                first_iter=runner.iter,
            )
            ranks.check_same_plan(run.plan_digest)
            announce_max_iters(
                runner,
                runner.iter + run.iters_left(),
                is_exact=run.knows_iters,
            )
            runner.visualizer.add_scalars(
                records.round_scalars(run), step=runner.iter
            )
            runner.logger.info(records.round_text(run))

    def _begin_round(self, runner: Any) -> None:
        assert self.run is not None
        self.run.draw_plan(self.sampler.generator())
        if self.run.keeps_fewest:
            runner.logger.info(
                f'InfoBatch round {self.run.round} keeps {self.run.drawn} of '
                f'{self.run.total} samples, the fewest that smallest_batch='
                f'{self.smallest_batch} allows'
            )

    def after_train_round(self, runner: Any) -> None:
        """Merge the scores and record the round that ended."""
        run = self.run
        assert run is not None
        with run.times.counted():
            self.gather_state()
            if run.board.nonfinite:
                runner.logger.warning(
                    f'InfoBatch round {run.round}: {run.board.nonfinite} '
                    'losses were NaN or infinite. Their samples are kept at '
                    'weight 1 until they give a finite one'
                )
        run.times.pause()
        if is_main_process():
            self.records.add_round(records.round_record(run))
        run.end_round()

    # Steps

    def before_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Look up the weights of the batch by the ids that came with it."""
        assert self.run is not None
        checks.check_same_loader(runner.train_dataloader, self.loader)
        self.random_states.forget()
        with self.run.times.counted():
            self.steps.begin(runner, data_batch)

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Score the batch and advance the clock."""
        assert self.run is not None
        if self.steps.in_flight:
            with self.run.times.counted():
                self._end_step(runner)

    def _end_step(self, runner: Any) -> None:
        ticks = self.steps.end(runner)
        if self.steps_schedulers:
            for _ in range(ticks - 1):
                step_schedulers(runner.param_schedulers)

    # Checkpoints

    def gather_state(self) -> None:
        """Gather what a checkpoint holds of all ranks; all must call it."""
        assert self.run is not None
        ranks.merge_scores(self.run.board)
        if self.run.trained is not None:
            ranks.merge_trained(self.run.trained)
        if self.exact_resume:
            self.random_states.gather(self._position)

    @property
    def _position(self) -> tuple[int, int]:
        assert self.run is not None
        return self.run.round, self.run.samples_done

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the state of the run, as tensors and plain scalars."""
        if self.run is None:
            # Saved before training: what it resumes from, if anything.
            if self._resumed:
                checkpoint[STATE_KEY] = self._resumed
            return
        if self.steps.is_trained:
            # A hook of a higher priority saves in the middle of a step.
            self._end_step(runner)
        state = self.state_dict() | self.identities.state_dict()
        if self.exact_resume:
            state |= self.random_states.state_dict(self._position)
        checkpoint[STATE_KEY] = state

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the state of a run that is resumed; ``load_from`` has none."""
        if is_resuming(runner):
            self._resumed = checkpoint.get(STATE_KEY) or {}

    # Time

    def before_val(self, runner: Any) -> None:
        """Leave validation out of the training's time and draws."""
        if self.run is not None:
            self.run.times.pause()
            if self.exact_resume:
                self.random_states.set_aside()

    def after_val(self, runner: Any) -> None:
        """Go on with the training's draws, and its time within a round."""
        self.random_states.take_up()
        if self.run is not None and self.run.plan is not None:
            self.run.times.go_on()
