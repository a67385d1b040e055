"""The weighted head of mmseg, with what scores its losses."""

from collections.abc import Mapping
from typing import Any

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import nn

from .pixel_losses import has_plain_cross_entropy, losses_and_pixel_scores
from .scoring import has_pixel_losses, losses_and_scores
from .seams import attach

losses_and_scores.register(BaseDecodeHead, losses_and_pixel_scores)
has_pixel_losses.register(BaseDecodeHead, has_plain_cross_entropy)


@MODELS.register_module()
class WeightedDecodeHead:
    """Build a stock decode or auxiliary head with weighted gradients.

    What is built is the stock head itself: ``WeightedDecodeHead(head=cfg)``
    is an instance of the class that ``cfg`` names, with the same state-dict
    keys, so that checkpoints load both ways.

    Args:
        head (dict): Config of the stock head.
        batch_axis (int, optional): See :func:`attach`; for heads that are not
            mmseg's.
        **settings: Overrides of ``head``; segmentors set ``init_cfg`` on the
            config of their head.

    Example:
        >>> decode_head=dict(
        >>>     type='WeightedDecodeHead',
        >>>     head=dict(type='FCNHead', ...))
    """

    def __new__(  # type: ignore[misc]
        cls,
        head: Mapping[str, Any],
        *,
        batch_axis: int | None = None,
        **settings: Any,
    ) -> nn.Module:
        """Build the stock head and attach the weighting."""
        # A copy, not a dict(): mmseg heads read attributes of a ConfigDict.
        config = head.copy()  # type: ignore[attr-defined]
        config.update(settings)
        return attach(MODELS.build(config), batch_axis=batch_axis)
