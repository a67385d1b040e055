"""The part of a padded batch that is an image's own.

mmseg pads the images of a batch to the size of the largest. The pixels added
have no label, but would count in the mean over all pixels, so that the score
of an image would depend on those beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from .rows import sample_lists


class Own(NamedTuple):
    """Where an image lies in its padded form.

    Attributes:
        rows (slice): Its rows.
        columns (slice): Its columns.
        padded (tuple[int, int]): Height and width with the padding.
    """

    rows: slice
    columns: slice
    padded: tuple[int, int]

    @property
    def share(self) -> float:
        """float: The image's share of the padded area."""
        height, width = self.padded
        rows, columns = self.rows, self.columns
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return area / (height * width)


def own_parts(args: Any, kwargs: Any) -> list[Own] | None:
    """Return where each image of a head's call lies, if any is padded."""
    for samples in sample_lists(args, kwargs):
        found = [_own_part(sample) for sample in samples]
        parts = [part for part in found if part is not None]
        if len(parts) == len(samples):
            is_padded = any(part.share < 1 for part in parts)
            return parts if is_padded else None
    return None


def _own_part(sample: Any) -> Own | None:
    """Read what mmseg's stack_batch writes; None where it was not used."""
    if not isinstance(sample, dict):
        sample = vars(sample)
    padding, padded = sample.get('padding_size'), sample.get('pad_shape')
    if padding is None or padded is None:
        return None
    left, right, top, bottom = padding
    height, width = padded[:2]
    return Own(
        slice(top, height - bottom),
        slice(left, width - right),
        (height, width),
    )


@contextmanager
def cropped(losses: list[nn.Module], own: Own | None) -> Iterator[None]:
    """Let loss modules see an image without its padding.

    What they get in the padded size is cropped; what comes in another size,
    such as the points of a PointHead, is left as it is.
    """
    if own is None or own.share == 1:
        yield
        return
    crop = partial(_crop_inputs, own)
    handles = [
        loss.register_forward_pre_hook(crop, with_kwargs=True)
        for loss in losses
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _crop_inputs(own: Own, loss: Any, args: Any, kwargs: Any) -> Any:
    return (
        tuple(_crop(own, value) for value in args),
        {name: _crop(own, value) for name, value in kwargs.items()},
    )


def _crop(own: Own, value: Any) -> Any:
    is_padded = isinstance(value, Tensor) and value.shape[-2:] == own.padded
    return value[..., own.rows, own.columns] if is_padded else value
