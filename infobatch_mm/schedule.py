"""What else of a run counts iterations, and has to follow the clock."""

from typing import Any

from mmengine.optim import OptimWrapperDict


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


def announce_max_iters(runner: Any, max_iters: int) -> None:
    """Tell the loop and the optimizer how many iterations the run will have.

    The loop's number is behind the ETA and ``is_last_train_iter``, the
    optimizer wrapper's behind the last step of gradient accumulation.

    Args:
        runner (Runner): The runner of the run.
        max_iters (int): Real iterations of the whole run.
    """
    runner.train_loop._max_iters = max_iters
    runner.message_hub.update_info('max_iters', max_iters)
    wrapper = runner.optim_wrapper
    is_dict = isinstance(wrapper, OptimWrapperDict)
    for single in wrapper.values() if is_dict else [wrapper]:
        single._max_counts = max_iters
        single._remainder_counts = max_iters % single._accumulative_counts
