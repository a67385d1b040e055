"""InfoBatch for OpenMMLab: dynamic data pruning in mm configs.

Importing this package registers its components with mmengine, and with mmseg
and mmpretrain where they are installed, and changes nothing else;
``custom_imports = dict(imports=['infobatch_mm'])`` in a config is enough.
"""

from .host.packages import is_importable, require_family

require_family()

from .config import enable
from .datasets.indexed import IndexedDataset
from .hook import InfoBatchHook
from .loops import (
    InfoBatchEpochBasedTrainLoop,
    InfoBatchIterBasedTrainLoop,
)
from .pruning import (
    InfoBatchPolicy,
    NoPruningPolicy,
    Plan,
    PruningPolicy,
    QuantilePolicy,
    RandomPolicy,
)
from .pruning.registry import PRUNING_POLICIES
from .sampler import InfoBatchSampler

__version__ = '0.1.0'

__all__ = [
    'PRUNING_POLICIES',
    'IndexedDataset',
    'InfoBatchEpochBasedTrainLoop',
    'InfoBatchHook',
    'InfoBatchIterBasedTrainLoop',
    'InfoBatchPolicy',
    'InfoBatchSampler',
    'NoPruningPolicy',
    'Plan',
    'PruningPolicy',
    'QuantilePolicy',
    'RandomPolicy',
    'enable',
]

if is_importable('mmseg'):
    from .heads import WeightedDecodeHead

    __all__ += ['WeightedDecodeHead']
if is_importable('mmpretrain'):
    from .heads import WeightedClsHead

    __all__ += ['WeightedClsHead']
