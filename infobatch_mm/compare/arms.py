"""The arms of a comparison: functions that turn a config into another.

Arms that must cost what pruning costs (:func:`random`, :func:`short`, ...)
take their budget from the finished run of ``infobatch`` with the same seed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from mmengine.config import Config

from ..config import enable
from ..host.classes import type_name
from ..pacing import FEWER_STEPS
from ..scores import IMAGE_MEAN
from .parts import UnscaledPolicy
from .setup import (
    is_epoch_based,
    samples_of_epoch,
    schedulers_of,
    stretch,
)


class Budget(NamedTuple):
    """What a pruned run has cost.

    Attributes:
        share (float): Samples seen over those of the full run.
        prune_ratio (float): The mean over the rounds that were pruned.
        samples (int): Training samples of each rank, 0 if not known.
    """

    share: float
    prune_ratio: float
    samples: int = 0


# How rounds are scored and spent: as the paper has it, and as is the default,
# written out so that the digest of a cell tells one from the other.
PAPER: dict[str, Any] = dict(pacing=FEWER_STEPS, score=IMAGE_MEAN)
UNSET: dict[str, Any] = dict(pacing=None, score=None)
NUM_BATCHES = 'num_batch_per_epoch'
# Below it a quarter of a batch is far from a whole number of samples.
_FINE_BATCH = 8
# Below it half an epoch is more than a hundredth of the schedule.
_FINE_SCHEDULE = 50
ALL_DATA = Budget(share=1.0, prune_ratio=0.0)
Change = Callable[[Config, Budget, int], Config]


class Arm(NamedTuple):
    """One way to train a config.

    Attributes:
        change (Change): Takes the stock config, which it may change, the
            budget and the seed, and returns the config to train.
        at_cost_of (str | None): The arm whose run with the same seed sets
            the budget, and must be finished first.
        words (str): What it does, for tables and `--help`.
    """

    change: Change
    at_cost_of: str | None = None
    words: str = ''


def _full(cfg: Config, budget: Budget, seed: int) -> Config:
    return cfg


def full() -> Arm:
    """All data."""
    return Arm(_full, words='all data, the config as it is')


def infobatch(**options: Any) -> Arm:
    """Prune.

    Args:
        **options: Those of :func:`infobatch_mm.enable`.
    """
    options = UNSET | options

    def change(cfg: Config, budget: Budget, seed: int) -> Config:
        return enable(cfg, **options)

    return Arm(change, words='pruned, with the options given')


def infobatch_fewer_steps(**options: Any) -> Arm:
    """Prune, in fewer, longer steps, as the paper.

    Args:
        **options: Those of :func:`infobatch_mm.enable`. Without a score it is
            the loss.
    """
    arm = infobatch(**PAPER | options | dict(pacing=FEWER_STEPS))
    return arm._replace(words='pruned, in fewer and longer steps (the paper)')


def random(*, rescaled: bool = True, **options: Any) -> Arm:
    """Prune at random at the cost of ``infobatch``.

    Args:
        rescaled (bool): Whether the kept samples stand for those left out.
        **options: Those of ``infobatch``, whose policy is replaced.
    """
    options = UNSET | options

    def change(cfg: Config, budget: Budget, seed: int) -> Config:
        policy = dict(type='RandomPolicy', prune_ratio=budget.prune_ratio)
        policy = policy if rescaled else unscaled(policy)
        return enable(cfg, **{**options, 'policy': policy})

    words = 'pruned as much at random, in the same way'
    return Arm(change, at_cost_of='infobatch', words=words)


def unscaled(policy: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a policy without its rescaling."""
    return dict(type=UnscaledPolicy.__name__, policy=policy)


def _short(cfg: Config, budget: Budget, seed: int) -> Config:
    stretch(cfg, budget.share)
    return cfg


def raise_lr(cfg: Config, share: float) -> None:
    """Divide every learning rate of a config by a share of the samples.

    Raises:
        ValueError: If it names none.
    """
    holders = list(_optimizers(cfg.optim_wrapper))
    if not holders:
        raise ValueError(
            'optim_wrapper names no optimizer with a learning rate (lr) that '
            'could be raised; leave the arms with -lr out'
        )
    for optimizer in holders:
        optimizer['lr'] /= share
    for scheduler in schedulers_of(cfg):
        if 'eta_max' in scheduler:  # of OneCycleLR, in place of lr
            scheduler['eta_max'] /= share


def _optimizers(wrapper: Any) -> Iterator[MutableMapping[str, Any]]:
    """Go through the optimizers of a wrapper, or of several by name."""
    for key, value in wrapper.items():
        if key == 'optimizer' and 'lr' in value:
            yield value
        elif key != 'optimizer' and isinstance(value, Mapping):
            yield from _optimizers(value)


def short() -> Arm:
    """All data, on a schedule shortened to the cost of ``infobatch``."""
    words = 'all data, on a schedule as much shorter'
    return Arm(_short, at_cost_of='infobatch', words=words)


def short_lr() -> Arm:
    """The short schedule, with a learning rate larger by as much."""

    def change(cfg: Config, budget: Budget, seed: int) -> Config:
        raise_lr(cfg, budget.share)
        return _short(cfg, budget, seed)

    words = 'as short, with a learning rate larger by as much'
    return Arm(change, at_cost_of='infobatch', words=words)


def steps_of_epoch(loader: Mapping[str, Any], samples: int) -> float:
    """Return the steps of an epoch; of an unknown number of samples, of one.

    On several ranks they are some times fewer.
    """
    if not samples:
        return 1 / loader['batch_size']
    given = samples_of_epoch(loader, samples)
    return -(-given // loader['batch_size'])


def _small_batch(cfg: Config, budget: Budget, seed: int) -> Config:
    loader, share = cfg.train_dataloader, budget.share
    full = loader.batch_size
    if full < 2:
        raise ValueError(
            f'train_dataloader.batch_size is {full} and can be made no '
            'smaller; leave the arm small-batch out'
        )
    by_epoch, batches = is_epoch_based(cfg), loader.get(NUM_BATCHES)
    of_full = steps_of_epoch(loader, budget.samples)
    if by_epoch and not batches:
        if budget.samples:  # in its epochs no remainder is dropped
            dropped = samples_of_epoch(loader, budget.samples)
            loader.pop('drop_last', None)
            share *= dropped / samples_of_epoch(loader, budget.samples)
        # Whole epochs are trained, and the batch makes up for the rounding.
        epochs = cfg.train_cfg.max_epochs
        share = max(1, round(epochs * share)) / epochs
    loader.batch_size = max(1, round(full * share))
    shrunk = loader.batch_size / full
    if batches:  # an epoch, or a pass, is of the same first samples
        loader[NUM_BATCHES] = round(batches / shrunk)
    if not by_epoch:
        stretch(cfg, share / shrunk, of_epochs=share)
    elif batches:
        more = loader[NUM_BATCHES] / batches
        factor = share / shrunk / more
        stretch(cfg, factor, of_iters=factor * more)
    else:
        if budget.samples % loader.batch_size == 1:
            loader.drop_last = True  # batch norm cannot train on one sample
        more = steps_of_epoch(loader, budget.samples) / of_full
        stretch(cfg, share, of_iters=share * more)
    scaling = cfg.get('auto_scale_lr') or {}
    if scaling.get('enable'):
        scaling['base_batch_size'] *= shrunk  # the learning rate stays
    return cfg


def small_batch() -> Arm:
    """All data and all steps, in batches smaller by what pruning saves.

    A stock run: its batch size is the full one times the share of the samples
    that ``infobatch`` saw, rounded to a whole number b, and its learning rate
    is the config's. So that it sees as many samples all the same, a schedule
    counted in iterations is stretched by share * B / b, which is 1 but for
    the rounding. One that is counted in epochs is shortened to the share of
    them, as for ``short``: with batches as much smaller, these have the
    iterations of the full run. What it counts in iterations, such as a
    warm-up, is left where it is in either case, but for the rounding. Epochs
    of a number of batches (``num_batch_per_epoch``) have more of them, so that
    they are of the same samples. Where the
    full run drops the last batches of its epochs (``drop_last``), this one
    drops none but those of a single sample, and has fewer epochs for that.
    """
    words = 'all data in all steps, with batches as much smaller'
    return Arm(_small_batch, at_cost_of='infobatch', words=words)


def infobatch_lr(**options: Any) -> Arm:
    """Prune, with a learning rate larger by as much as that saves."""

    def change(cfg: Config, budget: Budget, seed: int) -> Config:
        raise_lr(cfg, budget.share)
        return enable(cfg, **options)

    return Arm(change, at_cost_of='infobatch')


def _subset(cfg: Config, budget: Budget, seed: int) -> Config:
    kind = 'DefaultSubsetSampler'
    if not is_epoch_based(cfg):
        kind = 'InfiniteSubsetSampler'
        stretch(cfg, budget.share)
    cfg.train_dataloader.sampler.type = kind
    cfg.train_dataloader.sampler.update(share=budget.share, subset_seed=seed)
    return cfg


def subset() -> Arm:
    """The same random part of the data all the time, at the same cost."""
    return Arm(_subset, at_cost_of='infobatch')


def core(**options: Any) -> dict[str, Arm]:
    """Return the arms that every comparison has, by name.

    Args:
        **options: Those of :func:`infobatch_mm.enable`.
    """
    return {
        'infobatch': infobatch(**options),
        'full': full(),
        'random': random(**options),
        'short': short(),
        'short-lr': short_lr(),
        'small-batch': small_batch(),
        'infobatch-fewer-steps': infobatch_fewer_steps(**options),
    }


def caution(name: str, cfg: Config) -> str:
    """Return what has to be known of an arm with a config, often nothing."""
    return '; '.join(_cautions(name, cfg))


def _cautions(name: str, cfg: Config) -> Iterator[str]:
    names = {type_name(each) for each in _optimizers(cfg.optim_wrapper)}
    if name.endswith('-lr') and not names <= {'SGD'}:
        yield (
            f'{" and ".join(sorted(names))} makes steps as long as the '
            'learning rate says, so this arm lengthens steps that pruning '
            'itself does not'
        )
    batch = cfg.train_dataloader.batch_size
    if name == 'small-batch' and batch < _FINE_BATCH:
        yield (
            f'of batch_size {batch} the share that pruning sees is rounded to '
            'whole samples, and its steps are fewer or more by as much'
        )
    if name == 'small-batch' and batch == 2:
        yield (
            'a batch of 1 cannot train batch norm on pooled features: leave '
            'this arm out if the model has that'
        )
    epochs = cfg.train_cfg.get('max_epochs', math.inf)
    whole = name in ('short', 'short-lr', 'small-batch')
    if whole and epochs < _FINE_SCHEDULE:
        yield (
            f'of {epochs} epochs the share that pruning sees is rounded to '
            f'whole ones, so costs differ by up to {0.5 / epochs:.0%}'
        )
    stops = any(
        type_name(hook) == 'EarlyStoppingHook'
        for hook in cfg.get('custom_hooks') or []
    )
    if stops:
        yield 'EarlyStoppingHook ends runs early, at costs that differ'
