"""Heads that weight the gradient of each image and record its loss."""

import functools
from typing import Any

from torch import Tensor, nn

from ..ledger import Ledger
from ..rescale import scale_gradient
from .scoring import (
    can_score_in_one_pass,
    score_image_by_image,
    score_in_one_pass,
)

# The batch axis of the tensors that enter ``loss_by_feat``, by the nearest
# class: MaskFormer stacks its layers before the batch, while Mask2Former,
# which derives from it, lists them. It is 0 for all other heads of mmseg.
BATCH_AXES = {'MaskFormerHead': 1, 'Mask2FormerHead': 0}


class WeightedHeadMixin:
    """Wrap ``loss_by_feat``, the seam that every decode head goes through.

    While the ledger is open, every tensor that enters the stock
    ``loss_by_feat`` has its gradient weighted per image, and the loss of each
    image is recorded. The stock loss is called as it is, so its value and,
    at weight 1, its gradients stay those of the stock head bit for bit.

    Attributes:
        infobatch_stock (type): The stock class of the head.
        infobatch_ledger (Ledger): Set by :class:`InfoBatchHook`; a closed one
            of the head's own before.
        infobatch_batch_axis (int): The batch axis of the tensors that enter
            ``loss_by_feat``.
    """

    infobatch_stock: type
    infobatch_ledger: Ledger
    infobatch_batch_axis: int

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Compute the stock losses, weighted and recorded per image."""
        ledger, axis = self.infobatch_ledger, self.infobatch_batch_axis
        stock_loss = super().loss_by_feat  # type: ignore[misc]
        if ledger.weights is None:
            return stock_loss(*args, **kwargs)
        args = scale_gradient(args, ledger.weights, axis=axis)
        kwargs = scale_gradient(kwargs, ledger.weights, axis=axis)
        if can_score_in_one_pass(self):
            losses, scores = score_in_one_pass(self, stock_loss, args, kwargs)
        else:
            scores = score_image_by_image(self, stock_loss, args, kwargs)
            losses = stock_loss(*args, **kwargs)
        ledger.record(self, scores)
        return losses

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies and pickles name the stock class, since the class made by
        # attach() is not importable.
        return _blank_copy, (self.infobatch_stock,), self.__dict__


@functools.cache
def _weighted_class(stock: Any) -> Any:
    """Return the weighted subclass of a stock head class."""
    return type(
        stock.__name__,
        (WeightedHeadMixin, stock),
        {
            '__module__': stock.__module__,
            '__doc__': stock.__doc__,
            'infobatch_stock': stock,
        },
    )


def _blank_copy(stock: Any) -> nn.Module:
    weighted = _weighted_class(stock)
    return weighted.__new__(weighted)


def batch_axis_of(head: nn.Module) -> int:
    """Return the batch axis of the tensors that a head's loss takes."""
    names = [kind.__name__ for kind in type(head).__mro__]
    return next((BATCH_AXES[n] for n in names if n in BATCH_AXES), 0)


def attach(head: nn.Module, *, batch_axis: int | None = None) -> nn.Module:
    """Make a stock head a weighted one, in place.

    Its parameters, attributes, state-dict keys, ``repr`` and ``isinstance``
    stay what they were. Attaching twice changes nothing.

    Args:
        head (nn.Module): A head with a ``loss_by_feat`` method.
        batch_axis (int, optional): The batch axis of the tensors that carry
            gradient into ``loss_by_feat``. Defaults to that of mmseg's head.

    Returns:
        nn.Module: The same object.
    """
    if isinstance(head, WeightedHeadMixin):
        return head
    loss_by_feat = getattr(head, 'loss_by_feat', None)
    if not callable(loss_by_feat):
        raise TypeError(
            f'{type(head).__name__} has no loss_by_feat method, so its '
            'gradients cannot be weighted per image'
        )
    axis = batch_axis_of(head) if batch_axis is None else batch_axis
    stock: Any = type(head)
    head.__class__ = _weighted_class(stock)
    head.infobatch_ledger = Ledger()  # type: ignore[assignment]
    head.infobatch_batch_axis = axis  # type: ignore[assignment]
    return head
