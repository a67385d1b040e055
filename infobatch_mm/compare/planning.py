"""What a comparison of a user's config will train, and what it will take."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .arms import Budget, caution, core
from .cells import Cell, Study
from .processes import devices, threads
from .setup import AUTO, Setup, is_epoch_based, stock_config
from .stock import is_higher_better, metric_of

# What any pruned run may have cost, to see whether the arms can be made.
SOME_BUDGET = Budget(share=0.7, prune_ratio=0.4)
PILOT = (
    'This is a pilot, at {:g} of the schedule. It tells that every arm '
    'trains, about what share of the samples is saved, and how much seeds '
    'scatter. It does not tell whether pruning pays at full length: what is '
    'lost, and what the choice of samples gains, both change with the length '
    'of training. Take no verdict from it for the whole schedule.'
)


def seeds_of(given: Sequence[int]) -> list[int]:
    """Return seeds: one number is how many there are to be."""
    seeds = list(range(given[0])) if len(given) == 1 else [*given]
    if not seeds or min(seeds) < 0:
        raise ValueError(
            f'--seeds {" ".join(map(str, given))}: give how many, at least '
            '1, or several that are not negative'
        )
    return list(dict.fromkeys(seeds))


def study_of(
    cfg: Config,
    options: Mapping[str, Any],
    folder: Path,
    *,
    arms: Sequence[str],
    metric: str | None = None,
    higher_is_better: bool | None = None,
    length: float = 1.0,
    train: Sequence[str],
    jobs: int = 1,
    gpus: int = 1,
) -> Study:
    """Return the study of a config, which is kept in its folder.

    Args:
        cfg (Config): The stock config.
        options (Mapping): How it is pruned, see :func:`infobatch_mm.enable`.
        folder (Path): Where all is kept.
        arms (Sequence): The arms that are wanted.
        metric (str | None): What counts; None for what the config says.
        higher_is_better (bool | None): Whether more of it is better; None for
            what the config says.
        length (float): Factor on the schedule.
        train (Sequence): The command that trains a config file.
        jobs (int): Runs at a time.
        gpus (int): Processes of a run.

    Raises:
        ValueError: If an arm cannot be made of the config, or it does not
            say what is asked of it.
    """
    metric = metric or metric_of(cfg)
    if higher_is_better is None and metric != AUTO:
        higher_is_better = is_higher_better(cfg, metric)
    setup = Setup(
        # As a file would give it, with names in place of classes.
        Config.fromstring(cfg.pretty_text, '.py'),
        metric,
        length=length,
        higher_is_better=higher_is_better is not False,
    )
    study = Study(
        'compare',
        setup,
        core(**options),
        results=folder / 'cells.jsonl',
        work_dir=folder,
        train=train,
        env=threads(jobs),
        devices=devices(jobs, gpus),
        processes=gpus,
    )
    stock = stock_config(setup)
    for name in arms:
        study.arms[name].change(deepcopy(stock), SOME_BUDGET, 0)
    return study


def with_metric(
    study: Study, metrics: Sequence[str], higher_is_better: bool | None
) -> Study:
    """Return a study with a metric that its validations are known to have.

    Args:
        study (Study): The study.
        metrics (Sequence): What a validation gave, in its order.
        higher_is_better (bool | None): See :func:`study_of`.

    Raises:
        ValueError: If the metric is not among them.
    """
    setup = study.setup
    if setup.metric == AUTO:
        if higher_is_better is None:
            cfg = stock_config(setup)
            higher_is_better = is_higher_better(cfg, metrics[0])
        setup = setup._replace(
            metric=metrics[0], higher_is_better=higher_is_better
        )
    if setup.metric not in metrics:
        raise ValueError(
            f'metric {setup.metric!r} is not among what a validation gives: '
            f'{", ".join(metrics)}. Choose one of them with --metric'
        )
    return replace(study, setup=setup)


def run_seconds(study: Study, probed: Mapping[str, Any]) -> float:
    """Return what a run on all data will take, from its start to its end."""
    cfg = stock_config(study.setup)
    by_epoch = is_epoch_based(cfg)
    length = cfg.train_cfg['max_epochs' if by_epoch else 'max_iters']
    interval = cfg.train_cfg.get('val_interval', 1 if by_epoch else 1000)
    validations = -(-length // interval)
    training = probed['iters'] * probed['seconds']
    validating = validations * probed['val_seconds']
    return probed['start_seconds'] + training + validating


def source_text(probed: Mapping[str, Any]) -> str:
    """Say what the time of a run was made of, as it was measured."""
    return (
        f'from {probed["seconds"]:.3g} s an iteration, '
        f'{probed["val_seconds"]:.3g} s a validation and '
        f'{probed["start_seconds"]:.3g} s to start'
    )


def estimate_text(count: int, jobs: int, seconds: float, source: str) -> str:
    """Say what so many runs will take at most.

    Args:
        count (int): Runs, at least 1.
        jobs (int): How many at a time.
        seconds (float): What a run on all data takes.
        source (str): How that is known.
    """
    total = -(-count // jobs) * seconds
    return (
        f'{count} runs, {jobs} at a time: {time_text(total)} if each takes '
        f'the {time_text(seconds)} of one on all data, and most take less '
        f'({source}).'
    )


def time_text(seconds: float) -> str:
    """Return a time in hours, or in what suits it if it is shorter."""
    for unit, size in (('hours', 3600), ('minutes', 60)):
        if seconds >= 1.5 * size:
            return f'{seconds / size:.2g} {unit}'
    return f'{seconds:.2g} seconds'


def plan_text(study: Study, cells: Sequence[Cell]) -> str:
    """Return the arms in words, and what has to be known of them."""
    stock, lines = stock_config(study.setup), []
    for name in dict.fromkeys(cell.arm for cell in cells):
        lines.append(f'  {name:22}{study.arms[name].words}')
        if text := caution(name, stock):
            lines.append(f'  {"":22}({text})')
    return '\n'.join([*lines, *filter(None, [pilot_text(study)])])


def pilot_text(study: Study) -> str:
    """Return what a pilot does not tell, nothing for a whole schedule."""
    length = study.setup.length
    return PILOT.format(length) if length < 1 else ''
