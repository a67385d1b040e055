"""A cell is one run of an arm with a seed; a study is all cells of a setup.

Finished cells are the lines of a file, from which they are read again.
"""

import copy
import fcntl
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ..records import read_json_lines
from .arms import ALL_DATA, Arm, Budget
from .setup import AUTO, Setup, config_hash, stock_config

Result = dict[str, Any]
Results = dict[str, dict[int, Result]]  # by arm and seed
# Of a validation, what is no metric.
COSTS_OF_VALIDATION = {'iter', 'samples_seen', 'train_seconds', 'cpu_seconds'}


class Cell(NamedTuple):
    """One run of a study."""

    suite: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """str: Its name within the study."""
        return f'{self.arm}-s{self.seed}'


@dataclass(frozen=True)
class Study:
    """What is compared, and where that is kept.

    Attributes:
        name (str): Stands in its results as `suite`.
        setup (Setup): What its arms train.
        arms (Mapping): Its arms by name, in the order of its tables.
        results (Path): The file of its finished cells, and maybe of those
            of other studies.
        work_dir (Path): Where its cells run, each in a folder of its own.
        train (Sequence): The command that trains a config file.
        env (Mapping): Environment variables of its runs, beside those of
            this process.
        devices (Sequence): Values of CUDA_VISIBLE_DEVICES, one for each cell
            that is trained at a time; without any it is left alone.
        cwd (Path | None): Where its runs are started, as paths within the
            config may ask for; None is where this process is.
        processes (int): Processes of each of its runs.
    """

    name: str
    setup: Setup
    arms: Mapping[str, Arm]
    results: Path
    work_dir: Path
    train: Sequence[str] = (sys.executable, '-m', 'infobatch_mm', 'train')
    env: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[str] = ()
    cwd: Path | None = None
    processes: int = 1

    def cell(self, arm: str, seed: int) -> Cell:
        """Return one of its cells."""
        return Cell(self.name, arm, seed)

    def folder(self, cell: Cell) -> Path:
        """Return the work directory of one of its cells."""
        return self.work_dir / cell.arm / str(cell.seed)

    def finished(self) -> Results:
        """Read the results of its finished cells, by its metric.

        Raises:
            ValueError: If they were not validated by that.
        """
        results = read_results(self.results, self.name, self.arms)
        metric = self.setup.metric
        return {
            arm: {seed: by_metric(run, metric) for seed, run in runs.items()}
            for arm, runs in results.items()
        }

    def needs(self, cell: Cell) -> Cell | None:
        """Return the cell that another takes its budget from, if any."""
        arm = self.arms[cell.arm].at_cost_of
        return cell._replace(arm=arm) if arm else None


def is_in(cell: Cell, finished: Results) -> bool:
    """Tell whether a cell is among the finished ones."""
    return cell.seed in finished.get(cell.arm, {})


def order(study: Study, cells: Iterable[Cell]) -> list[Cell]:
    """Return cells seed by seed, each after the one that it needs."""
    wanted = dict.fromkeys(
        each for cell in cells for each in (study.needs(cell), cell) if each
    )
    return sorted(wanted, key=lambda cell: cell.seed)


def by_metric(result: Result, metric: str) -> Result:
    """Return a result with the value of another metric than its own.

    Raises:
        ValueError: If its last validation has not measured it.
    """
    if metric in (AUTO, result['metric']):
        return result
    last = result['validations'][-1]
    if metric not in last:
        raise ValueError(
            f'metric={metric!r} is not among what the run was validated by: '
            f'{", ".join(last.keys() - COSTS_OF_VALIDATION)}. Give one of '
            'them with --metric; what is trained already is not trained again'
        )
    return {**result, 'metric': metric, 'value': last[metric]}


def share_of(result: Result) -> float:
    """Return the samples that a finished cell saw, over those of all data."""
    return result['samples_seen'] / result['samples_budget']


def is_pruned(line: Mapping[str, Any]) -> bool:
    """Tell whether a round was pruned, from its line in a result.

    Loops by iterations leave a remainder of a full round out, too. Lines of
    earlier versions do not tell what was drawn.
    """
    if 'drawn' in line:
        return line['drawn'] < line['total']
    return line['variance_ratio'] > 0


def budget_of(result: Result) -> Budget:
    """Return what a finished cell has cost."""
    ratios = [
        1 - line['kept'] / line['total']
        for line in result['rounds']
        if is_pruned(line)
    ]
    return Budget(
        share=share_of(result),
        # Since Python 3.12 sum() rounds otherwise, and so would the digests.
        prune_ratio=reduce(add, ratios) / len(ratios) if ratios else 0.0,
        samples=-(-result['dataset_size'] // result.get('world_size', 1)),
    )


def budget_for(study: Study, cell: Cell, finished: Results) -> Budget:
    """Return the budget of a cell; what it needs must be finished."""
    needed = study.needs(cell)
    if needed is None:
        return ALL_DATA
    return budget_of(finished[needed.arm][needed.seed])


def config_of(
    study: Study, cell: Cell, budget: Budget, stock: Config | None = None
) -> Config:
    """Return the config of a cell.

    Args:
        study (Study): The study that it belongs to.
        cell (Cell): The cell.
        budget (Budget): See :func:`budget_for`.
        stock (Config | None): The study's :func:`stock_config` where it is
            at hand, since reading it takes long; it is not changed.
    """
    stock = stock or stock_config(study.setup)
    change = study.arms[cell.arm].change
    cfg = change(copy.deepcopy(stock), budget, cell.seed)
    # What is off is left out, as the digests of the first cells have it.
    given = (cfg.get('randomness') or {}).items()
    cfg.randomness = {k: v for k, v in given if v} | dict(seed=cell.seed)
    return cfg


def check_same(study: Study, cells: Iterable[Cell], finished: Results) -> None:
    """Refuse finished cells that another config has made.

    Raises:
        ValueError: If the digest of one of them is not that of its config,
            what one was made at the cost of is not there, or they were
            trained on data sets of different sizes.
    """
    known_cells = [cell for cell in cells if is_in(cell, finished)]
    alone = [
        cell.name
        for cell in known_cells
        if (needed := study.needs(cell)) and not is_in(needed, finished)
    ]
    if alone:
        raise ValueError(
            f'{study.results} holds {", ".join(alone)}, but not the cells '
            'that they were made at the cost of: delete their lines to run '
            'them anew, or take another work directory'
        )
    sizes = {
        finished[cell.arm][cell.seed].get('dataset_size'): cell.name
        for cell in known_cells
    }
    sizes.pop(None, None)  # of the first cells
    if len(sizes) > 1:
        found = ', '.join(f'{name} of {size}' for size, name in sizes.items())
        raise ValueError(
            f'{study.results} holds runs on data of different sizes ({found} '
            'samples): delete the lines of those on other data than now, or '
            'take another work directory'
        )
    stock = stock_config(study.setup)
    for cell in known_cells:
        result = finished[cell.arm][cell.seed]
        processes = result.get('world_size', 1)
        if processes != study.processes:
            raise ValueError(
                f'{cell.name} in {study.results} was made by {processes} '
                f'processes, and now there are {study.processes}: give as '
                'many, or take another work directory'
            )
        budget = budget_for(study, cell, finished)
        now = config_hash(config_of(study, cell, budget, stock))
        known = result['config_hash']
        if known != now:
            raise ValueError(
                f'{cell.name} in {study.results} was made by another config '
                f'({known}, now {now}): delete its line to run it anew, or '
                'take another work directory'
            )


# The file of finished cells, one JSON line a cell


def read_results(path: Path, suite: str, arms: Iterable[str]) -> Results:
    """Read the finished runs of a suite, in the order of its arms."""
    results: Results = {arm: {} for arm in arms}
    for line in sorted(read_json_lines(path), key=lambda line: line['seed']):
        if line['suite'] == suite and line['arm'] in results:
            results[line['arm']][line['seed']] = line
    return {arm: runs for arm, runs in results.items() if runs}


def append_result(path: Path, result: Result) -> None:
    """Add the line of a run, also while other processes add theirs.

    A last line torn by a crash is cut off first.
    """
    line = json.dumps(result, separators=(',', ':')) + '\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a+b') as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when it is closed
        file.seek(0)
        file.truncate(file.read().rfind(b'\n') + 1)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
