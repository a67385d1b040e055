"""The weighted head of mmseg."""

from collections.abc import Mapping
from typing import Any

from mmseg.registry import MODELS
from torch import nn

from . import pixel_losses  # noqa: F401  registers its scoring
from .seams import attach


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
