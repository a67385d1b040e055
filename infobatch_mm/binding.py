"""Find the parts of a run that belong together, or say which is missing."""

from collections.abc import Iterable
from typing import Any

from mmengine.dist import all_gather_object, get_world_size
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from .clock import FullDataClock
from .datasets.indexed import IndexedDataset
from .heads import (
    WeightedHeadMixin,
    has_pixel_losses,
    outermost_heads,
    seam_of,
)
from .host.slices import unsliced
from .sampler import InfoBatchSampler

# The layout of InfoBatchHook.state_dict().
STATE_VERSION = 2


def check_single(hooks: Iterable[Any], kind: type) -> None:
    """Raise a ValueError if there is more than one hook of a kind."""
    if sum(isinstance(hook, kind) for hook in hooks) > 1:
        raise ValueError(
            f'the run has more than one {kind.__name__}, which would weight '
            'and score each batch twice. Keep one in custom_hooks'
        )


def find_sampler(dataloader: DataLoader) -> InfoBatchSampler:
    """Return the sampler of a train dataloader.

    Raises:
        TypeError: If it is not an :class:`InfoBatchSampler`.
    """
    sampler = dataloader.sampler
    if not isinstance(sampler, InfoBatchSampler):
        # A batch sampler of the user's holds the sampler itself.
        sampler = getattr(dataloader.batch_sampler, 'sampler', sampler)
    if not isinstance(sampler, InfoBatchSampler):
        raise TypeError(
            'InfoBatchHook needs train_dataloader.sampler to be an '
            f'InfoBatchSampler, but it is {type(sampler).__name__}, which '
            "would never prune. Set sampler=dict(type='InfoBatchSampler')"
        )
    return sampler


def find_dataset(dataloader: DataLoader) -> IndexedDataset:
    """Return the data set of a train dataloader.

    Raises:
        TypeError: If its samples do not carry their index.
    """
    dataset = unsliced(dataloader.dataset)
    if not isinstance(dataset, IndexedDataset):
        raise TypeError(
            'InfoBatchHook needs train_dataloader.dataset to be an '
            f'IndexedDataset, but it is {type(dataset).__name__}, whose '
            'samples do not carry their index. Set '
            "dataset=dict(type='IndexedDataset', dataset=<the present one>)"
        )
    return dataset


def global_batch_size(dataloader: DataLoader, world_size: int) -> int:
    """Return the number of samples of a step, over all ranks."""
    batch_sampler: Any = dataloader.batch_sampler
    return (dataloader.batch_size or batch_sampler.batch_size) * world_size


def samples_budget(dataloader: DataLoader, loop: Any) -> int:
    """Return the number of samples that a full-data run would see.

    Must be called before the first round is planned.
    """
    world_size = get_world_size()
    if not isinstance(loop, EpochBasedTrainLoop):
        return loop.max_iters * global_batch_size(dataloader, world_size)
    if dataloader.drop_last:
        batch = global_batch_size(dataloader, world_size)
        return loop.max_epochs * len(dataloader) * batch
    return loop.max_epochs * find_sampler(dataloader).num_samples * world_size


def find_heads(model: nn.Module) -> dict[str, WeightedHeadMixin]:
    """Return what is weighted in a model, by the names of its heads.

    Raises:
        ValueError: If there is none, or if a module that computes a loss is
            not within a weighted head.
    """
    heads = dict(outermost_heads(model))
    seams = {name: seam_of(head) for name, head in heads.items()}
    unweighted = [
        f'{name} ({type(heads[name]).__name__})'
        for name, seam in seams.items()
        if not isinstance(seam, WeightedHeadMixin)
    ]
    if unweighted:
        raise ValueError(
            'these heads are not weighted, so the gradients of pruned '
            f'rounds would be biased: {", ".join(unweighted)}. Wrap each: '
            "dict(type='WeightedDecodeHead', head=<the present config>), or "
            "type='WeightedClsHead' for a head of mmpretrain"
        )
    if not heads:
        raise ValueError(
            'InfoBatchHook found no weighted head in the model, so no loss '
            "could be scored. Set decode_head=dict(type='WeightedDecodeHead',"
            " head=<the present config>), or head=dict(type='WeightedClsHead',"
            ' head=<the present config>) for mmpretrain'
        )
    return seams  # type: ignore[return-value]


def check_class_balanced(heads: dict[str, WeightedHeadMixin]) -> None:
    """Raise a ValueError unless every head can score by class."""
    cannot = [
        f'{name} ({type(head).__name__})'
        for name, head in heads.items()
        if not has_pixel_losses(head)
    ]
    if cannot:
        raise ValueError(
            "score='class_balanced' needs the loss of each pixel, which only "
            'heads of mmseg with plain cross-entropy and without a pixel '
            f'sampler give; these do not: {", ".join(cannot)}. Set '
            "score='image_mean'"
        )


def check_reported(heads: dict[str, WeightedHeadMixin], ledger: Any) -> None:
    """Raise a RuntimeError if a weighted head gave no losses in a step."""
    reporters = {id(head) for head in ledger.reporters}
    silent = [n for n, head in heads.items() if id(head) not in reporters]
    if silent:
        raise RuntimeError(
            'these heads did not call their loss_by_feat, or loss_module, in '
            'a training step, so their gradients were not weighted: '
            f'{", ".join(silent)}'
        )


def check_same_on_all_ranks(digest: str) -> None:
    """Raise a RuntimeError if the ranks have planned different rounds."""
    digests = all_gather_object(digest)
    if len(set(digests)) > 1:
        raise RuntimeError(
            'the ranks have planned different rounds, so samples would be '
            f'lost and the weights wrong: {digests}. All ranks need the same '
            'seed, data set and InfoBatch settings'
        )


def check_state(runner: Any, state: dict[str, Any], total: int) -> None:
    """Raise a ValueError if a checkpoint cannot be resumed by this run."""
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
    randomness = runner.cfg.get('randomness', {})
    seed = randomness.get('seed')
    if randomness.get('diff_rank_seed') or seed in (None, state['seed']):
        return
    raise ValueError(
        f'randomness.seed is {seed}, but the checkpoint was made with seed '
        f'{state["seed"]}. Set that one, or leave the seed out to take it '
        'from the checkpoint'
    )


def clock_of(loop: Any) -> FullDataClock:
    """Return the full-data clock of a train loop.

    mmengine's ``EpochBasedTrainLoop`` has none, but its rounds are its
    epochs, so that one can be made for it.

    Raises:
        TypeError: If the loop can neither give nor be given a clock.
    """
    if len(loop.dataloader) == 0:
        raise ValueError(
            'the train dataloader has no batch: its '
            f'{len(loop.dataloader.dataset)} samples are fewer than one batch '
            'on each rank and drop_last is set. Lower the batch size'
        )
    if hasattr(loop, 'clock'):
        return loop.clock
    if isinstance(loop, EpochBasedTrainLoop):
        return FullDataClock(loop.max_iters, len(loop.dataloader))
    raise TypeError(
        f'train_cfg.type is {type(loop).__name__}, in which a pruned round '
        'would neither end nor advance the schedule. Set '
        "train_cfg.type='InfoBatchIterBasedTrainLoop'"
    )
