"""The hook: what happens in a run, told to the parts of pruning."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from . import binding, checks, records
from .host.checkpoint import bind_checkpoint_hooks
from .host.checkpoint_files import allow_resuming
from .host.running import announce_max_iters, is_resuming, show_scores
from .parts import Parts
from .pruned_run import STATE_KEY, PrunedRun
from .pruning import NoPruningPolicy
from .pruning.registry import build_policy
from .reach import check_unweighted


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
    backends. TensorBoard and W&B get a histogram of the scores a round,
    ``infobatch/scores``.

    Args:
        policy (dict): Config of the pruning policy. Defaults to
            ``dict(type='InfoBatchPolicy')``.
        delta (float): The share of the full-data budget from which all data
            is used (annealing), in [0, 1]: by rounds that begin there or
            later, of which a run of fewer than ``1 / (1 - delta)`` rounds has
            none. Defaults to 0.875.
        score_momentum (float): Makes a score an exponential moving average
            of the losses of its sample, in [0, 1): the share of the old score
            in the new one. Defaults to 0.0, the last loss alone.
        score (str, optional): What the score of an image is.
            ``'image_mean'``: its loss (the paper). ``'class_balanced'``: the
            mean over its classes of the mean loss of their pixels, so that a
            small object counts as much as a large one; for heads of mmseg
            with plain cross-entropy. ``'gradient_norm'``: the norm of the
            gradient of its loss by what enters the losses of the heads
            (logits, as a rule), which comes with the backward pass, for every
            head and loss at next to no cost. None (default): the loss where
            it comes in one pass (plain cross-entropy, and the like of
            mmpretrain); else, where the loss of a head would have to be
            called once an image more, the norm of the gradient.
        warmup_rounds (int): Number of rounds at the start of the run that
            use all data, while scores are taken. Defaults to 0; the first
            round, which has no scores, uses all data in any case.
        unweighted (str | list[str]): What to do if a part of the loss
            escapes the weights of the samples, which is looked for before the
            first step, and before that of the first, second, fourth, ...
            pruned round. ``'refuse'`` (default): stop. ``'allow'``: do not
            look. A list of names of parameters, or of modules: only these may
            get a gradient from such a part, for instance a weight penalty.
        exact_resume (bool, optional): Whether a resumed run repeats the
            random draws of an uninterrupted one: states of the random number
            generators go into checkpoints, and a sample is augmented by
            draws that depend on seed, round and index alone. None (default):
            yes, unless the policy is ``NoPruningPolicy``, with which a run by
            epochs is the stock run to the bit and draws what that draws.
        pacing (str, optional): How a pruned round spends its samples.
            ``'smaller_batches'``: in as many steps as a full pass has, so that
            all that counts steps is that of the stock run.
            ``'fewer_steps'``: in batches of full size, of which there are
            fewer, each a longer step (the paper). None (default): smaller
            batches, but fewer steps where no batch can be made smaller, which
            the log says at the start.
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
    parts: Parts

    def __init__(
        self,
        policy: Mapping[str, Any] = dict(type='InfoBatchPolicy'),
        *,
        delta: float = 0.875,
        score: str | None = None,
        score_momentum: float = 0.0,
        warmup_rounds: int = 0,
        unweighted: str | Sequence[str] = 'refuse',
        exact_resume: bool | None = None,
        pacing: str | None = None,
        smallest_batch: int = 2,
    ) -> None:
        check_unweighted(unweighted)
        checks.check_settings(
            score,
            score_momentum,
            warmup_rounds,
            pacing,
            smallest_batch,
            exact_resume,
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
        self._loaded: Mapping[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        run = self.__dict__.get('run')
        if run is None or name.startswith('_'):
            raise AttributeError(
                f'{type(self).__name__} has no {name}, or not before its run '
                'has begun'
            )
        return getattr(run if hasattr(run, name) else self.parts, name)

    # The run

    def before_run(self, runner: Any) -> None:
        """Make sure that a checkpoint can be resumed."""
        if is_resuming(runner):
            allow_resuming()

    def before_train(self, runner: Any) -> None:
        """Bind the parts of the run, or say which one is missing."""
        checks.check_once(self.run)
        checks.check_hooks(runner.hooks, self)
        self.parts = parts = Parts(runner, self)
        is_resumed = runner.iter > 0  # which a checkpoint has told it
        if is_resumed:
            parts.go_on_from(self._loaded, runner)
        bind_checkpoint_hooks(runner, self)
        if is_main_process():
            parts.records.begin(
                parts.run.round if is_resumed else None,
                is_over=is_resumed and parts.run.clock.done,
            )
        self.run, self._loaded = parts.run, {}

    def after_train(self, runner: Any) -> None:
        """Write the summary and log it as a table."""
        if not is_main_process():
            return
        files = self.parts.records
        if files.are_complete:
            runner.logger.info(
                f'nothing was left to train: {files.summary_file} stays as it '
                'is'
            )
            return
        summary = self.summary(runner)
        files.write_summary(summary)
        runner.logger.info(f'\n{records.summary_table(summary)}')

    def summary(self, runner: Any) -> dict[str, Any]:
        """Return what the run has cost, against its full-data budget."""
        scalars = runner.message_hub.log_scalars
        metric = records.metric_of(scalars, runner.hooks)
        return self.parts.run.costs(runner.iter) | metric

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
        """Plan the coming round, and announce what it comes to."""
        run = self.parts.run
        run.times.go_on()
        with run.times.counted():
            self.parts.begin_round(runner)
            total = runner.iter + run.iters_left()
            announce_max_iters(runner, total, is_exact=run.knows_iters)
            scalars = records.round_scalars(run)
            runner.visualizer.add_scalars(scalars, step=runner.iter)
            runner.logger.info(records.round_text(run))

    def after_train_round(self, runner: Any) -> None:
        """Merge the scores and record the round that ended."""
        run = self.parts.run
        with run.times.counted():
            self.parts.gather_scores(runner)
        run.times.pause()
        if is_main_process():
            self.parts.records.add_round(
                records.round_record(run, runner.iter)
            )
            show_scores(runner.visualizer, run.board.scores, runner.iter)
        run.end_round()

    # Steps

    def before_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Look up the weights of the batch by the ids that came with it."""
        parts = self.parts
        checks.check_same_loader(runner.train_dataloader, parts.loader)
        checks.check_iterated_once(parts.loader, parts.sampler)
        parts.random_states.forget()
        with parts.run.times.counted():
            parts.steps.begin(runner, data_batch)

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Score the batch and advance the clock and the schedules."""
        if self.parts.steps.in_flight:
            with self.parts.run.times.counted():
                self.parts.steps.end(runner)

    # Checkpoints

    def gather_state(self) -> None:
        """Gather what a checkpoint holds of all ranks; all must call it."""
        self.parts.gather_state()

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the state of the run, as tensors and plain scalars."""
        if self.run is None:
            # Saved before training: what it resumes from, if anything.
            if self._loaded and (is_resuming(runner) or runner.iter > 0):
                checkpoint[STATE_KEY] = self._loaded
            return
        if self.parts.steps.is_trained:
            # A hook of a higher priority saves in the middle of a step.
            self.parts.steps.end(runner)
        if not self.parts.is_gathered:
            runner.logger.warning(
                'a checkpoint is saved by other code than a CheckpointHook, '
                'so that it lacks the scores that other ranks have found '
                'since the last one. Call gather_state() of InfoBatchHook on '
                'all ranks before'
            )
        checkpoint[STATE_KEY] = self.parts.entry()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the state, until it is known whether the run is resumed."""
        self._loaded = checkpoint.get(STATE_KEY) or {}

    # Time

    def before_val(self, runner: Any) -> None:
        """Leave validation out of the training's time and draws."""
        if self.run is not None:
            self.run.times.pause()
            if self.exact_resume:
                self.parts.random_states.set_aside()

    def after_val(self, runner: Any) -> None:
        """Go on with the training's draws, and its time within a round."""
        if self.run is not None:
            self.parts.random_states.take_up()
            if self.run.plan is not None:
                self.run.times.go_on()

    # A hook may test within training.
    before_test, after_test = before_val, after_val
