"""The weighted head of mmpretrain, with what scores its losses."""

from collections.abc import Mapping
from typing import Any

import torch
from mmpretrain.models import losses as stock_losses
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .scoring import (
    SeamCall,
    losses_and_scores,
    losses_and_scores_alone,
    scores_in_one_pass,
)
from .seams import attach, head_config

# Their scores are had in one pass. OneDL alone has the last one, whose
# absolute errors all have a gradient of the same norm.
PLAIN_MEANS = tuple(
    getattr(stock_losses, name)
    for name in (
        'AsymmetricLoss',
        'CrossEntropyLoss',
        'FocalLoss',
        'LabelSmoothLoss',
        'RegressionLoss',
    )
    if hasattr(stock_losses, name)
)


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
        return attach(MODELS.build(head_config(head, settings)))


def losses_and_image_scores(loss: Any, call: SeamCall) -> tuple[Any, Tensor]:
    """Compute the stock loss, and the scores in one pass where it can be.

    Args:
        loss (nn.Module): The weighted loss module.
        call (SeamCall): Its call.

    Returns:
        tuple[Tensor, Tensor]: The stock loss, and the scores, shape (R,).
    """
    if not is_mean_over_images(loss):
        return losses_and_scores_alone(loss, call)
    scores = unreduced_losses(call)
    return call.run(), scores


def is_mean_over_images(loss: Any) -> bool:
    """Tell whether a loss module is a mean of losses of single images."""
    return loss.infobatch_stock in PLAIN_MEANS and loss.reduction == 'mean'


@torch.no_grad()
def unreduced_losses(call: SeamCall) -> Tensor:
    """Return the loss of each image, from the stock loss without reduction.

    It costs a pass over the class scores, (R, classes), and no host
    synchronisation but that of LabelSmoothLoss, which checks the range of
    integer labels.

    Returns:
        Tensor: Shape (R,).
    """
    avg_factor = call.kwargs.get('avg_factor')
    unreduced = {'avg_factor': None, 'reduction_override': 'none'}
    losses = call.stock_loss(*call.args, **{**call.kwargs, **unreduced})
    losses = losses.float().reshape(len(losses), -1)
    return losses.mean(1) if avg_factor is None else losses.sum(1)


for _loss in PLAIN_MEANS:
    losses_and_scores.register(_loss, losses_and_image_scores)
    scores_in_one_pass.register(_loss, is_mean_over_images)
