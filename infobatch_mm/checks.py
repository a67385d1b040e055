"""What a run and its settings must be like, asked before its first step."""

import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from mmengine.hooks import CheckpointHook
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .pacing import PACINGS
from .pruned_run import PrunedRun
from .pruning import NoPruningPolicy
from .pruning.prune_ratio import is_number
from .sampler import InfoBatchSampler
from .scores import SCORES

# Hooks that take statistics of the training data.
_READERS = ('PreciseBNHook',)
# Settings of hooks that name an iteration.
_BEGINS = ('begin_iter', 'action_iter')


def check_once(run: Any) -> None:
    """Raise a RuntimeError if a hook has a run already."""
    if run is not None:
        raise RuntimeError(
            'runner.train() was called a second time, but a pruned run ends '
            'with its budget: its clock, scores and records cannot begin '
            'anew. Build a new Runner, with resume=True and a larger '
            'max_epochs or max_iters to go on'
        )


def check_hooks(hooks: Sequence[Any], ours: Any) -> None:
    """Raise a ValueError if the hooks of a run do not go together.

    Args:
        hooks (list): The hooks of the run, in the order of their priorities.
        ours (InfoBatchHook): The one that asks.
    """
    if sum(isinstance(hook, type(ours)) for hook in hooks) > 1:
        raise ValueError(
            f'the run has more than one {type(ours).__name__}, which would '
            'weight and score each batch twice. Keep one in custom_hooks'
        )
    for hook in hooks[: hooks.index(ours)]:
        if isinstance(hook, CheckpointHook):
            raise ValueError(
                f'{type(hook).__name__} (priority {hook.priority}) comes '
                f'before {type(ours).__name__} (priority {ours.priority}), so '
                'it would save each step before its scores and its schedule '
                'are counted, and a resumed run would be a step behind. Leave '
                'the priorities of both out, or give the CheckpointHook the '
                'greater number'
            )
    for hook in hooks:
        recipes = getattr(hook, 'schedule', None)
        if isinstance(recipes, Mapping) and any(
            isinstance(recipe, Mapping) and 'loss' in recipe
            for recipe in recipes.values()
        ):
            raise ValueError(
                f'{type(hook).__name__} switches to another loss in the '
                'middle of the run, whose values cannot be compared with the '
                'scores of the loss before it. Take the switch of the loss '
                'out of its schedule, or train without InfoBatch'
            )


def check_pacing(run: PrunedRun, logger: Any) -> None:
    """Say which pacing a run has, and what the smallest batch allows."""
    dealing = run.dealing
    if isinstance(run.policy, NoPruningPolicy):
        return
    if dealing is None:
        logger.info(
            f'pacing={run.pacing!r}: a pruned round has fewer steps, each '
            'longer by as much'
        )
        return
    fewest = min(dealing.fewest, run.total)
    logger.info(
        f'pacing={run.pacing!r}: a round has the {dealing.steps} steps of a '
        f'full pass, and keeps at least {fewest} of {run.total} samples '
        f'({fewest / run.total:.0%}), since smallest_batch='
        f'{dealing.smallest_batch}'
    )


def check_late_hooks(
    run: PrunedRun, hooks: Sequence[Any], logger: Any
) -> None:
    """Say which hooks wait for an iteration that comes late, or never."""
    if isinstance(run.policy, NoPruningPolicy) or run.dealing is not None:
        return
    late = [
        f'{type(hook).__name__} ({name}={at})'
        for hook in hooks
        for name in _BEGINS
        if isinstance(at := getattr(hook, name, None), int) and at > 0
    ]
    if late:
        logger.warning(
            f'pacing={run.pacing!r}: a pruned round has fewer iterations than '
            'a full one, so that what waits for one comes late, or never: '
            f'{", ".join(late)}. Lower that number, count in epochs, or set '
            "pacing='smaller_batches', which keeps all iterations"
        )


def check_readers(run: PrunedRun, hooks: Sequence[Any], logger: Any) -> None:
    """Say which hooks take what a round keeps for the training data."""
    readers = [
        type(hook).__name__
        for hook in hooks
        if any(kind.__name__ in _READERS for kind in type(hook).__mro__)
    ]
    if readers and not isinstance(run.policy, NoPruningPolicy):
        logger.warning(
            f'{", ".join(readers)} takes statistics of the train dataloader, '
            'which gives the samples that a round keeps, the hard ones more '
            'often than the data has them, and nothing weights them there: '
            'up to the last rounds, of all data, validation and checkpoints '
            'have biased statistics. Leave it out, or see that the last one '
            'is of a round of all data (delta below 1)'
        )


def check_annealing(run: PrunedRun, logger: Any) -> None:
    """Say so if a run prunes in no round, or in its last one too."""
    clock = run.clock
    if isinstance(run.policy, NoPruningPolicy):
        return
    # The rounds before it take scores of all samples.
    first = max(1, int(run.warmup_rounds)) * clock.pass_ticks
    if round(first - run.delta * clock.budget, 6) >= 0:
        logger.warning(
            f'nothing will be pruned: up to iteration {first} of the full-'
            f'data run all {run.total} samples get scores (warmup_rounds='
            f'{run.warmup_rounds}), and rounds that begin after '
            f'{run.delta * clock.budget:g} of {clock.budget} use all data '
            f'(delta={run.delta}). Train longer or, if a RepeatDataset makes '
            'rounds that long, lower its times'
        )
        return
    last = (clock.budget - 1) // clock.pass_ticks * clock.pass_ticks
    share = last / clock.budget
    if run.delta == 1:
        return
    if round(share - run.delta, 6) < 0:
        logger.warning(
            f'delta={run.delta}: rounds that begin from there on use all '
            f'data, but the last one begins at {share:.3f} of the run, so '
            'that none does. For a last round of all data set '
            f'delta={math.floor(1000 * share) / 1000}'
        )


def check_planned(ids: Tensor, weights: Tensor) -> None:
    """Raise a RuntimeError if a batch has samples that its round leaves out.

    Args:
        ids (Tensor): The samples of the batch, shape (B,).
        weights (Tensor): Their weights, NaN where the round has none.
    """
    if weights.isnan().any():
        raise RuntimeError(
            f'the samples {ids[weights.isnan()].tolist()} of a batch are not '
            'in the plan of its round, so they have no weight. Some other '
            'code chooses samples too: a batch sampler that fills batches by '
            'itself, or a hook that calls set_epoch() of the sampler. Take '
            'it out, or train without InfoBatch'
        )


def check_same_loader(now: Any, ours: DataLoader) -> None:
    """Raise a RuntimeError if the train dataloader was replaced."""
    if now is not ours:
        raise RuntimeError(
            'runner.train_loop.dataloader was replaced in the middle of the '
            'run, so its samples are not those of the planned round, nor are '
            'their weights. Change the pipeline of its data set instead, or '
            'train without InfoBatch'
        )


def check_graph(model: nn.Module) -> None:
    """Raise a ValueError for a DDP that takes the look for its first step."""
    if getattr(model, 'static_graph', False):
        raise ValueError(
            'model_wrapper_cfg.static_graph=True learns the graph from the '
            'first backward pass, and that would be the one which looks for '
            'a part of the loss that escapes the weights: the ranks would '
            "train apart. Set unweighted='allow' of InfoBatchHook (train "
            'once without static_graph first, so that it has looked), or '
            'leave static_graph out'
        )


def check_iterated_once(loader: DataLoader, sampler: InfoBatchSampler) -> None:
    """Raise a RuntimeError if a round was begun anew by other code.

    Workers that live on serve one iterator, which starts again when the
    dataloader is iterated once more.
    """
    if sampler.iterations > 1 and loader.persistent_workers:
        raise RuntimeError(
            'the train dataloader was iterated once more within a round, by a '
            'hook for instance. With persistent_workers=True that begins the '
            'round anew, and some of its samples are trained on twice, others '
            'never. Set train_dataloader.persistent_workers=False'
        )


def check_batch_size(loader: DataLoader, batch_size: int) -> None:
    """Raise a RuntimeError if the batch size was changed during the run.

    Args:
        loader (DataLoader): The train dataloader.
        batch_size (int): Samples of a step on each rank, when it began.
    """
    now = getattr(loader.batch_sampler, 'batch_size', batch_size)
    if now != batch_size:
        raise RuntimeError(
            f'train_dataloader.batch_sampler.batch_size is {now}, and was '
            f'{batch_size} when training began, by which rounds are planned '
            'and samples counted. Leave it, or train without InfoBatch'
        )


def check_length(dataset: Sized, total: int) -> None:
    """Raise a RuntimeError if the length of the train data set has changed.

    Args:
        dataset (Sized): The train data set.
        total (int): Its samples when training began.
    """
    if len(dataset) != total:
        raise RuntimeError(
            f'the train data set has {len(dataset)} samples, and had '
            f'{total} when training began, of which scores are kept and '
            'rounds are drawn: others would never be trained on. Leave its '
            'length, or train without InfoBatch'
        )


def check_equal_batches(
    sampler: InfoBatchSampler, kept: int, batch_size: int
) -> None:
    """Raise a ValueError if the ranks would make different numbers of steps.

    Args:
        sampler (InfoBatchSampler): The sampler of the train dataloader.
        kept (int): Samples of the round, over all ranks.
        batch_size (int): Samples of a step on each rank.
    """
    ranks = sampler.world_size
    fewest, most = kept // ranks, -(-kept // ranks)
    if sampler.round_up or -(-fewest // batch_size) == -(-most // batch_size):
        return
    raise ValueError(
        f'train_dataloader.sampler.round_up=False gives {ranks} ranks '
        f'{most} and {fewest} of {kept} samples, so in batches of '
        f'{batch_size} some would make a step more and wait for the others '
        'for ever. Set round_up=True, or another batch size'
    )


def check_seed(
    name: str, setting: int | None, state: Mapping[str, Any]
) -> None:
    """Raise a ValueError if a run asks for another seed than its checkpoint.

    Args:
        name (str): The setting that the seed comes from.
        setting (int, optional): The seed; None takes the checkpoint's.
        state (dict): The entry of the checkpoint.
    """
    if setting in (None, state['seed']):
        return
    raise ValueError(
        f'{name} is {setting}, but the checkpoint was made with seed '
        f'{state["seed"]}. Set that one, or leave the seed out to take it '
        'from the checkpoint'
    )


def check_settings(
    score: str | None,
    score_momentum: float,
    warmup_rounds: int,
    pacing: str | None,
    smallest_batch: int,
    exact_resume: bool | None,
) -> None:
    """Raise a ValueError that names a setting which is out of range."""
    if score not in (None, *SCORES):
        raise ValueError(
            f'score={score!r} is not known; there are {", ".join(SCORES)}'
        )
    if not is_number(score_momentum) or not 0 <= score_momentum < 1:
        raise ValueError(
            f'score_momentum={score_momentum!r} is not in [0, 1); 0 scores a '
            'sample by its last loss'
        )
    if not is_number(warmup_rounds) or not (
        warmup_rounds >= 0 and warmup_rounds % 1 == 0
    ):
        raise ValueError(
            f'warmup_rounds={warmup_rounds!r} is not a number of rounds; 0 '
            'prunes as soon as there are scores'
        )
    if pacing not in (None, *PACINGS):
        raise ValueError(
            f'pacing={pacing!r} is not known; there are {", ".join(PACINGS)}'
        )
    if not is_number(smallest_batch) or not (
        smallest_batch >= 1 and smallest_batch % 1 == 0
    ):
        raise ValueError(
            f'smallest_batch={smallest_batch!r} is not a number of samples; '
            '2 is the fewest that batch norm on one rank can train on'
        )
    if exact_resume not in (None, True, False):
        raise ValueError(
            f'exact_resume={exact_resume!r} is not known; with True the draws '
            'of a resumed run are those of one that was not stopped'
        )
