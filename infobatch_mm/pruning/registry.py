"""The registry of pruning policies."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from mmengine.registry import Registry

from . import policies
from .policies import PruningPolicy
from .prune_ratio import PruneRatio

PRUNING_POLICIES = Registry('pruning policy', scope='infobatch_mm')
for _policy in (
    policies.InfoBatchPolicy,
    policies.QuantilePolicy,
    policies.RandomPolicy,
    policies.NoPruningPolicy,
):
    PRUNING_POLICIES.register_module(module=_policy)


def build_policy(config: Mapping[str, Any], delta: float) -> PruningPolicy:
    """Build a pruning policy from its config.

    Args:
        config (dict): The ``type``, a registered name or a class, by default
            ``InfoBatchPolicy``, and arguments without ``delta``.
        delta (float): The share of the clock from which all data is used.

    Raises:
        ValueError: If it is no config of a policy; the message names the
            setting and what is known.
    """
    if not isinstance(config, Mapping):
        raise ValueError(
            f'policy={config!r} is not the config of a pruning policy. Write '
            "it as policy=dict(type='InfoBatchPolicy', prune_ratio=0.5), on a "
            'command line as policy.type=InfoBatchPolicy '
            'policy.prune_ratio=0.5'
        )
    options = dict(config)
    policy = _find(options.pop('type', policies.InfoBatchPolicy))
    # A policy without prune ratios does not look at delta.
    PruneRatio(0.0, 0.0, delta=delta)
    if 'delta' in options:
        raise ValueError(
            f'policy.delta={options["delta"]} is not a setting of the '
            f'policy here: set delta of InfoBatchHook (now {delta}) instead'
        )
    _check_names(policy, options)
    try:
        return policy(**options, delta=delta)
    except TypeError as error:
        raise ValueError(
            f'policy={dict(config)!r} has a setting of a wrong type: {error}'
        ) from error


def _find(kind: Any) -> type[PruningPolicy]:
    """Return the class of a policy, given itself or its name."""
    is_name = isinstance(kind, str) and kind != ''
    found = PRUNING_POLICIES.get(kind) if is_name else kind
    registered = PRUNING_POLICIES.module_dict
    is_policy = isinstance(found, type) and issubclass(found, PruningPolicy)
    if not is_policy and found not in registered.values():
        raise ValueError(
            f'policy.type={kind!r} is not a pruning policy; known: '
            f'{", ".join(registered)}'
        )
    lacks = getattr(found, '__abstractmethods__', ())
    if not hasattr(found, 'plan'):
        lacks = ['plan']
    if lacks:
        raise ValueError(
            f'policy.type={kind!r} is not a pruning policy: it has no '
            f'{" and no ".join(f"{name}()" for name in sorted(lacks))}, '
            'which PruningPolicy describes'
        )
    return found


def _check_names(policy: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise a ValueError unless a policy takes settings of these names."""
    takes = signature(policy)
    try:
        takes.bind(**options, delta=0.0)
    except TypeError as error:
        known = [name for name in takes.parameters if name != 'delta']
        raise ValueError(
            f'policy.type={policy.__name__!r}: {error}; its settings: '
            f'{", ".join(known) or "none"}'
        ) from None
