"""Checkpoints on the full-data clock that survive a crash while saving."""

import functools
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import (
    LocalBackend,
    get_file_backend,
)
from mmengine.hooks import CheckpointHook

from .atomic import AtomicLocalBackend
from .clock import crosses


class ClockedCheckpointMixin:
    """What a run with :class:`InfoBatchHook` changes in its CheckpointHook.

    Intervals in iterations count on the full-data clock. The ranks merge
    their scores before a checkpoint is written. The stock order is to delete
    the oldest checkpoint, write the new one in place and then name it in
    ``last_checkpoint``; here the new one is written, named, and only then
    the oldest deleted, so that a crash at any moment leaves a whole
    checkpoint and a ``last_checkpoint`` that names one.

    Attributes:
        infobatch (InfoBatchHook): The hook of the run.
    """

    infobatch: Any

    def every_n_train_iters(self, runner: Any, n: int, start: int = 0) -> bool:
        """Tell whether the clock passed a multiple of n in this iteration."""
        clock = self.infobatch.clock
        return crosses(clock.previous, clock.now, n, start)

    def _save_checkpoint_with_step(
        self: Any, runner: Any, step: int, meta: dict[str, Any]
    ) -> None:
        self.infobatch.merge_scores()
        expired = self._rotate(runner, step)
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            AtomicLocalBackend().put_text(
                self.last_ckpt, Path(runner.work_dir, 'last_checkpoint')
            )
            for old in expired:
                self.file_backend.remove(old)

    def _rotate(self: Any, runner: Any, step: int) -> list[str]:
        """Note a new checkpoint; return the files that it makes obsolete."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return []
        full = len(self.keep_ckpt_ids) == self.max_keep_ckpts
        old = [self.keep_ckpt_ids.popleft()] if full else []
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info(
            'keep_ckpt_ids', list(self.keep_ckpt_ids)
        )
        paths = [
            self.file_backend.join_path(
                self.out_dir, self.filename_tmpl.format(old_step)
            )
            for old_step in old
        ]
        return [path for path in paths if self.file_backend.isfile(path)]

    def _save_best_checkpoint(self, runner: Any, metrics: Any) -> None:
        self.infobatch.merge_scores()
        super()._save_best_checkpoint(runner, metrics)  # type: ignore[misc]


@functools.cache
def _clocked_class(stock: Any) -> Any:
    """Return the clocked subclass of a CheckpointHook class."""
    return type(
        stock.__name__,
        (ClockedCheckpointMixin, stock),
        {'__module__': stock.__module__, '__doc__': stock.__doc__},
    )


def bind_checkpoint_hooks(runner: Any, infobatch: Any) -> None:
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
            hook.__class__ = _clocked_class(stock)
        hook.infobatch = infobatch
        is_stock = hook.backend_args is None and hook.file_client_args is None
        backend = get_file_backend(hook.out_dir or runner.work_dir)
        if is_stock and isinstance(backend, LocalBackend):
            hook.backend_args = {'backend': 'infobatch_atomic'}
