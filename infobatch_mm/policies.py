"""The old path of ``infobatch_mm.pruning.registry``."""

from .pruning.registry import PRUNING_POLICIES, build_policy

__all__ = [
    'PRUNING_POLICIES',
    'build_policy',
]
