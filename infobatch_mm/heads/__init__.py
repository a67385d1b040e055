"""Stock heads with the gradient of each image weighted."""

from .decode_head import WeightedDecodeHead
from .weighted import WeightedHeadMixin, attach

__all__ = ['WeightedDecodeHead', 'WeightedHeadMixin', 'attach']
