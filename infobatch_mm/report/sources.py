"""Where the arms of a page come from: single runs, or a comparison."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..compare.statistics import Paired
from . import runs as of_run
from .arms import Arm, Cell, Comparison, gaps_between
from .results import Metric, Run, config_name, policy_name
from .results import read as read_run

COMPARISON_FILE = 'compare.json'
# What two runs of an arm may differ in, beside the seed.
PLACES = ('work_dir', 'experiment_name', 'visualizer', 'vis_backends')
STARTS = ('resume', 'launcher', 'log_level')
SEED_SUFFIX = re.compile(r'([-_.]s|[-_.]?seed)?[-_.]?$')

PILOT = (
    'A pilot on {:.0%} of the schedule: take no verdict from it for all of '
    'it, since both what pruning loses and what it gains change with the '
    'length.'
)

Named = tuple[
    str | None, Path
]  # the arm of a run, if it is given, and the run


def read(folders: Sequence[Named]) -> Comparison:
    """Read runs, or a comparison if that is what is named.

    Raises:
        ValueError: If a page of them would mix them.
    """
    compared = [
        dir_ for _, dir_ in folders if (dir_ / COMPARISON_FILE).exists()
    ]
    if compared and len(folders) > 1:
        raise ValueError(
            f'{compared[0]} is the folder of a comparison, which has a page '
            'of its own: name it alone'
        )
    return from_comparison(compared[0]) if compared else from_runs(folders)


def from_runs(folders: Sequence[Named]) -> Comparison:
    """Group runs by their arms, and compare these.

    Args:
        folders (Sequence): Work directories, the arms of some of them named.
            Those of the others are told by their configs.

    Raises:
        ValueError: If a page of these runs would mix them.
    """
    _check_apart([folder for _, folder in folders])
    total = _total([folder for _, folder in folders])
    arms = [_arm(*group, total) for group in _grouped(folders).items()]
    metrics = [c.run.metric for arm in arms for c in arm.cells if c.run]
    metric = next(filter(None, metrics), None)
    arms = [_judged(arm, metric, total) for arm in arms]
    notes = list(_notes(arms, metric)) if metric else []
    reference = _reference(arms)
    rest = [arm for arm in arms if arm is not reference]
    subject = next((arm for arm in rest if arm.prunes), (rest or arms)[0])
    first = subject.cells[0].run
    assert first is not None
    return Comparison(
        config_name(first.work_dir) or subject.name,
        policy_name(first.work_dir),
        metric,
        arms,
        subject,
        reference,
        gaps_between(arms, subject, reference),
        notes=notes,
    )


def _notes(arms: Sequence[Arm], metric: Metric) -> Iterator[str]:
    """Yield what has to be known of the results."""
    if metric.is_guessed and len(arms) > 1:
        yield (
            f'More of {metric.name} is taken to be better, since the config '
            'does not tell: set default_hooks.checkpoint.rule.'
        )
    for run in (c.run for arm in arms for c in arm.cells if c.run):
        name = run.work_dir.name
        if not run.values:
            yield (
                f'Left out of the results: {name} has no {metric.name} at a '
                'validation.'
            )
        elif not math.isfinite(run.values[-1]):
            yield (
                f'Left out of means and differences: the last {metric.name} '
                f'of {name} is not finite.'
            )
        elif not run.is_done and len(arms) > 1:
            yield (
                f'Left out of means and differences: {name} has not come to '
                'the end of its schedule.'
            )


def from_comparison(work_dir: Path) -> Comparison:
    """Read what ``infobatch compare`` wrote, and the runs of its cells."""
    file = work_dir / COMPARISON_FILE
    try:
        return _comparison_of(work_dir, json.loads(file.read_text()))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        text = f'{type(error).__name__}: {error}'
        raise ValueError(f'{file} is broken ({text})') from error


def _comparison_of(work_dir: Path, found: dict[str, Any]) -> Comparison:
    metric = Metric(found['metric'], found['higher_is_better'])
    arms: dict[str, Arm] = {}
    for entry in found['cells']:
        arm = Arm(entry['arm'], [], entry['at_cost_of'])
        arms.setdefault(arm.name, arm).cells.append(
            _compared_cell(work_dir, entry, metric)
        )
    gaps = {
        (gap['arm'], gap['against']): Paired(
            gap['n'],
            _bound(gap['mean'], math.nan),
            math.nan,
            _bound(gap['low'], -math.inf),
            _bound(gap['high'], math.inf),
        )
        for gap in found['differences']
    }
    subject, reference = _leading(list(arms.values()), list(gaps))
    notes = [
        f'Left out of the curves: {cell["arm"]} with seed {cell["seed"]}, '
        f'whose work directory {cell["work_dir"]} holds no run.'
        for cell in found['cells']
        if not of_run.starts(work_dir / cell['work_dir'])
    ]
    if found['length'] < 1:
        notes.insert(0, PILOT.format(found['length']))
    return Comparison(
        Path(found['config']).stem,
        found['policy'],
        metric,
        list(arms.values()),
        subject,
        reference,
        gaps,
        found['verdict'],
        notes,
        shares=True,
    )


def _check_apart(folders: Sequence[Path]) -> None:
    twice = [folder for folder in folders if folders.count(folder) > 1]
    if twice:
        raise ValueError(f'{twice[0]} is named twice: name each run once')


def _grouped(folders: Sequence[Named]) -> dict[str, list[Path]]:
    """Return the runs of each arm, by its name."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for name, folder in folders:
        # Of runs whose arm is given the configs may differ: an arm at equal
        # cost takes its budget from another run with the same seed.
        key = (name, '') if name else ('', _settings(folder))
        groups.setdefault(key, []).append(folder)
    named: dict[str, list[Path]] = {}
    for (given, _), group in groups.items():
        name = given or _common_name(group)
        if name in named:
            name = f'{group[0].parent.name}/{group[0].name}'
        if name in named:
            raise ValueError(
                f'{named[name][0]} and {group[0]} have different configs and '
                f'would both be called {name}: name the arms, as in '
                'stock=DIR pruned=DIR'
            )
        named[name] = group
    return named


def _settings(folder: Path) -> str:
    """Return what of a run's config makes it another arm."""
    cfg = of_run.config(folder).to_dict()
    resumed = cfg.get('resume')
    for key in (*PLACES, *STARTS, *(['load_from'] if resumed else [])):
        cfg.pop(key, None)
    cfg['randomness'] = {**(cfg.get('randomness') or {}), 'seed': None}
    cfg['ranks'] = of_run.ranks(folder)
    return json.dumps(cfg, sort_keys=True, default=str)


def _common_name(group: Sequence[Path]) -> str:
    """Name an arm by what the names of its folders have in common."""
    names = [folder.name for folder in group]
    common = names[0] if len(names) == 1 else os.path.commonprefix(names)
    if len(names) > 1:
        common = SEED_SUFFIX.sub('', common)
    # Folders that are named by the seed alone lie in one of the arm.
    return group[0].parent.name if common.strip('0123456789') == '' else common


def _total(folders: Sequence[Path]) -> int | None:
    """Return the samples of the data of some runs, if one has noted them."""
    first = [line for dir_ in folders for line in of_run.rounds(dir_)[:1]]
    totals = {line['total'] for line in first}
    return totals.pop() if len(totals) == 1 else None


def _arm(name: str, folders: Sequence[Path], total: int | None) -> Arm:
    cells = [_cell(read_run(folder, total=total)) for folder in folders]
    by_seed: dict[int | None, Path] = {}
    for folder, cell in zip(folders, cells, strict=True):
        if cell.seed is not None and cell.seed in by_seed:
            raise ValueError(
                f'{by_seed[cell.seed]} and {folder} are both the run of '
                f'{name} with seed {cell.seed}: leave one out, or name their '
                'arms, as in first=DIR second=DIR'
            )
        by_seed[cell.seed] = folder
    return Arm(name, cells)


def _cell(run: Run) -> Cell:
    if not run.values or run.metric is None:
        return Cell(run.seed, math.nan, math.nan, math.nan, run)
    return Cell(run.seed, run.values[-1], run.images[-1], run.seconds[-1], run)


def _judged(arm: Arm, metric: Metric | None, total: int | None) -> Arm:
    """Judge all runs by one metric; one that lacks it has no results."""
    cells = []
    for cell in arm.cells:
        run = cell.run
        if run and metric and run.metric != metric:
            run = read_run(run.work_dir, metric, total)
            if not any(map(math.isfinite, run.values)):
                run = run._replace(values=[])
            cell = _cell(run)
        cells.append(cell)
    return arm._replace(cells=cells)


def _reference(arms: Sequence[Arm]) -> Arm | None:
    """Return what the other arms are compared with.

    Of the arms that do not prune it is the last of those that trained on the
    most samples. If all prune, it is the last.
    """
    if len(arms) < 2:
        return None
    stock = [arm for arm in arms if not arm.prunes]
    # Of equal ones max takes the first.
    return max(stock[::-1], key=_samples) if stock else arms[-1]


def _samples(arm: Arm) -> float:
    return max((run.images[-1] for run in arm.runs), default=0)


def _compared_cell(
    work_dir: Path, entry: dict[str, Any], metric: Metric
) -> Cell:
    """Return a cell of a comparison, whose times were measured."""
    folder = work_dir / entry['work_dir']
    run = read_run(folder, metric) if of_run.starts(folder) else None
    seconds = entry['train_seconds']
    if run and run.seconds and run.seconds[-1] > 0:
        scale = seconds / run.seconds[-1]
        run = run._replace(seconds=[scale * t for t in run.seconds])
    share = entry['samples_share']
    value = _bound(entry['value'], math.nan)
    return Cell(entry['seed'], value, share, seconds, run)


def _bound(value: float | None, unknown: float) -> float:
    return unknown if value is None else value


def _leading(
    arms: Sequence[Arm], gaps: Sequence[tuple[str, str]]
) -> tuple[Arm, Arm | None]:
    """Return the arm that a comparison is about, and its reference.

    The first is the one that sets the costs of others, if there is one; the
    second is what most arms are compared with.
    """
    by_name = {arm.name: arm for arm in arms}
    costs = [arm.at_cost_of for arm in arms if arm.at_cost_of in by_name]
    names = [*costs, *(arm for arm, _ in gaps), arms[0].name]
    subject = by_name[names[0]]
    against = Counter(other for _, other in gaps).most_common(1)
    return subject, by_name[against[0][0]] if against else None
