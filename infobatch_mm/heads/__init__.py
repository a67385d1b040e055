"""Stock heads with the gradient of each image weighted."""

from ..host.packages import is_importable
from .scoring import has_pixel_losses, scores_in_one_pass
from .seams import attach, follow_samples, outermost_heads, seam_of
from .weighted import WeightedHeadMixin

__all__ = [
    'WeightedHeadMixin',
    'attach',
    'follow_samples',
    'has_pixel_losses',
    'outermost_heads',
    'scores_in_one_pass',
    'seam_of',
]

if is_importable('mmseg'):
    from .decode_head import WeightedDecodeHead

    __all__ += ['WeightedDecodeHead']
if is_importable('mmpretrain'):
    from .cls_head import WeightedClsHead

    __all__ += ['WeightedClsHead']
