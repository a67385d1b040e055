"""The training samples of a run in the order of their scores.

Scores, counts and weights come from its last checkpoint, the paths of the
images from the data set of its config, if that can be built here.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from .. import records
from ..datasets.identity import fingerprint, path_number, roots_of
from . import runs
from .samples import State, build_dataset, last_checkpoint, load_state

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
    path = last_checkpoint(work_dir)
    state = load_state(path)
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
        dataset = _listed(work_dir, state)
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


def _listed(work_dir: Path, state: State) -> Any:
    """Build the data set of a run, if it lists what the run was trained on."""
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
        self.look_up = getattr(ranking.dataset, 'get_data_info', None)
        self.identities = ranking.state.identities
        self.roots = roots_of(ranking.dataset) if self.look_up else ()

    def __call__(self, index: int) -> str | None:
        info = self.look_up(index) if self.look_up else None
        path = info.get('img_path') if isinstance(info, dict) else None
        # A data set may choose in its methods what an index stands for, past
        # its list.
        number = _value(self.identities, index)
        if number and number != path_number(path, self.roots):
            return None
        return path if isinstance(path, str) else None


def write_csv(table: Iterator[Row], file: TextIO) -> None:
    """Write a line a sample under a line with the names of the columns."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(table)


def write_jsonl(table: Iterator[Row], file: TextIO) -> None:
    """Write a JSON object a line."""
    for row in table:
        file.write(json.dumps(row) + '\n')
