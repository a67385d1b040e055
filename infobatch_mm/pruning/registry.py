"""The registry of pruning policies."""

from collections.abc import Mapping
from typing import Any

from mmengine.registry import Registry

from . import policies
from .policies import PruningPolicy

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
        config (dict): The ``type``, and arguments without ``delta``.
        delta (float): The share of the clock from which all data is used.
    """
    options = dict(config)
    name = options.pop('type', None)
    if 'delta' in options:
        raise ValueError(
            f'policy.delta={options["delta"]} is not a setting of the '
            f'policy here: set delta of InfoBatchHook (now {delta}) instead'
        )
    policy = PRUNING_POLICIES.get(name) if name else None
    if policy is None:
        known = ', '.join(PRUNING_POLICIES.module_dict)
        raise ValueError(
            f'policy.type={name!r} is not a pruning policy; known: {known}'
        )
    return policy(**options, delta=delta)
