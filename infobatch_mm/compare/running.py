"""Train the cells of a study, side by side, and keep what came out."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ThreadPoolExecutor,
    wait,
)
from threading import Lock

from mmengine.config import Config

from ..host.packages import versions
from ..records import read_rounds
from .arms import Budget
from .cells import (
    Cell,
    Result,
    Study,
    append_result,
    budget_for,
    by_metric,
    check_same,
    config_of,
    is_in,
    share_of,
)
from .parts import COSTS_FILE
from .processes import Place, failure_text, forget, places_of, train
from .setup import config_hash, samples_budget

# What is kept of each round.
ROUND_KEYS = ('total', 'kept', 'drawn', 'threshold', 'variance_ratio')
# Two threads that parse a config of mmengine at once may both fail: see
# "AST constructor recursion depth mismatch" of Python 3.11.
READING = Lock()


def missing(study: Study, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that are not finished.

    Raises:
        ValueError: If another config has made one of those that are.
    """
    finished = study.finished()
    check_same(study, cells, finished)
    return [cell for cell in cells if not is_in(cell, finished)]


def run_all(
    study: Study, cells: Sequence[Cell], jobs: int
) -> Iterator[tuple[Cell, Result | BaseException]]:
    """Run cells side by side; yield each with its result, or its error.

    A result is kept in the study's file before it is yielded. A cell whose
    need has failed is not run. If this is stopped, by Ctrl-C for instance, so
    are the runs.
    """
    finished = study.finished()
    waiting = list(cells)
    places = places_of(study, jobs)
    running: dict[Future[Result], tuple[Cell, Place]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                busy = [place for _, place in running.values()]
                free = [each for each in places if each not in busy]
                ready = _ready(study, waiting, finished)
                for cell, place in zip(ready, free, strict=False):
                    waiting.remove(cell)
                    budget = budget_for(study, cell, finished)
                    future = pool.submit(run, study, cell, budget, place)
                    running[future] = cell, place
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    cell, error = running.pop(future)[0], future.exception()
                    if error is not None:
                        yield cell, error
                        continue
                    result = future.result()
                    append_result(study.results, result)
                    forget(study.folder(cell))
                    finished.setdefault(cell.arm, {})[cell.seed] = result
                    yield cell, result
        finally:
            for place in places:
                place.close()


def _ready(
    study: Study, waiting: Sequence[Cell], finished: dict
) -> list[Cell]:
    """Return the cells whose need is finished, or that have none."""
    needs = ((cell, study.needs(cell)) for cell in waiting)
    return [
        cell
        for cell, needed in needs
        if needed is None or is_in(needed, finished)
    ]


def run(
    study: Study, cell: Cell, budget: Budget, place: Place | None = None
) -> Result:
    """Train a cell, or go on with it from its last checkpoint.

    Raises:
        RuntimeError: If the run fails, or another process trains the cell.
    """
    with READING:
        cfg = config_of(study, cell, budget)
    work_dir = study.folder(cell)
    status = train(study, cfg, work_dir, place or Place(), COSTS_FILE)
    if status:
        raise RuntimeError(failure_text(work_dir))
    return read_run(study, cell, cfg)


def read_run(study: Study, cell: Cell, cfg: Config) -> Result:
    """Return what is kept of a run that has ended."""
    work_dir, metric = study.folder(cell), study.setup.metric
    state = json.loads((work_dir / COSTS_FILE).read_text())
    measured = dict(metric=None, validations=state['validations'])
    return dict(
        **cell._asdict(),
        metric=metric,
        value=by_metric(measured, metric)['value'],
        samples_budget=samples_budget(
            study.setup, state['dataset_size'], state['world_size']
        ),
        **state,
        rounds=[
            {key: line[key] for key in ROUND_KEYS if key in line}
            for line in read_rounds(work_dir)
        ],
        config_hash=config_hash(cfg),
        versions=versions(),
    )


def result_text(cell: Cell, result: Result) -> str:
    """Return a line about a finished cell."""
    return (
        f'{cell.name}: {result["metric"]} {result["value"]:.2f}, '
        f'{share_of(result):.1%} of the samples, '
        f'{result["cpu_seconds"]:.0f} s'
    )
