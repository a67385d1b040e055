"""When checkpoints are saved, so that they survive a crash while saving.

mmengine's CheckpointHook deletes the oldest checkpoint, writes the new one in
place, and then names it in ``last_checkpoint``. It has no public place to
change that order, so the hook of a pruned run is given a subclass made on the
spot. Its overrides end in ``super()``: what a user's own CheckpointHook does
there is done.
"""

import builtins
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mmengine.dist import get_world_size, master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook, Hook, checkpoint_hook

from ..clock import FullDataClock, crosses
from .checkpoint_files import ATOMIC


class CheckpointedRun(Protocol):
    """What a checkpoint hook needs to know of the pruned run."""

    clock: FullDataClock

    def gather_state(self) -> None:
        """Gather what a checkpoint holds of all ranks; all call it."""


class ClockedCheckpointMixin:
    """What a run with :class:`InfoBatchHook` changes in its CheckpointHook.

    Intervals in iterations count on the full-data clock. The ranks merge
    their scores before a checkpoint is written. The new checkpoint is
    written, named in ``last_checkpoint``, and only then the oldest deleted,
    so that a crash at any moment leaves a whole checkpoint and a
    ``last_checkpoint`` that names one.

    Attributes:
        infobatch (CheckpointedRun): The hook of the run.
    """

    infobatch: CheckpointedRun

    def every_n_train_iters(
        self: Any, runner: Any, n: int, start: int = 0
    ) -> bool:
        """Tell whether the clock passed a multiple of n in this iteration."""
        stock = super().every_n_train_iters  # type: ignore[misc]
        if stock.__func__ is not Hook.every_n_train_iters:
            return stock(runner, n, start)  # a rule of the user's own
        clock = self.infobatch.clock
        return crosses(clock.previous, clock.now, n, start)

    # Private, and the only places that every checkpoint goes through: one
    # that is due, one that is the last or the best, and what either writes.

    def _save_checkpoint(self: Any, runner: Any) -> None:
        self.infobatch.gather_state()
        super()._save_checkpoint(runner)  # type: ignore[misc]

    def _save_best_checkpoint(self: Any, runner: Any, metrics: Any) -> None:
        self.infobatch.gather_state()
        with deletions_last(self) as late:
            super()._save_best_checkpoint(  # type: ignore[misc]
                runner, metrics
            )
            hub = runner.message_hub.runtime_info
            late.keep(v for k, v in hub.items() if k.startswith('best_ckpt'))

    def _save_checkpoint_with_step(
        self: Any, runner: Any, step: int, meta: dict[str, Any]
    ) -> None:
        with deletions_last(self), whole_text_files():
            super()._save_checkpoint_with_step(  # type: ignore[misc]
                runner, step, meta
            )


class _LateDeletions:
    """A file backend that notes what it is asked to delete."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.waiting: list[tuple[Callable[[Any], None], Any]] = []

    def keep(self, paths: Iterable[Any]) -> None:
        """Delete none of these, which were written anew."""
        kept = set(paths)
        self.waiting = [w for w in self.waiting if w[1] not in kept]

    def remove(self, path: Any) -> None:
        self.waiting.append((self.backend.remove, path))

    def rmtree(self, path: Any) -> None:
        self.waiting.append((self.backend.rmtree, path))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


@contextmanager
def deletions_last(hook: Any) -> Iterator[_LateDeletions]:
    """Put off what a CheckpointHook deletes until the block has succeeded."""
    backend = hook.file_backend
    late = hook.file_backend = _LateDeletions(backend)
    try:
        yield late
    finally:
        hook.file_backend = backend
    for delete, path in late.waiting:
        delete(path)


@contextmanager
def whole_text_files() -> Iterator[None]:
    """Let mmengine's CheckpointHook write ``last_checkpoint`` at once.

    It calls the builtin ``open`` itself, so for the time of the block its
    module has an ``open`` of its own, which renames a file that is written
    whole.
    """
    names = vars(checkpoint_hook)
    names['open'] = _open_whole
    try:
        yield
    finally:
        del names['open']


@contextmanager
def _open_whole(path: Any, mode: str = 'r') -> Iterator[Any]:
    if mode != 'w':
        with builtins.open(path, mode) as file:
            yield file
        return
    temporary = Path(f'{path}.tmp')
    with temporary.open(mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@functools.cache
def _clocked_class(stock: Any) -> Any:
    """Return the clocked subclass of a CheckpointHook class."""
    return type(
        stock.__name__,
        (ClockedCheckpointMixin, stock),
        {'__module__': stock.__module__, '__doc__': stock.__doc__},
    )


def bind_checkpoint_hooks(runner: Any, infobatch: CheckpointedRun) -> None:
    """Put the checkpoint hooks of a run on the clock, in place.

    Must be called before their own ``before_train``.

    Args:
        runner (Runner): The runner of the run.
        infobatch (InfoBatchHook): The hook of the run.
    """
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook):
            continue
        if not isinstance(hook, ClockedCheckpointMixin):
            stock: Any = type(hook)
            _check_all_ranks_save(stock)
            hook.__class__ = _clocked_class(stock)
        hook.infobatch = infobatch
        is_stock = hook.backend_args is None and hook.file_client_args is None
        backend = get_file_backend(hook.out_dir or runner.work_dir)
        if is_stock and isinstance(backend, LocalBackend):
            hook.backend_args = {'backend': ATOMIC}


def _check_all_ranks_save(kind: Any) -> None:
    """Raise a TypeError if rank 0 alone comes to where checkpoints are saved.

    There the ranks gather their scores, and it would wait for ever.
    """
    of_master = master_only(lambda: None).__code__
    for name in ('after_train_iter', 'after_train_epoch', 'after_val_epoch'):
        method = getattr(kind, name)
        is_alone = getattr(method, '__code__', None) is of_master
        if is_alone and get_world_size() > 1:
            raise TypeError(
                f'{kind.__name__}.{name} is @master_only, but to save a '
                'checkpoint of a pruned run the ranks gather their scores. '
                'Let it call super() on all ranks, and do what is for rank 0 '
                'after if is_main_process()'
            )
