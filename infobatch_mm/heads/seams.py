"""The calls in which heads compute their losses.

Heads of mmseg go through their ``loss_by_feat`` method; those of mmpretrain
call their ``loss_module``, be it once a step, several times (Conformer) or
past their own ``_get_loss`` (ArcFace).
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from mmengine.config.config import DELETE_KEY
from torch import Tensor, nn

from ..ledger import Ledger
from .rows import NotesSamplesMixin, note_samples_around
from .scoring import tensors_in
from .weighted import WeightedHeadMixin, weigh

# The batch axis of the tensors that enter ``loss_by_feat``, by the nearest
# class: MaskFormer stacks its layers before the batch, while Mask2Former,
# which derives from it, lists them. It is 0 for all other heads of mmseg.
BATCH_AXES = {'MaskFormerHead': 1, 'Mask2FormerHead': 0}


class LossByFeatMixin(NotesSamplesMixin, WeightedHeadMixin):
    """Wrap ``loss_by_feat``, which every decode head goes through."""

    # Not every loss_by_feat gets the data samples.
    infobatch_noted = ('loss',)

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Compute the stock losses, weighted and recorded per image."""
        stock_loss = super().loss_by_feat  # type: ignore[misc]
        return self.infobatch_loss(stock_loss, args, kwargs)

    def infobatch_loss_modules(self: Any) -> list[nn.Module]:
        """Return the modules of a head that are named a loss."""
        named = [
            module
            for name, module in self.named_children()
            if name.startswith('loss')
        ]
        return [
            module
            for each in named
            for module in (each if isinstance(each, nn.ModuleList) else [each])
        ]


class LossModuleMixin(WeightedHeadMixin):
    """Wrap the call of a classification head's loss module."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the stock loss, weighted and recorded per image."""
        stock_loss = super().forward  # type: ignore[misc]
        return self.infobatch_loss(stock_loss, args, kwargs)

    def infobatch_check(self, inputs: Any, rows: int) -> None:
        """Raise a ValueError unless the loss gets all rows."""
        _check_batch(inputs, rows, type(self).__name__)

    def infobatch_loss_modules(self: Any) -> list[nn.Module]:
        """Return the loss module itself."""
        return [self]


def _check_batch(inputs: Any, batch: int, name: str) -> None:
    """Raise a ValueError unless a loss gets all images of the batch."""
    for tensor in tensors_in(inputs):
        if tensor.dim() and len(tensor) != batch:
            raise ValueError(
                f'{name} got a tensor of shape {tuple(tensor.shape)} in a '
                f'batch of {batch} images, so it cannot be told which weight '
                'belongs to which row. A MultiTaskHead can be pruned if every '
                'sample has a label for every task; other losses over parts '
                'or pairs of a batch cannot. Train this model without '
                'InfoBatch'
            )


def seam_of(head: nn.Module) -> nn.Module | None:
    """Return the module whose class attach() changes for a head, if any.

    A loss module counts if its owner can predict. Those of pretraining cannot;
    their losses compare the images of a batch, or are over parts of them.
    """
    # Of its class: a wrapper hands on that of the head within.
    if callable(getattr(type(head), 'loss_by_feat', None)):
        return head
    loss = getattr(head, 'loss_module', None)
    predicts = callable(getattr(head, 'predict', None))
    return loss if predicts and isinstance(loss, nn.Module) else None


def outermost_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that compute losses, by name.

    Heads within one that has a ``loss_by_feat`` give their outputs to it and
    are left out.
    """
    within: tuple[str, ...] = ()
    for name, module in model.named_modules():
        seam = seam_of(module)
        if seam is None or name.startswith(within):
            continue
        if seam is module:
            within += (f'{name}.' if name else '',)
        yield name, module


def follow_samples(model: nn.Module, ledger: Ledger) -> None:
    """Let a run's ledger know which sample each row of a head is of.

    Heads with a ``loss_by_feat`` are given the samples, or note them. What
    owns a loss module, and what is around it, must be made to.
    """
    owners = [
        name
        for name, head in outermost_heads(model)
        if seam_of(head) is not head
    ]
    note_samples_around(model, owners, ledger)


def batch_axis_of(head: nn.Module) -> int:
    """Return the batch axis of the tensors that a head's loss takes."""
    names = [kind.__name__ for kind in type(head).__mro__]
    return next((BATCH_AXES[n] for n in names if n in BATCH_AXES), 0)


def head_config(head: Any, settings: Mapping[str, Any]) -> Any:
    """Return the config of a stock head, with what is set beside it.

    Segmentors set it there, and so does a child of a pruned config, with
    ``_delete_`` in what is to replace that of the base.

    Args:
        head (dict): The config; it is not changed.
        settings (dict): What is set beside it.
    """
    # A copy, not a dict(): mmseg heads read attributes of a ConfigDict.
    config = head.copy()
    for name, value in settings.items():
        if isinstance(config.get(name), Mapping):
            config[name] = deepcopy(config[name])
        if isinstance(value, Mapping) and DELETE_KEY in value:
            value = value.copy()  # type: ignore[attr-defined]
            if value.pop(DELETE_KEY):
                config.pop(name, None)
        config.update({name: value})
    return config


def attach(head: nn.Module, *, batch_axis: int | None = None) -> nn.Module:
    """Make a stock head a weighted one, in place.

    Its parameters, attributes, state-dict keys, ``repr`` and ``isinstance``
    stay what they were. Attaching twice changes nothing.

    Args:
        head (nn.Module): A head with a ``loss_by_feat`` method, or with a
            ``loss_module`` and a ``predict`` method, or one that is made of
            such heads.
        batch_axis (int, optional): The batch axis of the tensors that carry
            gradient into ``loss_by_feat``. Defaults to that of mmseg's head.

    Returns:
        nn.Module: The same object.
    """
    parts = [part for _, part in outermost_heads(head)]
    if not parts:
        raise TypeError(
            f'{type(head).__name__} has no loss_by_feat method, as heads of '
            'mmseg have, and no loss_module with a predict method, as '
            'classification heads of mmpretrain have, so its gradients cannot '
            'be weighted per image. Train this model without InfoBatch'
        )
    for part in parts:
        seam = seam_of(part)
        assert seam is not None
        if seam is part:
            axis = batch_axis_of(part) if batch_axis is None else batch_axis
            weigh(part, LossByFeatMixin, batch_axis=axis)
        else:
            weigh(seam, LossModuleMixin, batch_axis=0)
    return head
