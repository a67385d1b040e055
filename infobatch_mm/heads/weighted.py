"""What weights the gradient of each image and records its loss."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from ..ledger import Ledger
from ..rescale import scale_gradient
from .scoring import losses_and_scores


class WeightedHeadMixin:
    """Wrap the one call, the seam, that a stock module computes losses in.

    While the ledger is open, every tensor that enters the seam has its
    gradient weighted per image, and the loss of each image is recorded. The
    stock loss is called as it is, so its value and, at weight 1, its
    gradients stay those of the stock module bit for bit.

    Attributes:
        infobatch_stock (type): The stock class of the module.
        infobatch_ledger (Ledger): Set by :class:`InfoBatchHook`; a closed one
            of the module's own before.
        infobatch_batch_axis (int): The batch axis of the tensors that enter
            the seam.
    """

    infobatch_stock: type
    infobatch_ledger: Ledger
    infobatch_batch_axis: int

    def infobatch_loss(
        self,
        stock_loss: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Compute the stock losses, weighted and recorded per image."""
        ledger, axis = self.infobatch_ledger, self.infobatch_batch_axis
        if ledger.weights is None:
            return stock_loss(*args, **kwargs)
        args = scale_gradient(args, ledger.weights, axis=axis)
        kwargs = scale_gradient(kwargs, ledger.weights, axis=axis)
        losses, scores = losses_and_scores(self, stock_loss, args, kwargs)
        ledger.record(self, scores)
        return losses

    def infobatch_alone(
        self, stock_loss: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return what computes the stock losses of a batch of one image."""
        return stock_loss

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies and pickles name the stock class, since the class made by
        # weigh() is not importable.
        return _blank_copy, type(self).__bases__, self.__dict__


@functools.cache
def _weighted_class(mixin: Any, stock: Any) -> Any:
    """Return the weighted subclass of a stock class."""
    return type(
        stock.__name__,
        (mixin, stock),
        {
            '__module__': stock.__module__,
            '__doc__': stock.__doc__,
            'infobatch_stock': stock,
        },
    )


def _blank_copy(mixin: Any, stock: Any) -> nn.Module:
    weighted = _weighted_class(mixin, stock)
    return weighted.__new__(weighted)


def weigh(module: nn.Module, mixin: Any, *, batch_axis: int) -> None:
    """Give a stock module the weighted subclass of its class, in place.

    Its parameters, attributes, state-dict keys, ``repr`` and ``isinstance``
    stay what they were. Doing it twice changes nothing.

    Args:
        module (nn.Module): The module with the seam.
        mixin (type): The mixin that wraps the seam.
        batch_axis (int): The batch axis of the tensors that enter the seam.
    """
    if isinstance(module, WeightedHeadMixin):
        return
    stock: Any = type(module)
    module.__class__ = _weighted_class(mixin, stock)
    module.infobatch_ledger = Ledger()  # type: ignore[assignment]
    module.infobatch_batch_axis = batch_axis  # type: ignore[assignment]
