"""Train loops whose budget is the full-data clock."""

from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn

from .binding import find_sampler, global_batch_size
from .clock import EpochClock, FullDataClock, crosses
from .host.running import count_epoch


@LOOPS.register_module()
class InfoBatchEpochBasedTrainLoop(EpochBasedTrainLoop):
    """Epoch-based training with pruned rounds; an epoch is a round.

    It differs from ``EpochBasedTrainLoop`` in that ``batch_idx`` goes on
    where it stood when a run is resumed within an epoch.

    Attributes:
        clock (EpochClock): Position in the full-data budget.
    """

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        find_sampler(self.dataloader)  # or say that it is another one
        self.clock = EpochClock(self.max_iters, len(self.dataloader))

    def run_epoch(self) -> None:
        """Iterate one round."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, batch in enumerate(self.dataloader, self.clock.position):
            self.run_iter(idx, batch)
        self.runner.call_hook('after_train_epoch')
        count_epoch(self)


@LOOPS.register_module()
class InfoBatchIterBasedTrainLoop(IterBasedTrainLoop):
    """Iteration-based training with pruned rounds.

    ``max_iters`` is the full-data budget of the stock config, and
    ``val_begin``, ``val_interval`` and ``dynamic_intervals`` count on the
    full-data clock too, so that a pruned run validates as often and at the
    same progress as the stock one. ``iter`` counts real iterations, and
    ``runner.max_iters`` is the number of real iterations that the run will
    have made, estimated until the last round.

    Unlike an ``InfiniteSampler`` a round ends: it is a pass over the kept
    samples, without a uniformly drawn remainder smaller than a global batch.
    Hooks may define ``before_train_round(runner)`` and
    ``after_train_round(runner)``.

    Attributes:
        clock (FullDataClock): Position in the full-data budget.
    """

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        # Rounds iterate the dataloader themselves.
        del self.dataloader_iterator
        sampler = find_sampler(self.dataloader)
        batch = global_batch_size(self.dataloader, sampler.world_size)
        samples = len(self.dataloader.dataset)
        if samples < batch:
            raise ValueError(
                f'the train data set has {samples} samples, fewer than one '
                f'global batch of {batch}. Lower train_dataloader.batch_size '
                'or wrap the data set in a RepeatDataset'
            )
        self.clock = FullDataClock(self.max_iters, samples // batch)

    def run(self) -> nn.Module:
        """Launch training."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        # A resumed run may have its last round to record, though none of its
        # iterations is left.
        while self.clock.in_round or not self.clock.done:
            self.run_round()
            if self.stop_training:
                break
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_round(self) -> None:
        """Iterate one round, or what the budget leaves of it."""
        self.runner.call_hook('before_train_round')
        batches = iter(self.dataloader)
        while self.clock.iters_left_in_round and not self.stop_training:
            self.runner.model.train()
            batch = next(batches, None)
            if batch is None:
                raise RuntimeError(
                    'the train dataloader gave fewer than its '
                    f'{len(self.dataloader)} batches in a round. Let the '
                    'length of its batch_sampler say how many it gives'
                )
            self.run_iter(batch)
            self._decide_current_val_interval()
            if self._validation_is_due():
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_round')

    def _validation_is_due(self) -> bool:
        now, begin = self.clock.now, self.val_begin
        previous = max(self.clock.previous, begin - 1)
        return (
            self.runner.val_loop is not None
            and now >= begin
            and (crosses(previous, now, self.val_interval) or self.clock.done)
        )

    def _decide_current_val_interval(self) -> None:
        """Take ``val_interval`` from the milestone that the clock passed."""
        for milestone, interval in zip(
            self.dynamic_milestones, self.dynamic_intervals, strict=True
        ):
            if self.clock.now + 1 >= milestone:
                self.val_interval = interval
