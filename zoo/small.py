"""What makes a stock config of any package small; the sizes of a small run."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

SAMPLES = 8
BATCH = 2
ROUNDS = 3
BUDGET = ROUNDS * SAMPLES // BATCH  # three full passes, in iterations

MIXED_PRECISION = dict(
    AmpOptimWrapper='AMP', DeepSpeedOptimWrapper='DeepSpeed'
)


def as_list(value: Any) -> list:
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
