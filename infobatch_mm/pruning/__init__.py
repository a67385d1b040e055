"""Pruning: which samples a round keeps, and with what weight.

Pure functions and classes on tensors. Nothing in this package imports
mmengine but ``registry.py``, which makes the policies known to configs.
"""

from .draw import kept_counts, mean_threshold, uniform_subset
from .plan import Plan
from .policies import (
    InfoBatchPolicy,
    NoPruningPolicy,
    PruningPolicy,
    QuantilePolicy,
    RandomPolicy,
)
from .prune_ratio import PruneRatio

__all__ = [
    'InfoBatchPolicy',
    'NoPruningPolicy',
    'Plan',
    'PruneRatio',
    'PruningPolicy',
    'QuantilePolicy',
    'RandomPolicy',
    'kept_counts',
    'mean_threshold',
    'uniform_subset',
]
