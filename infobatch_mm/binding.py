"""Find the parts of a run that belong together, or say what is amiss."""

from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from .clock import EpochClock, FullDataClock
from .datasets.indexed import IndexedDataset
from .heads import (
    WeightedHeadMixin,
    has_pixel_losses,
    outermost_heads,
    seam_of,
)
from .host.datasets import unsliced
from .ledger import Ledger
from .sampler import InfoBatchSampler


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
    each = dataloader.batch_size or getattr(
        dataloader.batch_sampler, 'batch_size', None
    )
    if each is None:
        raise TypeError(
            'train_dataloader.batch_sampler '
            f'({type(dataloader.batch_sampler).__name__}) has no batch_size, '
            'so the samples of a step are not known. Give it that attribute'
        )
    return each * world_size


def samples_budget(dataloader: DataLoader, loop: Any) -> int:
    """Return the number of samples that a full-data run would see.

    Must be called before the first round is planned.
    """
    world_size = get_world_size()
    if has_rounds(loop):
        return loop.max_iters * global_batch_size(dataloader, world_size)
    if dataloader.drop_last:
        batch = global_batch_size(dataloader, world_size)
        return loop.max_epochs * len(dataloader) * batch
    return loop.max_epochs * find_sampler(dataloader).num_samples * world_size


def find_heads(model: nn.Module) -> dict[str, WeightedHeadMixin]:
    """Return what is weighted in a model, by the names of its heads.

    Raises:
        ValueError: If there is none, or if a module that computes a loss is
            not within a weighted head. A frozen one (a teacher's) need not
            be.
    """
    heads = {
        name: head
        for name, head in outermost_heads(model)
        if isinstance(seam_of(head), WeightedHeadMixin) or not is_frozen(head)
    }
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


def is_frozen(module: nn.Module) -> bool:
    """Tell whether a module has parameters, and none of them trains."""
    trains = [parameter.requires_grad for parameter in module.parameters()]
    return bool(trains) and not any(trains)


def training_heads(model: nn.Module) -> dict[str, Any]:
    """Return what is weighted, by the names of the heads that train.

    The frozen heads of a teacher may never be asked for a loss.
    """
    heads = dict(outermost_heads(model))
    seams = find_heads(model)
    return {n: each for n, each in seams.items() if not is_frozen(heads[n])}


def seed_setting(cfg: Mapping[str, Any]) -> tuple[str, int | None]:
    """Return which setting of a config seeds the train sampler, and its value.

    None if nothing does: the seed is drawn at the start.
    """
    loader = cfg.get('train_dataloader') or {}
    sampler = loader.get('sampler') if isinstance(loader, Mapping) else None
    own = (sampler or {}).get('seed')
    if own is not None:
        return 'train_dataloader.sampler.seed', own
    randomness = cfg.get('randomness') or {}
    is_shared = not randomness.get('diff_rank_seed')
    return 'randomness.seed', randomness.get('seed') if is_shared else None


def keeps_order(dataloader: DataLoader) -> bool:
    """Tell whether batches are cut from the order of the sampler.

    A batch sampler of the user's may hold samples back, to group them, and
    workers that are not to keep the order give what they have first.
    """
    in_order = getattr(dataloader, 'in_order', True)  # since torch 2.6
    return in_order and type(dataloader.batch_sampler) is BatchSampler


def has_rounds(loop: Any) -> bool:
    """Tell whether a train loop calls the hooks of rounds itself.

    If not, its epochs are the rounds.
    """
    return not isinstance(loop, EpochBasedTrainLoop)


def clock_of(loop: Any) -> FullDataClock:
    """Return the full-data clock of a train loop.

    mmengine's ``EpochBasedTrainLoop`` has none, but its rounds are its
    epochs, so that one can be made for it.

    Raises:
        TypeError: If the loop can neither give nor be given a clock.
        ValueError: If it has nothing to train.
    """
    if len(loop.dataloader) == 0:
        raise ValueError(
            'the train dataloader has no batch: its '
            f'{len(loop.dataloader.dataset)} samples are fewer than one batch '
            'on each rank and drop_last is set. Lower the batch size'
        )
    if hasattr(loop, 'clock'):
        clock = loop.clock
    elif isinstance(loop, EpochBasedTrainLoop):
        clock = EpochClock(loop.max_iters, len(loop.dataloader))
    else:
        raise TypeError(
            f'train_cfg.type is {type(loop).__name__}, in which a pruned '
            'round would neither end nor advance the schedule. Set '
            "train_cfg.type='InfoBatchIterBasedTrainLoop'"
        )
    if clock.budget < 1:
        raise ValueError(
            f'train_cfg asks for {clock.budget} iterations; set max_epochs or '
            'max_iters to 1 or more'
        )
    return clock


# What the heads must be like, and do


def check_means(heads: Mapping[str, WeightedHeadMixin]) -> None:
    """Raise a ValueError if a loss says that it is a sum over the batch."""
    sums = [
        f'{name} ({type(loss).__name__})'
        for name, head in heads.items()
        for loss in head.modules()
        if getattr(loss, 'reduction', None) == 'sum'
    ]
    if sums:
        raise ValueError(
            "these have a loss with reduction='sum', whose gradient a smaller "
            f'batch makes smaller: {", ".join(sums)}. Set '
            "reduction='mean', or pacing='fewer_steps'"
        )


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


def silent_heads(
    heads: Mapping[str, WeightedHeadMixin], ledger: Ledger
) -> list[str]:
    """Return the names of the heads that gave no losses in a step."""
    reporters = {id(head) for head in ledger.reporters}
    return [n for n, head in heads.items() if id(head) not in reporters]


def check_reported(
    heads: Mapping[str, WeightedHeadMixin], ledger: Ledger
) -> None:
    """Raise a RuntimeError if a weighted head gave no losses in a step."""
    if silent := silent_heads(heads, ledger):
        raise RuntimeError(
            'these heads did not call their loss_by_feat, or loss_module, in '
            'a training step (a call of train_step of the model with the '
            'batch of the loop), so their gradients were not weighted. Freeze '
            'or remove a head that has no part in the loss: '
            f'{", ".join(silent)}'
        )


def check_heads(
    model: nn.Module, heads: Mapping[str, WeightedHeadMixin]
) -> None:
    """Raise a RuntimeError if a model has other heads than at the start."""
    if find_heads(model) != heads:
        raise RuntimeError(
            'the heads of the model, or their loss modules, were replaced '
            'after training began, and the new ones are not weighted. Build '
            'them in the config of the model'
        )
