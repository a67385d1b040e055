"""The loss that each image gives by itself.

The score of an image is what the stock head would report for a batch of that
image alone. In general that is found by calling the stock loss again, one
image at a time, which does synchronise with the device where the stock loss
does. Losses for which one pass is enough register it with
:func:`losses_and_scores`.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple, Protocol

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..host.losses import one_process
from ..host.untouched import Untouched, UntouchedRandomness
from .padding import cropped, own_parts

Losses = dict[str, Tensor]


class Scored(Protocol):
    """What scoring asks of a weighted module.

    Attributes:
        infobatch_batch_axis (int): The batch axis of the tensors that enter
            the call in which it computes its losses.
    """

    infobatch_batch_axis: int

    def infobatch_loss_modules(self) -> list[nn.Module]:
        """Return the modules that get outputs and labels within the call."""

    def modules(self) -> Iterator[nn.Module]:
        """Return the module and all within it."""


class SeamCall(NamedTuple):
    """A call in which a head computes its losses.

    Attributes:
        stock_loss (Callable): What computes them.
        args (tuple): Its arguments, with the gradient weighted.
        kwargs (dict): Those by keyword.
        weights (Tensor): The weight of each row, float32, (R,).
    """

    stock_loss: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: Tensor

    def run(self) -> Any:
        """Return what the stock loss returns."""
        return self.stock_loss(*self.args, **self.kwargs)


def losses_and_scores_alone(
    head: Scored, call: SeamCall
) -> tuple[Any, Tensor]:
    """Compute the scores image by image, then the stock losses.

    Returns:
        tuple: What the stock loss returns, and the scores, shape (R,).
    """
    scores = score_image_by_image(head, call)
    return call.run(), scores


# By the class of the weighted module, so that no host package is needed for
# the others.
losses_and_scores = functools.singledispatch(losses_and_scores_alone)


@functools.singledispatch
def scores_in_one_pass(head: Any) -> bool:
    """Tell whether the scores of a weighted module need no further call."""
    return False


@functools.singledispatch
def has_pixel_losses(head: Any) -> bool:
    """Tell whether a weighted module can score by class."""
    return False


def score_image_by_image(head: Scored, call: SeamCall) -> Tensor:
    """Score by calling the stock loss on a batch of each image alone.

    Each call finds the head, its loss and the random state of the CPU and of
    the device as they were before the first, and so does the training after
    the last: a loss that draws random numbers draws the same for each image,
    and one that counts its calls counts none of these. Losses that average
    over the ranks (those of the mask heads) see one process, and padding is
    cut off.

    Returns:
        Tensor: Scores, shape (R,); NaN for an image without a label whose
        loss upstream cannot compute (binary cross-entropy).
    """
    bound = signature(call.stock_loss).bind(*call.args, **call.kwargs)
    whole = dict(bound.arguments)
    images, axis = len(call.weights), head.infobatch_batch_axis
    devices = sorted({t.device.index for t in tensors_in(whole) if t.is_cuda})
    parts: Any = own_parts(call.args, call.kwargs)
    losses_of = head.infobatch_loss_modules()
    scores = []
    with (
        torch.no_grad(),
        one_process(),
        UntouchedRandomness(devices) as randomness,
        Untouched(head.modules()) as state,
    ):
        for image in range(images):
            randomness.renew()
            state.renew()
            alone = _select(whole, image, images, axis)
            bound.arguments.update(alone)
            try:
                with cropped(losses_of, parts and parts[image]):
                    losses = call.stock_loss(*bound.args, **bound.kwargs)
                scores.append(total_loss(losses))
            except RuntimeError:
                if not _is_blank(head, bound.arguments):
                    raise
                scores.append(call.weights.new_tensor(torch.nan))
    return torch.stack(scores)


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


def _select(
    value: Any, image: int, images: int, axis: int, name: str = ''
) -> Any:
    """Cut everything that is per image down to one image.

    An ``avg_factor`` is the number of images, by which the loss is divided.
    """

    def select(item: Any, name: str = '') -> Any:
        return _select(item, image, images, axis, name)

    if name == 'avg_factor' and value is not None:
        return 1
    if isinstance(value, Tensor):
        is_of_images = value.dim() > axis and value.shape[axis] == images
        part = value.narrow(axis, image, 1) if is_of_images else value
        return part.clone()  # since a loss may change its labels in place
    if isinstance(value, dict):
        twin = copy.copy(value)  # of its class, with its attributes
        for key, item in value.items():
            twin[key] = select(item, key)
        return twin
    if isinstance(value, (tuple, list)):
        is_struct = hasattr(value, '_fields')  # a named tuple
        if not is_struct and _is_per_image(value, images, axis, name):
            return value[image : image + 1]
        items = [select(item) for item in value]
        return type(value)(*items) if is_struct else type(value)(items)
    return value


def _is_per_image(
    items: Sequence[Any], images: int, axis: int, name: str
) -> bool:
    """Tell whether a list holds one item an image, and not one a layer.

    So it is with data samples, and with what is named as mmdet names what it
    has of each image (``batch_img_metas``, ...). Of others as long as the
    batch, those with gradient are of layers, each of which holds the batch,
    and those of numbers and names are settings.

    Raises:
        ValueError: If it may be either.
    """
    if not items or isinstance(items[0], BaseDataElement):
        return bool(items)
    if name.startswith('batch_'):
        return True
    tensors = tensors_in(items)
    has_dicts = any(isinstance(item, Mapping) for item in items)
    if len(items) != images or images == 1 or not (tensors or has_dicts):
        return False
    if any(tensor.requires_grad for tensor in tensors):
        return False  # it was weighted along the axis of the batch
    if not any(
        tensor.dim() > axis and tensor.shape[axis] == images
        for tensor in tensors
    ):
        return True
    raise ValueError(
        f'a loss is given a list of {images} items, the images of the batch, '
        f'whose tensors are as long, of shape {tuple(tensors[0].shape)}: it '
        'cannot be told whether it has an item for each image or for each '
        "layer, so score='image_mean' cannot cut it. Name it batch_..., if it "
        "is one for each image, or set score='gradient_norm'"
    )
