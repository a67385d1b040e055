"""The loss that each image's own pixels give.

The score of an image is what the stock head would report for a batch of that
image alone. Plain cross-entropy is scored from the pixel losses of the pass
that training makes anyway; anything else by calling the stock
``loss_by_feat`` again, one image at a time, which does synchronise with the
device where the stock loss does.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import torch
from mmengine.structures import BaseDataElement
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses.cross_entropy_loss import (
    CrossEntropyLoss,
    cross_entropy,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.overrides import TorchFunctionMode

Losses = dict[str, Tensor]


class PixelLosses(NamedTuple):
    """A call of ``torch.nn.functional.cross_entropy``, as mmseg makes it.

    Attributes:
        values (Tensor): Shape (B, H, W), 0 where ignored.
        labels (Tensor): Shape (B, H, W).
        class_weight (Tensor, optional): Shape (C,), already in the values.
        ignore_index (int): The label that is ignored.
    """

    values: Tensor
    labels: Tensor
    class_weight: Tensor | None
    ignore_index: int


class CrossEntropyCalls(TorchFunctionMode):
    """Keep the pixel losses that the stock loss computes anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[PixelLosses] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch_cross_entropy:
            self.calls.append(
                PixelLosses(
                    result.detach(),
                    args[1],
                    kwargs['weight'],
                    kwargs['ignore_index'],
                )
            )
        return result


def _loss_modules(head: Any) -> list[Any]:
    losses = head.loss_decode
    return list(losses) if isinstance(losses, nn.ModuleList) else [losses]


def can_score_in_one_pass(head: Any) -> bool:
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


def score_in_one_pass(
    head: Any,
    stock_loss: Callable[..., Losses],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Losses, Tensor]:
    """Compute the stock losses and, from the same pass, the scores.

    Makes no host synchronisation of its own.

    Returns:
        tuple[dict, Tensor]: The stock losses, and the scores, shape (B,).
    """
    with CrossEntropyCalls() as seen:
        losses = stock_loss(*args, **kwargs)
    modules = _loss_modules(head)
    assert len(seen.calls) == len(modules)
    scores = [
        loss.loss_weight * image_means(call, loss.avg_non_ignore)
        for loss, call in zip(modules, seen.calls, strict=True)
    ]
    return losses, torch.stack(scores).sum(0)


def image_means(losses: PixelLosses, avg_non_ignore: bool) -> Tensor:
    """Average pixel losses over each image, as mmseg's cross-entropy does.

    Args:
        losses (PixelLosses): The pixel losses of a batch.
        avg_non_ignore (bool): Whether ignored pixels leave the denominator.

    Returns:
        Tensor: Shape (B,).
    """
    sums = losses.values.float().flatten(1).sum(1)
    weight = losses.class_weight
    if weight is None and not avg_non_ignore:
        return sums / losses.values[0].numel()
    counted = losses.labels != losses.ignore_index
    pixels = counted.float()
    if weight is not None:
        pixels = pixels * weight.float()[losses.labels.where(counted, 0)]
    return sums / (pixels.flatten(1).sum(1) + torch.finfo(torch.float32).eps)


def score_image_by_image(
    head: Any,
    stock_loss: Callable[..., Losses],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Score by calling the stock loss on a batch of each image alone.

    The random state of the CPU and of the device is put back after each, so
    that scoring never changes the training and that a loss which draws random
    numbers draws the same for each image. Losses that average over the
    ranks (those of the mask heads) see one process.

    Returns:
        Tensor: Scores, shape (B,); NaN for an image without a label whose
        loss upstream cannot compute (binary cross-entropy).
    """
    bound = signature(stock_loss).bind(*args, **kwargs)
    whole = dict(bound.arguments)
    weights, axis = head.infobatch_ledger.weights, head.infobatch_batch_axis
    devices = sorted({t.device.index for t in _tensors(whole) if t.is_cuda})
    scores = []
    with torch.no_grad(), one_process():
        for image in range(len(weights)):
            bound.arguments.update(_select(whole, image, axis))
            try:
                with torch.random.fork_rng(devices=devices):
                    losses = stock_loss(*bound.args, **bound.kwargs)
                scores.append(total_loss(losses))
            except RuntimeError:
                if not _is_blank(bound.arguments, head.ignore_index):
                    raise
                scores.append(weights.new_tensor(torch.nan))
    return torch.stack(scores)


@contextmanager
def one_process() -> Iterator[None]:
    """Make collectives those of a single process.

    A score is the loss of a batch of one image, not of as many images as
    there are ranks, and ranks must not wait for each other to get it.
    """
    is_initialized = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = is_initialized


def total_loss(losses: Losses) -> Tensor:
    """Sum what ``parse_losses`` would sum: the entries named a loss."""
    total = torch.zeros(())
    for name, value in losses.items():
        if 'loss' in name:
            parts = value if isinstance(value, (list, tuple)) else [value]
            total = sum((part.mean().float() for part in parts), total)
    return total


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _is_blank(arguments: Mapping[str, Any], ignore_index: int) -> bool:
    """Tell whether there are samples, none of them with a label."""
    samples = arguments.get('batch_data_samples', [])
    labels = [sample.gt_sem_seg.data for sample in samples]
    return bool(labels) and all(
        bool((label == ignore_index).all()) for label in labels
    )


def _select(value: Any, image: int, axis: int, name: str = '') -> Any:
    """Cut everything that is per image down to one image.

    A list holds one item a layer, unless it is one of data samples or is
    named as mmdet names what it has of each image: ``batch_img_metas``, ...
    """
    if isinstance(value, Tensor):
        return value.narrow(axis, image, 1)
    if isinstance(value, Mapping):
        return {k: _select(v, image, axis, k) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        is_sample = value and isinstance(value[0], BaseDataElement)
        if is_sample or name.startswith('batch_'):
            return value[image : image + 1]
        return type(value)(_select(item, image, axis) for item in value)
    return value
