"""What a run knows of its training samples, their order and their data set.

The first is read from its last checkpoint, the second built from its config.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import import_modules_from_strings
from torch import Tensor

from .. import records
from ..datasets.identity import fingerprint, path_number, roots_of
from ..host.checkpoint_files import last_checkpoint, read_plain
from ..host.classes import type_name
from ..host.datasets import initialise, listed_path
from ..pruned_run import STATE_KEY
from . import runs


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


def check_is_of(work_dir: Path, checkpoint: dict[str, Any]) -> None:
    """Raise a ValueError for a checkpoint of an earlier run in a folder."""
    starts = runs.starts(work_dir)
    first = next((s for s in starts[::-1] if not runs.resumes(s)), None)
    saved = (checkpoint.get('meta') or {}).get('time')
    if first and saved and saved < first.name:
        raise ValueError(
            f'the last checkpoint in {work_dir} is of {saved}, before the run '
            f'that is there began ({first.name}): it is that of an earlier one'
        )


def load_state(work_dir: Path) -> State | None:
    """Return the samples' state of the last checkpoint, None of a stock run's.

    Nothing but tensors and plain values is built: the file's own code is not
    run, whatever classes its message hub names.

    Raises:
        FileNotFoundError: If the run has saved none.
        ValueError: If it is that of an earlier run.
    """
    checkpoint = read_plain(last_checkpoint(work_dir))
    check_is_of(work_dir, checkpoint)
    state = checkpoint.get(STATE_KEY)
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
        meta = read_plain(last_checkpoint(work_dir)).get('meta') or {}
        return tuple(meta['dataset_meta']['classes'])
    except Exception:
        # The names are a kindness to the reader; numbers serve too.
        return ()


def _weights_of(state: dict[str, Any]) -> Tensor:
    """Return the weight of each sample in the planned round, 0 if pruned."""
    weights = torch.zeros(state['total'])
    weights[state['indices']] = state['weights']
    return weights


def build_dataset(cfg: Config) -> Any:
    """Build the training data set of a config, without augmentation."""
    if imports := cfg.get('custom_imports'):
        import_modules_from_strings(**imports)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    dataset = cfg.train_dataloader.dataset
    if type_name(dataset) == 'IndexedDataset':
        dataset = dataset.dataset
    built = DATASETS.build(without_augmentation(dataset))
    initialise(built)
    return built


def without_augmentation(node: Any) -> Any:
    """Copy a config; its pipelines load and pack, and do nothing else."""
    if isinstance(node, list | tuple):
        return type(node)(map(without_augmentation, node))
    if not isinstance(node, dict):
        return node
    copy = {key: without_augmentation(value) for key, value in node.items()}
    if isinstance(copy.get('pipeline'), list):
        copy['pipeline'] = [*filter(_keeps_sample, copy['pipeline'])]
    return copy


def _keeps_sample(step: Any) -> bool:
    """Tell whether a step of a pipeline loads or packs; or cannot be told."""
    if not (isinstance(step, dict) and step.get('type')):
        return True
    return type_name(step).startswith(('Load', 'Pack'))


# In the order of their scores

COLUMNS = ('rank', 'index', 'path', 'score', 'times_kept', 'last_weight')
Row = dict[str, Any]  # a value for each of the columns, None where unknown


class Ranking(NamedTuple):
    """What a run knows of its samples, and what they are."""

    state: State
    dataset: Any | None  # None where it is not to be found
    notes: list[str]  # what the reader has to know of the table


def read(work_dir: Path) -> Ranking:
    """Read the last checkpoint of a pruned run, and list its data set.

    Raises:
        FileNotFoundError: If the run has saved no checkpoint.
        ValueError: If it is that of a stock run.
    """
    path, state = last_checkpoint(work_dir), load_state(work_dir)
    if state is None:
        raise ValueError(
            f'{path} is the checkpoint of a stock run, with no scores. Train '
            'with --infobatch; policy.type=NoPruningPolicy scores and prunes '
            'nothing'
        )
    notes = [f'{path.name}, {state.rounds} rounds planned']
    state = state._replace(weights=_last_weights(work_dir, state))
    if state.weights is None:
        notes.append(
            'the checkpoint was saved between two rounds and holds no plan, '
            'so last_weight is not known'
        )
    try:
        dataset = listed(work_dir, state)
    except Exception as error:
        # The files may be gone, and the data set may be anybody's code.
        dataset = None
        notes.append(
            'samples are named by their index alone, since the data set of '
            f'the run cannot be listed here ({type(error).__name__}: {error})'
        )
    return Ranking(state, dataset, notes)


def _last_weights(work_dir: Path, state: State) -> torch.Tensor | None:
    """Return the weights in the last planned round; None if unknown.

    A checkpoint between two rounds has none; but if the round that ended
    kept all samples, they all had the weight 1.
    """
    if state.weights is not None:
        return state.weights
    for line in records.read_rounds(work_dir):
        if line['round'] == state.rounds - 1 and line['kept'] == line['total']:
            return torch.ones(len(state.scores))
    return None


def listed(work_dir: Path, state: State) -> Any:
    """Build the data set of a run, without augmentation.

    Raises:
        ValueError: If it does not list what the run was trained on.
    """
    dataset = build_dataset(runs.config(work_dir))
    known = state.fingerprint
    if known not in (None, fingerprint(dataset)):
        raise ValueError('it lists other samples than in the run')
    # The run may have trained on the first of them (num_batch_per_epoch).
    if len(dataset) < len(state.scores):
        raise ValueError(
            f'it has {len(dataset)} samples, and {len(state.scores)} in the '
            'run'
        )
    return dataset


def order(state: State, *, hardest_first: bool = True) -> list[int]:
    """Return all samples by their scores, those without one last.

    Samples of one score stay in the order of their index.
    """
    is_scored = state.scores.isfinite()
    ranked = state.scores.argsort(descending=hardest_first, stable=True)
    scored = ranked[is_scored[ranked]].tolist()
    return scored + (~is_scored).nonzero().flatten().tolist()


def rows(ranking: Ranking, indices: Sequence[int]) -> Iterator[Row]:
    """Yield the rows of some samples, which are ranked in this order."""
    state, path_of = ranking.state, _Paths(ranking)
    for rank, index in enumerate(indices, 1):
        columns = (state.scores, state.times_kept, state.weights)
        known = [_value(column, index) for column in columns]
        values = (rank, index, path_of(index), *known)
        yield dict(zip(COLUMNS, values, strict=True))


def _value(values: torch.Tensor | None, index: int) -> float | None:
    """Return an entry as it would be written; None if it is not known."""
    if values is None or not values[index].isfinite():
        return None
    # A float32 has seven digits.
    value = values[index].item()
    return float(f'{value:.7g}') if isinstance(value, float) else value


class _Paths:
    """The paths of samples, as far as they are those that were trained on."""

    def __init__(self, ranking: Ranking) -> None:
        self.dataset = ranking.dataset
        self.identities = ranking.state.identities
        self.roots = roots_of(self.dataset)

    def __call__(self, index: int) -> str | None:
        path = listed_path(self.dataset, index)
        # A data set may choose in its methods what an index stands for, past
        # its list.
        number = _value(self.identities, index)
        if number and number != path_number(path, self.roots):
            return None
        return path


def write_csv(table: Iterator[Row], file: TextIO) -> None:
    """Write a line a sample under a line with the names of the columns."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(table)


def write_jsonl(table: Iterator[Row], file: TextIO) -> None:
    """Write a JSON object a line."""
    for row in table:
        file.write(json.dumps(row) + '\n')
