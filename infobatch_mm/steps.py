"""What pruning does around a training step: weights before, scores after."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .binding import find_heads, training_heads
from .datasets.identity import Identities
from .heads import follow_samples
from .ledger import Ledger, copy_to_device
from .pruned_run import PrunedRun
from .reach import inner_model, refuse_unreached, unreached_parameters
from .training_step import end_step, record_step


class Steps:
    """What the training steps of a run have in common.

    Args:
        model (nn.Module): The model, or its DDP wrapper.
        run (PrunedRun): The state of the run.
        ledger (Ledger): What the heads record to.
        identities (Identities): What the samples are.
        unweighted (str | Sequence[str]): See :class:`InfoBatchHook`.

    Attributes:
        heads (dict): What is weighted, by the names of the heads.
        in_flight (bool): Whether a batch has begun and not ended.
    """

    def __init__(
        self,
        model: nn.Module,
        run: PrunedRun,
        ledger: Ledger,
        identities: Identities,
        unweighted: str | Sequence[str],
    ) -> None:
        self.run, self.ledger, self.identities = run, ledger, identities
        self.heads = find_heads(model)
        if ledger.class_balanced:
            checks.check_class_balanced(self.heads)
        for head in self.heads.values():
            head.infobatch_ledger = ledger
        # The look before the first step finds parameters of losses by itself.
        ledger.guards_parameters = False
        follow_samples(inner_model(model), ledger)
        self._training_heads = training_heads(model)
        self._allowed = () if unweighted == 'refuse' else unweighted
        self.has_looked = unweighted == 'allow'
        self._device = next(model.parameters()).device
        self._ids = torch.empty(0, dtype=torch.int64)
        self.in_flight = False

    def begin(self, runner: Any, batch: Any) -> None:
        """Look up the weights of a batch by the ids that came with it."""
        self._ids, slots = self._read(batch)
        samples = self._ids.tolist()
        slots = copy_to_device(slots, self._device)
        weights = copy_to_device(self.run.weights[self._ids], self._device)
        if not self.has_looked:
            self.ledger.open(slots, 0 * weights, samples=samples)
            self._look_for_unweighted(runner, batch)
        self.ledger.open(
            slots, weights, samples=samples, nowhere=self.run.board.unscored
        )
        record_step(runner.model, batch, self.ledger)
        self.in_flight = True

    @property
    def is_trained(self) -> bool:
        """bool: Whether a batch was trained on and is not scored yet."""
        return self.in_flight and bool(self.ledger.reporters)

    def end(self, runner: Any) -> int:
        """Take the scores of the batch.

        Returns:
            int: The ticks of the clock that the step was worth.
        """
        self.in_flight = False
        end_step(runner.model)
        checks.check_reported(self._training_heads, self.ledger)
        self.run.board.update(*self.ledger.close())
        return self.run.end_step(self._ids)

    def _read(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the ids of a batch, and where their scores go."""
        samples = batch['data_samples']
        ids = torch.tensor([sample.infobatch_index for sample in samples])
        refetched = [sample.infobatch_refetched for sample in samples]
        self.identities.note(samples)
        if not any(refetched):
            return ids, ids
        elsewhere = torch.tensor(refetched)
        return ids, ids.masked_fill(elsewhere, self.run.board.unscored)

    def _look_for_unweighted(self, runner: Any, batch: Any) -> None:
        """Refuse a loss of which a part escapes the weights."""
        names = unreached_parameters(runner.model, batch, runner.optim_wrapper)
        if names is None:  # a loss that is not finite: look at the next batch
            return
        refuse_unreached(names, self._allowed)
        self.has_looked = True
