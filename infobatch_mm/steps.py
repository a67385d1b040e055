"""What pruning does around a training step: weights before, scores after.

A loop calls hooks, then ``model.train_step`` with a batch, then hooks again.
Hooks may compute losses of their own with the same model; only what the model
computes within ``train_step`` of the batch itself trains it, so that alone is
weighted and scored.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from mmengine.dist import all_gather_object
from torch import Tensor, nn

from . import binding, checks
from .datasets.identity import Identities
from .heads import follow_samples
from .heads.rows import index_of
from .host.running import step_schedulers, steps_schedulers
from .ledger import Ledger, copy_to_device
from .pruned_run import PrunedRun
from .pruning import NoPruningPolicy
from .reach import inner_model, refuse_unreached, unreached_parameters


class Steps:
    """What the training steps of a run have in common.

    Args:
        runner (Runner): The runner of the run.
        run (PrunedRun): The state of the run.
        ledger (Ledger): What the heads record to.
        identities (Identities): What the samples are.
        unweighted (str | Sequence[str]): See :class:`InfoBatchHook`.

    Attributes:
        heads (dict): What is weighted, by the names of the heads.
        has_looked (bool): Whether no look for what escapes the weights is
            due.
        in_flight (bool): Whether a batch has begun and not ended.
        samples (int): Samples of this round so far, on this rank.
        substitutes (int): Those of them that stand in for one that could not
            be had.
    """

    def __init__(
        self,
        runner: Any,
        run: PrunedRun,
        ledger: Ledger,
        identities: Identities,
        unweighted: str | Sequence[str],
    ) -> None:
        self.run, self.ledger, self.identities = run, ledger, identities
        model = runner.model  # or its DDP wrapper
        self.heads = binding.find_heads(model)
        if ledger.class_balanced:
            binding.check_class_balanced(self.heads)
        for head in self.heads.values():
            head.infobatch_ledger = ledger
        follow_samples(inner_model(model), ledger)
        self._training_heads = binding.training_heads(model)
        self._allowed = () if unweighted == 'refuse' else unweighted
        # With nothing to prune every weight is 1.
        is_stock = isinstance(run.policy, NoPruningPolicy)
        self._looks = unweighted != 'allow' and not is_stock
        self._guards_first_step = unweighted == 'allow' and not is_stock
        self.has_looked = not self._looks
        if self._looks:
            checks.check_graph(model)
        self._pruned_rounds = 0
        self._trained: list[bool] = []
        self._has_stepped = False
        self._steps_schedulers = steps_schedulers(
            runner, ticks_at_once=run.dealing is None and not is_stock
        )
        self._device = next(model.parameters()).device
        self._ids = torch.empty(0, dtype=torch.int64)
        self.in_flight = False
        self.samples = self.substitutes = 0

    def begin_round(self, model: nn.Module, *, prunes: bool) -> None:
        """See whether a look for what escapes the weights is due.

        One is before the first step of the run. What is zero then, a penalty
        whose factor grows or the distance to a teacher that begins as a copy,
        does no harm until a round prunes. So it is looked for again before
        the first step of the first pruned round, of the second, fourth,
        eighth and so on, and of each round in which other parameters train.

        Args:
            model (nn.Module): The model, or its wrapper.
            prunes (bool): Whether the round leaves samples out.
        """
        trained = [each.requires_grad for each in model.parameters()]
        self._pruned_rounds += prunes
        is_due = prunes and self._pruned_rounds.bit_count() == 1
        if self._looks and (is_due or trained != self._trained):
            self.has_looked = False
        self._trained = trained
        self.samples = self.substitutes = 0

    def begin(self, runner: Any, batch: Any) -> None:
        """Look up the weights of a batch by the ids that came with it."""
        self._ids, slots = self._read(batch)
        samples = self._ids.tolist()
        slots = copy_to_device(slots, self._device)
        of_batch = self.run.weights[self._ids]
        checks.check_planned(self._ids, of_batch)
        weights = copy_to_device(of_batch, self._device)
        if not self.has_looked:
            self.ledger.guards_inputs = True
            self.ledger.open(slots, 0 * weights, samples=samples)
            self._look_for_unweighted(runner, batch)
        is_first = not self._has_stepped
        self.ledger.guards_inputs = is_first and self._guards_first_step
        self.ledger.open(
            slots, weights, samples=samples, nowhere=self.run.board.unscored
        )
        record_step(runner.model, batch, self.ledger)
        self.in_flight = True

    @property
    def is_trained(self) -> bool:
        """bool: Whether a batch was trained on and is not scored yet."""
        return self.in_flight and bool(self.ledger.reporters)

    def end(self, runner: Any) -> None:
        """Take the scores of the batch, and advance the clock.

        Schedulers are stepped once more for each further tick that the step
        was worth.
        """
        self.in_flight = False
        end_step(runner.model)
        self._check_reported()
        self.run.board.update(*self.ledger.close())
        ticks = self.run.end_step(self._ids)
        if self._steps_schedulers:
            for _ in range(ticks - 1):
                step_schedulers(runner.param_schedulers)

    def _read(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the ids of a batch, and where their scores go."""
        try:
            samples = batch['data_samples']
            ids = torch.tensor([sample.infobatch_index for sample in samples])
            refetched = [sample.infobatch_refetched for sample in samples]
        except (LookupError, TypeError, AttributeError) as error:
            raise TypeError(
                f'a batch of the train dataloader ({type(batch).__name__}) '
                'does not hold the data samples that its data set gives, as '
                "its 'data_samples', by which their weights are found. Let "
                'train_dataloader.collate_fn keep them, as pseudo_collate '
                'and default_collate do'
            ) from error
        self.identities.note(samples)
        self.samples += len(refetched)
        self.substitutes += sum(refetched)
        if not any(refetched):
            return ids, ids
        elsewhere = torch.tensor(refetched)
        return ids, ids.masked_fill(elsewhere, self.run.board.unscored)

    def _check_reported(self) -> None:
        """See that all heads that train were weighted in a step.

        One that drops out of the loss in the middle of a run does no harm if
        nothing else trains it, which is looked for before the next step, if
        it is looked at all.
        """
        if self._looks and self.ledger.reporters:
            if binding.silent_heads(self._training_heads, self.ledger):
                self.has_looked = False
        elif not (self._has_stepped and self.ledger.reporters):
            binding.check_reported(self._training_heads, self.ledger)
        self._has_stepped = True

    def _leave_out_silent(self) -> None:
        """Expect no loss of heads that have none in a step without weights."""
        silent = binding.silent_heads(self._training_heads, self.ledger)
        rest = {
            n: h for n, h in self._training_heads.items() if n not in silent
        }
        self._training_heads = rest or self._training_heads

    def _look_for_unweighted(self, runner: Any, batch: Any) -> None:
        """Refuse a loss of which a part escapes the weights."""
        names = unreached_parameters(runner.model, batch, runner.optim_wrapper)
        # The same on all ranks, or one would make a step more than another.
        of_ranks = all_gather_object(names)
        if None in of_ranks:  # a loss that is not finite: look once more
            return
        found = dict.fromkeys(chain.from_iterable(of_ranks))
        refuse_unreached(found, self._allowed)
        if self._has_stepped or self.run.round:
            self._leave_out_silent()
        binding.check_reported(self._training_heads, self.ledger)
        self.ledger.close()  # or say that there is nothing to score
        self.has_looked = True


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
    step = stock or _stock_step(model)
    if not _is_same(data, batch, ledger):
        return step(data, *args, **kwargs)
    with ledger.open_again():
        return step(data, *args, **kwargs)


def _stock_step(model: Any) -> Any:
    """Return the ``train_step`` that a model has beside the recorded one."""
    kind = type(model)
    if hasattr(kind, 'train_step'):
        return partial(kind.train_step, model)
    # That of the model within, as mmpretrain's LoRAModel hands it on.
    return kind.__getattr__(model, 'train_step')


def _is_same(data: Any, batch: Any, ledger: Ledger) -> bool:
    """Tell whether data are the batch, or its samples in another form."""
    if data is batch:
        return True
    samples = data.get('data_samples') if isinstance(data, Mapping) else None
    return [index_of(each) for each in samples or ()] == ledger.samples
