"""The arms of a comparison: functions that turn a config into another.

Arms that must cost what pruning costs (:func:`random`, :func:`short`, ...)
take their budget from the finished run of ``infobatch`` with the same seed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from mmengine.config import Config

from ..config import enable
from .parts import UnscaledPolicy
from .setup import is_epoch_based, stretch


class Budget(NamedTuple):
    """What a pruned run has cost.

    Attributes:
        share (float): Samples seen over those of the full run.
        prune_ratio (float): The mean over the rounds that were pruned.
    """

    share: float
    prune_ratio: float


ALL_DATA = Budget(share=1.0, prune_ratio=0.0)
Change = Callable[[Config, Budget, int], Config]


class Arm(NamedTuple):
    """One way to train a config.

    Attributes:
        change (Change): Takes the stock config, which it may change, the
            budget and the seed, and returns the config to train.
        at_cost_of (str | None): The arm whose run with the same seed sets
            the budget, and must be finished first.
    """

    change: Change
    at_cost_of: str | None = None


def _full(cfg: Config, budget: Budget, seed: int) -> Config:
    return cfg


def full() -> Arm:
    """All data."""
    return Arm(_full)


def infobatch(**options: Any) -> Arm:
    """Prune, by default as the paper does.

    Args:
        **options: Those of :func:`infobatch_mm.enable`.
    """

    def change(cfg: Config, budget: Budget, seed: int) -> Config:
        return enable(cfg, **options)

    return Arm(change)


def random(*, rescaled: bool = True, **options: Any) -> Arm:
    """Prune at random at the cost of ``infobatch``.

    Args:
        rescaled (bool): Whether the kept samples stand for those left out.
        **options: Those of ``infobatch``, whose policy is replaced.
    """

    def change(cfg: Config, budget: Budget, seed: int) -> Config:
        policy = dict(type='RandomPolicy', prune_ratio=budget.prune_ratio)
        policy = policy if rescaled else unscaled(policy)
        return enable(cfg, **{**options, 'policy': policy})

    return Arm(change, at_cost_of='infobatch')


def unscaled(policy: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a policy without its rescaling."""
    return dict(type=UnscaledPolicy.__name__, policy=policy)


def _short(cfg: Config, budget: Budget, seed: int) -> Config:
    stretch(cfg, budget.share)
    return cfg


def _raise_lr(cfg: Config, budget: Budget) -> None:
    cfg.optim_wrapper.optimizer.lr /= budget.share


def short() -> Arm:
    """All data, on a schedule shortened to the cost of ``infobatch``."""
    return Arm(_short, at_cost_of='infobatch')


def short_lr() -> Arm:
    """The short schedule, with a learning rate larger by as much."""

    def change(cfg: Config, budget: Budget, seed: int) -> Config:
        _raise_lr(cfg, budget)
        return _short(cfg, budget, seed)

    return Arm(change, at_cost_of='infobatch')


def infobatch_lr(**options: Any) -> Arm:
    """Prune, with a learning rate larger by as much as that saves."""

    def change(cfg: Config, budget: Budget, seed: int) -> Config:
        _raise_lr(cfg, budget)
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
    return dict(
        infobatch=infobatch(**options),
        full=full(),
        random=random(**options),
        short=short(),
    )
