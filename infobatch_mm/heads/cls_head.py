"""The weighted head of mmpretrain, with what scores its losses."""

from collections.abc import Mapping
from typing import Any

from mmpretrain.registry import MODELS
from torch import nn

from .image_losses import PLAIN_MEANS, losses_and_image_scores
from .scoring import losses_and_scores
from .seams import attach

for _loss in PLAIN_MEANS:
    losses_and_scores.register(_loss, losses_and_image_scores)


@MODELS.register_module()
class WeightedClsHead:
    """Build a stock classification head with weighted gradients.

    What is built is the stock head itself: ``WeightedClsHead(head=cfg)`` is
    an instance of the class that ``cfg`` names, with the same state-dict
    keys, so that checkpoints load both ways. Its loss module is what weights
    the gradient of each image; the heads of a ``MultiTaskHead`` have one
    each, and need every sample to have a label for every task.

    Args:
        head (dict): Config of the stock head.
        **settings: Overrides of ``head``.

    Example:
        >>> head=dict(
        >>>     type='WeightedClsHead',
        >>>     head=dict(type='LinearClsHead', ...))
    """

    def __new__(  # type: ignore[misc]
        cls, head: Mapping[str, Any], **settings: Any
    ) -> nn.Module:
        """Build the stock head and attach the weighting."""
        config = head.copy()  # type: ignore[attr-defined]
        config.update(settings)
        return attach(MODELS.build(config))
