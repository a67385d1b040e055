"""What a run knows of its training samples, and the data set they are of.

The first is read from its last checkpoint, the second built from its config.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import import_modules_from_strings
from torch import Tensor

from ..pruned_run import STATE_KEY


class State(NamedTuple):
    """What a checkpoint knows of the samples."""

    scores: Tensor  # (N,), NaN where there is none
    times_kept: Tensor | None  # (N,), in how many rounds
    rounds: int  # planned so far
    weights: Tensor | None = None  # (N,), if saved within a round; 0: pruned
    fingerprint: str | None = None  # of the list of samples
    identities: Tensor | None = None  # (N,), a number of each path; 0: none

    @property
    def pruned_most(self) -> list[int]:
        """list[int]: Samples kept less often than others, lowest first."""
        if self.times_kept is None:
            return []
        # Of samples kept equally often, those of low scores come first.
        order = np.lexsort((self.scores.numpy(), self.times_kept.numpy()))
        most = self.times_kept.max()
        return [int(i) for i in order if self.times_kept[i] < most]

    @property
    def hardest(self) -> list[int]:
        """list[int]: Samples that have a score, highest first."""
        order = self.scores.nan_to_num(-torch.inf).argsort(descending=True)
        return order[: int(self.scores.isfinite().sum())].tolist()


class _Unread:
    """Takes the place of what a checkpoint holds beside plain values."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def last_checkpoint(work_dir: Path) -> Path:
    """Return the last checkpoint, also if the folder was moved since."""
    name = work_dir / 'last_checkpoint'
    if not name.exists():
        raise FileNotFoundError(
            f'{work_dir} has no last_checkpoint; name the work directory of '
            'a run that has saved a checkpoint'
        )
    path = Path(name.read_text().strip())
    return path if path.exists() else work_dir / path.name


def load_state(path: Path) -> State | None:
    """Return the samples' state of a checkpoint, None of a stock run's.

    Nothing but tensors and plain values is built: the file's own code is not
    run, whatever classes its message hub names.
    """
    state = _read(path).get(STATE_KEY)
    if state is None:
        return None
    plan = 'indices' in state
    return State(
        state['scores'],
        state.get('times_kept'),
        state['round'] + plan,
        _weights_of(state) if plan else None,
        state.get('fingerprint'),
        None if state.get('identities_changed') else state.get('identities'),
    )


def class_names(work_dir: Path) -> Sequence[str]:
    """Return the names of the classes, as the last checkpoint has them."""
    try:
        meta = _read(last_checkpoint(work_dir)).get('meta') or {}
        return tuple(meta['dataset_meta']['classes'])
    except Exception:
        # The names are a kindness to the reader; numbers serve too.
        return ()


def _read(path: Path) -> dict[str, Any]:
    """Read the tensors and plain values of a checkpoint."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    stand_ins: list[Any] = [(_Unread, name) for name in names]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(
            path, map_location='cpu', weights_only=True, mmap=True
        )


def _weights_of(state: dict[str, Any]) -> Tensor:
    """Return the weight of each sample in the planned round, 0 if pruned."""
    weights = torch.zeros(state['total'])
    weights[state['indices']] = state['weights']
    return weights


def build_dataset(cfg: Config) -> Any:
    """Build the training data set of a config, without augmentation."""
    if imports := cfg.get('custom_imports'):
        import_modules_from_strings(**imports)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    dataset = cfg.train_dataloader.dataset
    if dataset.type.split('.')[-1] == 'IndexedDataset':
        dataset = dataset.dataset
    return DATASETS.build(without_augmentation(dataset))


def without_augmentation(node: Any) -> Any:
    """Copy a config; its pipelines load and pack, and do nothing else."""
    if isinstance(node, list | tuple):
        return type(node)(map(without_augmentation, node))
    if not isinstance(node, dict):
        return node
    copy = {key: without_augmentation(value) for key, value in node.items()}
    if 'pipeline' in copy:
        copy['pipeline'] = [
            step
            for step in copy['pipeline']
            if step['type'].split('.')[-1].startswith(('Load', 'Pack'))
        ]
    return copy
