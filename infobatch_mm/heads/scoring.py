"""The loss that each image gives by itself.

The score of an image is what the stock head would report for a batch of that
image alone. In general that is found by calling the stock loss again, one
image at a time, which does synchronise with the device where the stock loss
does. Losses for which one pass is enough register it with
:func:`losses_and_scores`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

Losses = dict[str, Tensor]


def losses_and_scores_alone(
    head: Any,
    stock_loss: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, Tensor]:
    """Compute the scores image by image, then the stock losses.

    Returns:
        tuple: What the stock loss returns, and the scores, shape (B,).
    """
    alone = head.infobatch_alone(stock_loss)
    scores = score_image_by_image(head, alone, args, kwargs)
    return stock_loss(*args, **kwargs), scores


# By the class of the weighted module, so that no host package is needed for
# the others.
losses_and_scores = functools.singledispatch(losses_and_scores_alone)


@functools.singledispatch
def has_pixel_losses(head: Any) -> bool:
    """Tell whether a weighted module can score by class."""
    return False


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
    devices = sorted({t.device.index for t in tensors_in(whole) if t.is_cuda})
    scores = []
    with torch.no_grad(), one_process():
        for image in range(len(weights)):
            bound.arguments.update(_select(whole, image, axis))
            try:
                with torch.random.fork_rng(devices=devices):
                    losses = stock_loss(*bound.args, **bound.kwargs)
                scores.append(total_loss(losses))
            except RuntimeError:
                if not _is_blank(head, bound.arguments):
                    raise
                scores.append(weights.new_tensor(torch.nan))
    return torch.stack(scores)


@contextmanager
def one_process() -> Iterator[None]:
    """Make collectives those of a single process.

    A score is the loss of a batch of one image, not of as many images as
    there are ranks, and ranks must not wait for each other to get it.
    """
    # Global, since it is what losses ask before they average: those of mmdet
    # in its reduce_mean, SAN's in mmengine.dist, a user's who knows where.
    # Each module that averages has names of its own for such functions.
    is_initialized = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = is_initialized


def total_loss(losses: Any) -> Tensor:
    """Sum what ``parse_losses`` would sum: the entries named a loss."""
    if not isinstance(losses, Mapping):  # of a loss module
        losses = dict(loss=losses)
    total = torch.zeros(())
    for name, value in losses.items():
        if 'loss' in name:
            parts = value if isinstance(value, (list, tuple)) else [value]
            total = sum((part.mean().float() for part in parts), total)
    return total


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def _is_blank(head: Any, arguments: Mapping[str, Any]) -> bool:
    """Tell whether there are samples, none of them with a label."""
    samples = arguments.get('batch_data_samples', [])
    labels = [sample.gt_sem_seg.data for sample in samples]
    return bool(labels) and all(
        bool((label == head.ignore_index).all()) for label in labels
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
