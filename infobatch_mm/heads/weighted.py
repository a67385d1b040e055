"""What weights the gradient of each image and records its loss."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..host.classes import Swapped, swap_class
from ..ledger import Ledger
from ..rescale import are_weighted, scale_gradient
from .rows import rows_of
from .scoring import SeamCall, losses_and_scores, tensors_in


class WeightedHeadMixin(Swapped):
    """Wrap the one call, the seam, that a stock module computes losses in.

    While the ledger is open, every tensor that enters the seam has its
    gradient weighted per image, and the loss of each image is recorded, or
    the norm of its gradient. The
    stock loss is called as it is, so its value and, at weight 1, its
    gradients stay those of the stock module bit for bit.

    Attributes:
        infobatch_ledger (Ledger): Set by :class:`InfoBatchHook`; a closed one
            of the module's own before.
        infobatch_batch_axis (int): The batch axis of the tensors that enter
            the seam.
    """

    infobatch_ledger: Ledger
    infobatch_batch_axis: int
    modules: Callable[[], Iterator[nn.Module]]  # the stock module's

    def infobatch_loss(
        self,
        stock_loss: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Compute the stock losses, weighted and recorded per image."""
        ledger = self.infobatch_ledger
        # A loss without gradients, to be watched or of a teacher, trains none.
        if not (ledger.is_open and torch.is_grad_enabled()):
            return stock_loss(*args, **kwargs)
        # One that calls itself, layer by layer, or another has weighted all.
        if ledger.is_within:
            ledger.reporters.append(self)
            return stock_loss(*args, **kwargs)
        ledger.is_within = True
        try:
            return self._weighted_loss(ledger, stock_loss, args, kwargs)
        except RuntimeError as error:
            if '_ScaleGradient' not in str(error):
                raise
            raise RuntimeError(
                f'the loss of {type(self).__name__} changes its logits in '
                'place, whose gradient is weighted on its way back. Write '
                'logits = logits - x instead of logits -= x'
            ) from error
        finally:
            ledger.is_within = False

    def _weighted_loss(
        self,
        ledger: Ledger,
        stock_loss: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        axis = self.infobatch_batch_axis
        if ledger.guards_inputs and are_weighted(tensors_in((args, kwargs))):
            raise ValueError(
                f'the loss of {type(self).__name__} is given a tensor that '
                'comes out of the loss of a head, which has weighted its '
                'gradient: here it would be weighted a second time. A '
                'loss_by_feat or a loss module that keeps logits for another '
                'head must not; keep them in forward(), or detach() them'
            )
        rows = rows_of(self, args, kwargs)
        self.infobatch_check((args, kwargs), len(rows.weights))
        norms, weights = ledger.norms, rows.weights
        squares = None
        if norms is not None:
            squares = norms.squares_of(len(weights), rows.places)
        args, kwargs = scale_gradient(
            (args, kwargs), weights, axis=axis, squares=squares
        )
        call = SeamCall(stock_loss, args, kwargs, weights)
        if norms is not None:
            ledger.reporters.append(self)
            return norms.reported(call.run())
        losses, scores = losses_and_scores(self, call)
        ledger.record(self, scores, rows)
        return losses

    def infobatch_check(self, inputs: Any, rows: int) -> None:
        """Raise a ValueError if the inputs are not those of the rows."""

    def infobatch_loss_modules(self) -> list[nn.Module]:
        """Return the modules that get outputs and labels within the seam."""
        raise NotImplementedError


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
    swap_class(module, mixin)
    module.infobatch_ledger = Ledger()  # type: ignore[assignment]
    module.infobatch_batch_axis = batch_axis  # type: ignore[assignment]
