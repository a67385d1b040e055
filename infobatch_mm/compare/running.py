"""Train the cells of a study, side by side, and keep what came out."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ThreadPoolExecutor,
    wait,
)
from pathlib import Path

from mmengine.config import Config

from ..host.packages import versions
from ..records import read_rounds
from .arms import Budget
from .cells import Cell, Study, budget_for, config_of, is_in
from .results import Result, append_result
from .setup import config_hash, samples_budget

# What is kept of each round.
ROUND_KEYS = ('total', 'kept', 'threshold', 'variance_ratio')


def run_all(
    study: Study, cells: Sequence[Cell], jobs: int
) -> Iterator[tuple[Cell, Result | BaseException]]:
    """Run cells side by side; yield each with its result, or its error.

    A result is kept in the study's file before it is yielded. A cell whose
    need has failed is not run.
    """
    finished = study.finished()
    waiting = list(cells)
    running: dict[Future[Result], Cell] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            for cell in _ready(study, waiting, finished):
                if len(running) == jobs:
                    break
                waiting.remove(cell)
                budget = budget_for(study, cell, finished)
                running[pool.submit(run, study, cell, budget)] = cell
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, error = running.pop(future), future.exception()
                if error is not None:
                    yield cell, error
                    continue
                result = future.result()
                append_result(study.results, result)
                finished.setdefault(cell.arm, {})[cell.seed] = result
                yield cell, result


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


def run(study: Study, cell: Cell, budget: Budget) -> Result:
    """Train a cell, or go on with it from its last checkpoint.

    Raises:
        RuntimeError: If the run fails.
    """
    cfg = config_of(study, cell, budget)
    work_dir = study.work_dir / cell.name
    config_file, resume = write_config(cfg, work_dir)
    command = [*study.train, str(config_file), '--work-dir', str(work_dir)]
    command += ['--resume'] if resume else []
    log = work_dir / 'run.log'
    with log.open('a' if resume else 'w') as file:
        status = subprocess.run(
            command,
            cwd=study.cwd,
            env={**os.environ, **study.env},
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    if status:
        raise RuntimeError(f'{cell.name} failed; see {log}')
    return read_run(study, cell, cfg)


def write_config(cfg: Config, work_dir: Path) -> tuple[Path, bool]:
    """Write the config of a cell; tell whether its run can be resumed."""
    work_dir.mkdir(parents=True, exist_ok=True)
    config_file, digest_file = work_dir / 'cell.py', work_dir / 'cell.digest'
    digest = config_hash(cfg)
    is_same = digest_file.exists() and digest_file.read_text() == digest
    cfg.dump(config_file)
    digest_file.write_text(digest)
    return config_file, is_same and (work_dir / 'last_checkpoint').exists()


def read_run(study: Study, cell: Cell, cfg: Config) -> Result:
    """Return what is kept of a run that has ended."""
    work_dir, metric = study.work_dir / cell.name, study.setup.metric
    state = json.loads((work_dir / 'benchmark.json').read_text())
    last = state['validations'][-1]
    if last['iter'] != state['iters']:
        raise RuntimeError(
            f'{cell.name} ended without a last validation; delete '
            f'{work_dir} to train it anew'
        )
    if metric not in last:
        raise ValueError(
            f'metric={metric!r} is not among what the run was validated by: '
            f'{", ".join(last)}'
        )
    return dict(
        **cell._asdict(),
        metric=metric,
        value=last[metric],
        samples_budget=samples_budget(study.setup, state['dataset_size']),
        **state,
        rounds=[
            {key: line[key] for key in ROUND_KEYS}
            for line in read_rounds(work_dir)
        ],
        config_hash=config_hash(cfg),
        versions=versions(),
    )
