"""How a stock config of any package is made small enough for a CPU."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from mmengine.config import Config

from zoo.sizes import BATCH

# What is replaced by an OptimWrapper, and what it is called in the notes.
MIXED_PRECISION = dict(
    AmpOptimWrapper='AMP', DeepSpeedOptimWrapper='DeepSpeed'
)


def small_config(
    cfg: Config,
    *,
    model: Any,
    loader: Mapping[str, Any],
    train_cfg: Mapping[str, Any],
    optim_wrapper: Any,
    param_scheduler: list[Any],
) -> Config:
    """Return the training part of a config, with its parts made small.

    Args:
        cfg (Config): The stock config.
        model (dict): Its model, made small.
        loader (dict): What the train dataloader has besides the sampler of
            the stock one and the size of a batch.
        train_cfg (dict): The loop, of few rounds.
        optim_wrapper (dict): The optimizer, in full precision.
        param_scheduler (list): The schedule, which fits the rounds.
    """
    small = dict(
        default_scope=cfg.default_scope,
        model=model,
        train_dataloader=dict(
            loader,
            batch_size=BATCH,
            num_workers=0,
            sampler=cfg.train_dataloader.sampler,
        ),
        train_cfg=train_cfg,
        optim_wrapper=optim_wrapper,
        param_scheduler=param_scheduler,
        custom_hooks=cfg.get('custom_hooks') or [],
        default_hooks=dict(checkpoint=None),
        log_processor=dict(by_epoch='max_epochs' in train_cfg),
        log_level='ERROR',
        randomness=dict(seed=0),
        work_dir='run',
    )
    return Config(small)


def fit_schedule(
    scheduler: Any,
    names: Sequence[str],
    *,
    budget: int,
    full: int,
    least: int,
) -> Any:
    """Return a scheduler whose warm-up and end fit a small budget.

    Args:
        scheduler (dict): Config of a stock scheduler.
        names (list[str]): Its settings that are a tick or several.
        budget (int): Ticks of the small run.
        full (int): Ticks of the stock run.
        least (int): What a tick that is not 0 becomes at least.
    """

    def scaled(tick: int) -> int:
        return min(budget, tick and max(least, tick * budget // full))

    scheduler = deepcopy(scheduler)
    for name in names:
        ticks = scheduler.get(name)
        if isinstance(ticks, int):
            scheduler[name] = scaled(ticks)
        elif ticks:
            scheduler[name] = [scaled(tick) for tick in ticks]
    return scheduler


def resized(transform: Any, sizes: Mapping[str, Any]) -> Any:
    """Return a transform with those of its sizes replaced that it has."""
    has = {name: size for name, size in sizes.items() if name in transform}
    return {**transform, **has}


def as_list(value: Any) -> list[Any]:
    """Return what may be None, one item or several, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def parts(config: Any) -> Iterator[Any]:
    """Yield all dicts within a config, the outer ones first."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for item in config:
            yield from parts(item)


def num_classes(model: Any) -> int:
    """Return the number of classes that a model's heads tell apart."""
    found = [p['num_classes'] for p in parts(model) if 'num_classes' in p]
    return max(found, default=2)


def drop_pretrained(part: Any) -> None:
    """Remove the checkpoint that a part of a model starts from, in place."""
    init = as_list(part.get('init_cfg'))
    if any(str(i['type']).startswith('Pretrained') for i in init):
        del part['init_cfg']


def unsync_norm(part: Any) -> None:
    """Make a batch norm over all devices one of a single device, in place."""
    if part.get('type') == 'SyncBN':
        part['type'] = 'BN'


def full_precision(optim_wrapper: Any) -> tuple[Any, list[str]]:
    """Return an optimizer wrapper of full precision, and notes on it."""
    optim_wrapper = deepcopy(optim_wrapper)
    mixed = MIXED_PRECISION.get(optim_wrapper.get('type'))
    if not mixed:
        return optim_wrapper, []
    optim_wrapper.type = 'OptimWrapper'
    for name in ('loss_scale', 'dtype'):
        optim_wrapper.pop(name, None)
    return optim_wrapper, [f'full precision instead of {mixed}']
