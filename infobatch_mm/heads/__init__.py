"""Stock heads with the gradient of each image weighted."""

from ..host.packages import is_importable
from .scoring import has_pixel_losses
from .seams import attach, outermost_heads, seam_of
from .weighted import WeightedHeadMixin

__all__ = [
    'WeightedHeadMixin',
    'attach',
    'has_pixel_losses',
    'outermost_heads',
    'seam_of',
]

if is_importable('mmseg'):
    from .decode_head import WeightedDecodeHead

    __all__ += ['WeightedDecodeHead']
if is_importable('mmpretrain'):
    from .cls_head import WeightedClsHead

    __all__ += ['WeightedClsHead']
