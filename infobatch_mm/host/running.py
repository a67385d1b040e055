"""What else of a run has to follow: counters, schedulers and viewers."""

from typing import Any

from mmengine.hooks import ParamSchedulerHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop
from mmengine.visualization import TensorboardVisBackend, WandbVisBackend
from torch import Tensor


def is_resuming(runner: Any) -> bool:
    """Tell whether a checkpoint is resumed, and not only its weights loaded.

    ``after_load_checkpoint`` is called for ``load_from`` too, and nothing
    public tells the two apart. ``Runner.resume(path)`` does not say so: it
    sets the iteration alone.
    """
    return runner._resume


def steps_schedulers(runner: Any, *, ticks_at_once: bool) -> bool:
    """Tell whether mmengine's own hook steps the schedulers of a run.

    Args:
        runner (Runner): The runner of the run.
        ticks_at_once (bool): Whether a step may be worth several of the
            full-data run, of which the hook is not told.

    Raises:
        ValueError: If it would have to be, as it has a rule of its own.
    """
    found = [h for h in runner.hooks if isinstance(h, ParamSchedulerHook)]
    stock = ParamSchedulerHook.after_train_iter
    for hook in found:
        if ticks_at_once and type(hook).after_train_iter is not stock:
            raise ValueError(
                f'{type(hook).__name__} steps the schedulers by a rule of '
                'its own, which cannot be followed where a step is worth '
                "several of the full-data run. Set pacing='smaller_batches'"
            )
    return bool(found)


def step_schedulers(schedulers: Any) -> None:
    """Step iteration-based schedulers once, as ParamSchedulerHook does.

    Args:
        schedulers (list | dict | None): ``runner.param_schedulers``.
    """
    if isinstance(schedulers, dict):
        for group in schedulers.values():
            step_schedulers(group)
        return
    for scheduler in schedulers or []:
        if not scheduler.by_epoch:
            scheduler.step()


def announce_max_iters(
    runner: Any, max_iters: int, *, is_exact: bool = False
) -> None:
    """Tell the loop and the optimizer how many iterations the run will have.

    The loop's number is behind the ETA and ``is_last_train_iter``, and can
    only be read in public. The optimizer wrapper's is behind the last group
    of gradient accumulation, so it is told when the number is exact, which it
    is in the last round at the latest.

    Args:
        runner (Runner): The runner of the run, whose round is planned.
        max_iters (int): Real iterations of the whole run.
        is_exact (bool): Whether the number is exact before the last round.
    """
    runner.train_loop._max_iters = max_iters
    runner.message_hub.update_info('max_iters', max_iters)
    wrapper = runner.optim_wrapper
    is_dict = isinstance(wrapper, OptimWrapperDict)
    for single in wrapper.values() if is_dict else [wrapper]:
        if is_exact or in_last_round(runner.train_loop):
            end_accumulation(single, max_iters)
        else:
            # mmengine's word for not known: all groups are whole.
            single._max_counts = -1


def count_epoch(loop: EpochBasedTrainLoop) -> None:
    """Count an epoch that a loop's own ``run_epoch`` has ended.

    mmengine's counts it in the method that ours replaces, and has no setter.
    """
    loop._epoch += 1


def in_last_round(loop: Any) -> bool:
    """Tell whether the planned round of a train loop ends the run."""
    if isinstance(loop, EpochBasedTrainLoop):
        return loop.epoch + 1 == loop.max_epochs
    clock = loop.clock
    return clock.round_start + clock.round_ticks >= clock.budget


def end_accumulation(wrapper: OptimWrapper, max_iters: int) -> None:
    """Let the last group of accumulated gradients end with the run.

    As in a stock run, the gradients of a last group that is not whole are
    divided by its own number of iterations. The wrapper works these numbers
    out once, at the start, and has no public way to correct them.

    Args:
        wrapper (OptimWrapper): Has accumulated whole groups up to now.
        max_iters (int): Real iterations of the whole run, exactly.
    """
    if wrapper._max_counts == max_iters:
        return  # it has known from the start
    rest = max_iters % wrapper._accumulative_counts
    wrapper._max_counts = max_iters
    wrapper._remainder_counts = rest
    if not rest or wrapper._inner_count < max_iters - rest:
        return
    # The group began in an earlier round, as if it were to become whole.
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            if parameter.grad is not None:
                parameter.grad.mul_(wrapper._accumulative_counts / rest)


def show_scores(visualizer: Any, scores: Tensor, step: int) -> None:
    """Show a histogram of the scores, where a viewer takes one.

    mmengine's visualizer passes scalars on to its backends, but no
    histograms, and has no public way to go through them. TensorBoard and W&B
    take one. W&B counts steps of its own, one a row of scalars: there the
    histogram is part of the next row.

    Args:
        visualizer (Visualizer): That of the run; only rank 0 may call it.
        scores (Tensor): Shape (N,), on any device. Those that are not finite
            are left out.
        step (int): Iterations done.
    """
    kinds = TensorboardVisBackend, WandbVisBackend
    backends = visualizer._vis_backends.values()
    takers = [each for each in backends if isinstance(each, kinds)]
    if not takers or not scores.isfinite().any():
        return
    values = scores[scores.isfinite()].cpu().numpy()
    for backend in takers:
        if isinstance(backend, TensorboardVisBackend):
            backend.experiment.add_histogram('infobatch/scores', values, step)
        else:
            wandb = backend.experiment
            histogram = wandb.Histogram(values)
            wandb.log({'infobatch/scores': histogram}, commit=False)
