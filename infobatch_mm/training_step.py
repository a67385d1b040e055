"""Tells the training step of a batch from other losses that hooks compute.

A loop calls hooks, then ``model.train_step`` with a batch, then hooks again.
Hooks may compute losses of their own with the same model; only what the model
computes within ``train_step`` of the batch itself trains it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from .heads.rows import index_of
from .ledger import Ledger


def record_step(model: nn.Module, batch: Any, ledger: Ledger) -> None:
    """Let a ledger that has begun a batch be open in its training step alone.

    Args:
        model (nn.Module): The one whose ``train_step`` the loop calls: the
            model itself or its DDP wrapper.
        batch (Any): The batch as the loop has it.
        ledger (Ledger): The ledger of the run.
    """
    end_step(model)
    ledger.is_open = False
    stock = vars(model).get('train_step')  # there is one if it is compiled
    # A partial, since the copy of a model that has one calls the copy.
    recorded: Any = partial(_recorded, model, stock, batch, ledger)
    model.train_step = recorded


def end_step(model: nn.Module) -> None:
    """Give the model its own ``train_step`` back."""
    step = vars(model).get('train_step')
    if not (isinstance(step, partial) and step.func is _recorded):
        return
    del model.train_step
    if step.args[1] is not None:
        model.train_step = step.args[1]


def _recorded(
    model: Any,
    stock: Any,
    batch: Any,
    ledger: Ledger,
    data: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a training step, recorded if it is one of the batch."""
    step = stock or partial(type(model).train_step, model)
    if not _is_same(data, batch, ledger):
        return step(data, *args, **kwargs)
    with ledger.open_again():
        return step(data, *args, **kwargs)


def _is_same(data: Any, batch: Any, ledger: Ledger) -> bool:
    """Tell whether data are the batch, or its samples in another form."""
    if data is batch:
        return True
    samples = data.get('data_samples') if isinstance(data, Mapping) else None
    return [index_of(each) for each in samples or ()] == ledger.samples
