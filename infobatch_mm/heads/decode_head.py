"""The weighted head of mmseg, with what scores its losses."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import cross_entropy_loss
from mmseg.models.losses.cross_entropy_loss import (
    CrossEntropyLoss,
    cross_entropy,
)
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional

from ..host.losses import replaced_cross_entropy
from ..ledger import Ledger, copy_to_device
from .padding import Own, own_parts
from .scoring import (
    Losses,
    Scored,
    SeamCall,
    has_pixel_losses,
    losses_and_scores,
    losses_and_scores_alone,
    scores_in_one_pass,
)
from .seams import attach, head_config


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
        built = MODELS.build(head_config(head, settings))
        return attach(built, batch_axis=batch_axis)


class DecodeHead(Scored, Protocol):
    """A weighted head of mmseg, as far as it is needed here."""

    infobatch_stock: Any
    infobatch_ledger: Ledger
    loss_decode: nn.Module
    sampler: Any


class PixelLosses(NamedTuple):
    """A call of ``torch.nn.functional.cross_entropy``, as mmseg makes it.

    Attributes:
        values (Tensor): Shape (B, H, W), 0 where ignored.
        labels (Tensor): Shape (B, H, W).
        class_weight (Tensor, optional): Shape (C,), already in the values.
        ignore_index (int): The label that is ignored.
        num_classes (int): C.
    """

    values: Tensor
    labels: Tensor
    class_weight: Tensor | None
    ignore_index: int
    num_classes: int


@contextmanager
def keep_pixel_losses() -> Iterator[list[PixelLosses]]:
    """Keep the pixel losses that the stock loss computes anyway.

    Yields:
        list[PixelLosses]: Those of each call of cross-entropy so far.
    """
    kept: list[PixelLosses] = []

    def kept_cross_entropy(
        inputs: Tensor, labels: Tensor, **kwargs: Any
    ) -> Tensor:
        values = functional.cross_entropy(inputs, labels, **kwargs)
        kept.append(
            PixelLosses(
                values.detach(),
                labels,
                kwargs['weight'],
                kwargs['ignore_index'],
                inputs.shape[1],
            )
        )
        return values

    with replaced_cross_entropy(cross_entropy_loss, kept_cross_entropy):
        yield kept


def _loss_modules(head: DecodeHead) -> list[Any]:
    losses = head.loss_decode
    return list(losses) if isinstance(losses, nn.ModuleList) else [losses]


def has_plain_cross_entropy(head: DecodeHead) -> bool:
    """Tell whether a head's losses are all plain mean cross-entropy."""
    return (
        head.infobatch_stock.loss_by_feat is BaseDecodeHead.loss_by_feat
        and head.sampler is None
        and all(
            type(loss) is CrossEntropyLoss
            and loss.cls_criterion is cross_entropy
            and loss.reduction == 'mean'
            for loss in _loss_modules(head)
        )
    )


def losses_and_pixel_scores(
    head: DecodeHead, call: SeamCall
) -> tuple[Losses, Tensor]:
    """Compute the stock losses, and the scores in the same pass if it can be.

    That pass makes no host synchronisation of its own.

    Returns:
        tuple[dict, Tensor]: The stock losses, and the scores, shape (R,).
    """
    if not has_plain_cross_entropy(head):
        return losses_and_scores_alone(head, call)
    with keep_pixel_losses() as kept:
        losses = call.run()
    modules = _loss_modules(head)
    assert len(kept) == len(modules)
    own = own_parts(call.args, call.kwargs)
    if own is not None and kept[0].labels.shape[1:] != own[0].padded:
        own = None  # resized since, or cropped
    if own is not None:
        kept = [without_padding(pixels, own) for pixels in kept]
    if head.infobatch_ledger.class_balanced:
        means = [class_balanced_means(pixels) for pixels in kept]
    else:
        shares = None if own is None else own_shares(own, call.weights.device)
        means = [
            image_means(pixels, loss.avg_non_ignore, shares)
            for loss, pixels in zip(modules, kept, strict=True)
        ]
    scores = [
        loss.loss_weight * mean
        for loss, mean in zip(modules, means, strict=True)
        if 'loss' in loss.loss_name  # mmseg only reports the others
    ]
    return losses, functools.reduce(torch.add, scores)


def own_shares(own: Sequence[Own], device: torch.device) -> Tensor:
    """Return the share of each image in its padded area, shape (B,)."""
    shares = torch.tensor([part.share for part in own])
    return copy_to_device(shares, device)


def without_padding(losses: PixelLosses, own: Sequence[Own]) -> PixelLosses:
    """Ignore the pixels that were added to images, whatever their label.

    It is that of ``seg_pad_val``, which a config may set to a class.

    Args:
        losses (PixelLosses): The pixel losses of a batch.
        own (Sequence[Own]): Where each image lies in its padded form.
    """
    inside = torch.zeros_like(losses.labels, dtype=torch.bool)
    for image, part in enumerate(own):
        inside[image, part.rows, part.columns] = True
    return losses._replace(
        values=losses.values.where(inside, 0),
        labels=losses.labels.where(inside, losses.ignore_index),
    )


def image_means(
    losses: PixelLosses, avg_non_ignore: bool, shares: Tensor | None = None
) -> Tensor:
    """Average pixel losses over each image, as mmseg's cross-entropy does.

    Args:
        losses (PixelLosses): The pixel losses of a batch.
        avg_non_ignore (bool): Whether ignored pixels leave the denominator.
        shares (Tensor, optional): The share of each image in its padded area,
            (B,). Pixels that were added to it are not counted.

    Returns:
        Tensor: Shape (B,).
    """
    sums = losses.values.sum((1, 2), dtype=torch.float32)
    weight = losses.class_weight
    if weight is None and not avg_non_ignore:
        pixels = losses.values[0].numel()
        return sums / (pixels if shares is None else pixels * shares)
    counts = losses.labels != losses.ignore_index
    if weight is not None:
        # Ignored pixels are of one class more, of weight 0.
        labels = losses.labels.where(counts, losses.num_classes)
        counts = functional.pad(weight.float(), (0, 1)).take(labels)
    return sums / (counts.sum((1, 2)) + torch.finfo(torch.float32).eps)


def class_balanced_means(losses: PixelLosses) -> Tensor:
    """Average pixel losses over each class of an image, then over its classes.

    The classes are those present in the image; ignored pixels are of none.
    With class weights the second mean is weighted by them.

    Args:
        losses (PixelLosses): The pixel losses of a batch.

    Returns:
        Tensor: Shape (B,); 0 for an image without a label.
    """
    images, classes = len(losses.values), losses.num_classes
    counted = losses.labels != losses.ignore_index
    first_bin = classes * torch.arange(images, device=counted.device)
    # Ignored pixels go to class 0, with a loss of 0 and a count of 0.
    bins = first_bin.view(-1, 1, 1) + losses.labels.where(counted, 0)
    zeros = losses.values.new_zeros(images * classes, dtype=torch.float32)
    sums, pixels = (
        zeros.index_add(0, bins.flatten(), each.float().flatten())
        for each in (losses.values, counted)
    )
    means = (sums / pixels.clamp(min=1)).view(images, classes)
    weights = (pixels > 0).float().view(images, classes)
    if losses.class_weight is not None:
        weights = weights * losses.class_weight.float()
    total = weights.sum(1) + torch.finfo(torch.float32).eps
    return means.sum(1) / total


losses_and_scores.register(BaseDecodeHead, losses_and_pixel_scores)
scores_in_one_pass.register(BaseDecodeHead, has_plain_cross_entropy)
has_pixel_losses.register(BaseDecodeHead, has_plain_cross_entropy)
