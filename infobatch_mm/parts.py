"""The parts of a pruned run, bound together, and what a round does to them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from mmengine.dist import get_world_size

from . import binding, checks, ranks
from .datasets.identity import Identities
from .heads import scores_in_one_pass
from .host.batches import deal_batches
from .ledger import Ledger
from .pacing import FEWER_STEPS, SMALLER_BATCHES, Dealing
from .pruned_run import PrunedRun
from .pruning import NoPruningPolicy
from .randomness import RandomStates, seed_workers
from .records import RunRecords, resumed_text
from .rounds import Policy
from .sampler import InfoBatchSampler
from .scores import CLASS_BALANCED, GRADIENT_NORM, IMAGE_MEAN, ScoreBoard
from .steps import Steps

# Of the samples of a round; more are said.
_MANY_SUBSTITUTES = 0.2


class Options(Protocol):
    """What is asked of a run; see :class:`InfoBatchHook`."""

    policy: Policy
    delta: float
    score: str | None
    score_momentum: float
    warmup_rounds: int
    unweighted: str | Sequence[str]
    exact_resume: bool
    pacing: str | None
    smallest_batch: int


class Parts:
    """The parts of a pruned run: those that its config has built, and ours.

    Args:
        runner (Runner): The runner of a run that is about to begin.
        options (Options): What is asked of the run.

    Attributes:
        loader (DataLoader): The train dataloader.
        sampler (InfoBatchSampler): Its sampler.
        dataset (IndexedDataset): Its data set.
        identities (Identities): What its samples are.
        run (PrunedRun): The state of the run.
        ledger (Ledger): What the weighted heads record to.
        steps (Steps): What is done around each step.
        random_states (RandomStates): The draws of training.
        records (RunRecords): The files that the run leaves behind.
    """

    def __init__(self, runner: Any, options: Options) -> None:
        self.loader = runner.train_dataloader
        self.sampler = binding.find_sampler(self.loader)
        self.dataset = binding.find_dataset(self.loader)
        self.identities = Identities(
            self.dataset.wrapped, len(self.loader.dataset)
        )
        if get_world_size() > 1:
            ranks.check_same_samples(self.identities.fingerprint)
        score = score_of(runner, options)
        self.run = new_run(runner, self.sampler, options, score)
        checks.check_pacing(self.run, runner.logger)
        checks.check_late_hooks(self.run, runner.hooks, runner.logger)
        checks.check_readers(self.run, runner.hooks, runner.logger)
        checks.check_annealing(self.run, runner.logger)
        self.ledger = Ledger(
            class_balanced=score == CLASS_BALANCED,
            gradient_norm=score == GRADIENT_NORM,
        )
        self.steps = Steps(
            runner, self.run, self.ledger, self.identities, options.unweighted
        )
        self.random_states = RandomStates()
        self.random_states.device = self.run.board.scores.device
        self.exact_resume = options.exact_resume
        if self.exact_resume:
            # Else each iteration of the dataloader draws the seed of its
            # workers from the global one.
            self.loader.generator = torch.Generator()
        self.records = RunRecords(runner.work_dir)
        self._gathered: tuple[int, int] | None = None

    def go_on_from(self, state: Mapping[str, Any], runner: Any) -> None:
        """Take up a resumed run where its checkpoint left it.

        Args:
            state (dict): The entry of the checkpoint; empty if it has none.
            runner (Runner): The runner of the run.
        """
        if not state:
            runner.logger.warning(
                'the checkpoint has no state of InfoBatch, so no sample has '
                'a score yet: the first round after it uses all data'
            )
            self.run.begin_without_state(
                iters=runner.iter, epochs=runner.epoch
            )
            return
        warnings = self.run.load_state_dict(state)
        checks.check_seed(*binding.seed_setting(runner.cfg), state)
        self.identities.load_state_dict(state)
        if self.exact_resume:
            warnings += self.random_states.load_state_dict(state)
            self.random_states.put_back()
        self.sampler.seed = self.run.seed
        is_over = self.run.plan is not None and self.run.round < runner.epoch
        if is_over and not binding.has_rounds(runner.train_loop):
            self.run.end_round()  # it was saved between that and its end
        for warning in warnings:
            runner.logger.warning(warning)
        runner.logger.info(resumed_text(self.run))

    # Rounds

    def begin_round(self, runner: Any) -> None:
        """Plan the coming round, unless it is resumed, and deal it out."""
        run = self.run
        binding.check_heads(runner.model, self.steps.heads)
        each = run.batch_size // self.sampler.world_size
        checks.check_batch_size(self.loader, each)
        checks.check_length(self.loader.dataset, run.total)
        self.sampler.set_epoch(run.round)
        if self.exact_resume:
            self.dataset.seed_round(run.seed, run.round)
            seed_workers(self.loader, (run.seed, run.round))
        if run.plan is None:
            self._draw_plan(runner)
        else:
            # Once more, after what hooks draw when an epoch begins.
            self.random_states.put_back()
        self._deal_out()
        run.begin_round(
            iters=len(self.loader),
            samples=self.sampler.samples_of_all_ranks,
            first_iter=runner.iter,
        )
        ranks.check_same_plan(run.plan_digest)
        self.steps.begin_round(runner.model, prunes=run.drawn < run.total)

    def _draw_plan(self, runner: Any) -> None:
        run = self.run
        run.draw_plan(self.sampler.generator())
        if run.keeps_fewest:
            assert run.dealing is not None
            runner.logger.info(
                f'InfoBatch round {run.round} keeps {run.drawn} of '
                f'{run.total} samples, the fewest that smallest_batch='
                f'{run.dealing.smallest_batch} allows'
            )
        if run.missed is not None:
            runner.logger.warning(
                f'InfoBatch round {run.round} keeps {run.drawn} of '
                f'{run.total} samples, where policy.keep asks for '
                f'{run.missed}: whole batches allow no nearer number, or too '
                'many samples have no score yet'
            )
        if run.is_tied:
            runner.logger.warning(
                f'InfoBatch round {run.round} keeps all samples, since all '
                'scores are the same and none is below the threshold. With '
                f'score={GRADIENT_NORM!r} it is so for a loss like L1, whose '
                f'gradients all have one norm: set score={IMAGE_MEAN!r}'
            )

    def _deal_out(self) -> None:
        """Hand what is left of the plan to the sampler."""
        plan, done = self.run.remaining
        steps = self.run.steps_to_deal
        if steps is None:
            checks.check_equal_batches(
                self.sampler,
                len(plan) - done,
                self.run.batch_size // self.sampler.world_size,
            )
        self.sampler.begin_round(plan, start=done, steps=steps)

    def gather_scores(self, runner: Any) -> None:
        """Merge the scores of a round that ends, and count what has none."""
        self.gather_state()
        share = self.steps.substitutes / max(1, self.steps.samples)
        if share > _MANY_SUBSTITUTES:
            runner.logger.warning(
                f'InfoBatch round {self.run.round}: {share:.0%} of the '
                'samples stand in for others, since the data set could not '
                'read those, or called its _rand_another(). They get no '
                'score; what they stand in for keeps the one that it has, and '
                'without one is not pruned'
            )
        if self.run.round == 0 and self.identities.are_unknown:
            runner.logger.warning(
                'the samples of the train data set have no img_path, and it '
                'is no BaseDataset: if it lists them in another order when '
                'the run is resumed, or on another rank, scores go to other '
                'samples, and nothing can tell. Keep its order fixed'
            )
        nonfinite = self.run.board.nonfinite
        if nonfinite:
            runner.logger.warning(
                f'InfoBatch round {self.run.round}: {nonfinite} '
                'scores were NaN or infinite. Their samples are kept at '
                'weight 1 until they give a finite one'
            )

    # Checkpoints

    def gather_state(self) -> None:
        """Gather what a checkpoint holds of all ranks; all must call it."""
        self._gathered = self._position
        ranks.merge_scores(self.run.board)
        if self.run.trained is not None:
            ranks.merge_trained(self.run.trained)
        if self.exact_resume:
            self.random_states.gather(self._position)

    def entry(self) -> dict[str, Any]:
        """Return the entry of a checkpoint, as tensors and plain scalars."""
        state = self.run.state_dict() | self.identities.state_dict()
        if self.exact_resume:
            state |= self.random_states.state_dict(self._position)
        return state

    @property
    def is_gathered(self) -> bool:
        """bool: Whether this rank has what a checkpoint needs of others."""
        return get_world_size() == 1 or self._gathered == self._position

    @property
    def _position(self) -> tuple[int, int]:
        return self.run.round, self.run.samples_done


def score_of(runner: Any, options: Options) -> str:
    """Return what the score of an image is: what is cheap, unless it is set.

    Args:
        runner (Runner): The runner.
        options (Options): What is asked of the run.
    """
    if options.score is not None:
        return options.score
    names = [
        f'{name} ({type(head).__name__})'
        for name, head in binding.find_heads(runner.model).items()
        if not scores_in_one_pass(head)
    ]
    if not names:
        return IMAGE_MEAN
    if not isinstance(options.policy, NoPruningPolicy):
        runner.logger.info(
            f'score={GRADIENT_NORM!r}, as the loss of {", ".join(names)} '
            'does not give that of each image. With '
            f'score={IMAGE_MEAN!r} it is called once an image more'
        )
    return GRADIENT_NORM


def new_run(
    runner: Any, sampler: InfoBatchSampler, options: Options, score: str
) -> PrunedRun:
    """Return the state of a run that is about to begin.

    With smaller batches it also makes the dataloader deal them.

    Args:
        runner (Runner): The runner.
        sampler (InfoBatchSampler): That of its train dataloader.
        options (Options): What is asked of the run.
        score (str): What the score of an image is.
    """
    loop, loader = runner.train_loop, runner.train_dataloader
    clock, world_size = binding.clock_of(loop), get_world_size()
    batch_size = binding.global_batch_size(loader, world_size)
    smallest = int(options.smallest_batch)
    keeps_order = binding.keeps_order(loader)  # before batches are dealt
    wanted = Dealing(clock.pass_ticks, batch_size, world_size, smallest)
    dealing = wanted if deals(runner, options, wanted) else None
    board = ScoreBoard(
        len(loader.dataset),
        device=next(runner.model.parameters()).device,
        momentum=options.score_momentum,
        shared=world_size > 1,
    )
    return PrunedRun(
        options.policy,
        clock,
        board,
        batch_size=batch_size,
        samples_budget=binding.samples_budget(loader, loop),
        seed=sampler.seed,
        delta=options.delta,
        score=score,
        warmup_rounds=options.warmup_rounds,
        trims_rounds=binding.has_rounds(loop),
        keeps_order=keeps_order,
        dealing=dealing,
    )


def deals(runner: Any, options: Options, dealing: Dealing) -> bool:
    """Tell whether rounds are spent in smaller batches, and see that they are.

    Args:
        runner (Runner): The runner, whose dataloader is made to deal them.
        options (Options): What is asked of the run.
        dealing (Dealing): How samples would be dealt.

    Raises:
        ValueError: If it is asked for, and no batch can be made smaller, or
            a loss is a sum over it.
    """
    if options.pacing == FEWER_STEPS or isinstance(
        options.policy, NoPruningPolicy
    ):
        return False
    heads = binding.find_heads(runner.model)
    try:
        dealing.check()
        binding.check_means(heads)
        deal_batches(runner.train_dataloader)
    except ValueError as error:
        if options.pacing == SMALLER_BATCHES:
            raise
        runner.logger.warning(f'pacing={FEWER_STEPS!r} is taken: {error}')
        return False
    return True
