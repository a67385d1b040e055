"""Scores of mmpretrain's losses that are a mean over images."""

from typing import Any

import torch
from mmpretrain.models.losses import (
    AsymmetricLoss,
    CrossEntropyLoss,
    FocalLoss,
    LabelSmoothLoss,
)
from torch import Tensor

from .scoring import SeamCall, losses_and_scores_alone

PLAIN_MEANS = (AsymmetricLoss, CrossEntropyLoss, FocalLoss, LabelSmoothLoss)


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
