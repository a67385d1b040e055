"""What a person can act on: the verdict of a comparison, and its files."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..config import hook_settings
from ..hook import InfoBatchHook
from .arms import ALL_DATA
from .cells import Cell, Result, Results, Study, config_of, share_of
from .planning import pilot_text, time_text
from .statistics import (
    BETTER,
    SAME,
    WORSE,
    Paired,
    judge,
    paired,
    pooled_deviation,
    seeds_to_decide,
)
from .tables import (
    decimals,
    differences,
    interval,
    saved_shares,
    spread,
    table,
)

OURS, ALL = 'infobatch', 'full'
JSON_FILE, TABLE_FILE = 'compare.json', 'compare.md'
ONE_SEED, DIVERGED = 'one seed', 'a run that diverged'
ALIKE = 'differences that are all the same'
# By how much of the full run costs may differ and still be called equal.
EQUAL = 0.01
BY_CHANCE = (
    'Of arms that truly do not differ, one in ten is called better or worse '
    'by chance, and more of them if seeds are added until one is.'
)
WORDS = {BETTER: 'better than', SAME: 'indistinguishable from'}
WORDS[WORSE] = 'worse than'


def asked_for(finished: Results, cells: Iterable[Cell]) -> Results:
    """Return the results of some cells, as far as they are finished."""
    wanted = set((cell.arm, cell.seed) for cell in cells)
    found = {
        arm: {s: run for s, run in runs.items() if (arm, s) in wanted}
        for arm, runs in finished.items()
    }
    return {arm: runs for arm, runs in found.items() if runs}


# The verdict


def verdict_text(study: Study, results: Results) -> str | None:
    """Return what the runs say, or None if no arm has two seeds.

    InfoBatch is called better or worse than an arm if the interval of its
    paired gain excludes 0 (see :func:`judge`), else indistinguishable.
    """
    against = {
        arm: gap
        for arm in results
        if arm != OURS and (gap := gap_to(results, arm)) is not None
    }
    if not any(gap.seeds > 1 for gap in against.values()):
        return None
    parts = [savings_text(results), _all_data_text(study, against, results)]
    controls = [arm for arm in against if study.arms[arm].at_cost_of == OURS]
    costs = {arm: _costs(results, arm) for arm in controls}
    alike = [
        arm for arm, (a, b) in costs.items() if round(abs(a - b), 4) <= EQUAL
    ]
    if alike or not controls:
        parts.append(_controls_text(study, 'At equal cost', alike, against))
    rest = [arm for arm in against if arm not in (*alike, ALL)]
    if rest:
        parts.append(_controls_text(study, 'At their own cost', rest, against))
    for arm in (arm for arm in controls if arm not in alike):
        ours, theirs = costs[arm]
        parts.append(f'{arm} saw {theirs:.1%} of the samples, not {ours:.1%}.')
    parts.append(_seeds_text(study, against))
    verdicts = [judge(gain_of(study, gap)) for gap in against.values()]
    if {BETTER, WORSE}.intersection(verdicts):
        parts.append(BY_CHANCE)
    return ' '.join(filter(None, parts))


def _costs(results: Results, arm: str) -> tuple[float, float]:
    """Return what InfoBatch and another arm saw of the samples."""
    seeds = results[OURS].keys() & results[arm].keys()
    ours, theirs = (
        statistics.mean(share_of(results[each][seed]) for seed in seeds)
        for each in (OURS, arm)
    )
    return ours, theirs


def gap_to(results: Results, arm: str) -> Paired | None:
    """Return InfoBatch less another arm, None without a seed of both."""
    found = differences(results, OURS, arm)
    return paired(found) if found else None


def gain_of(study: Study, gap: Paired) -> Paired:
    """Return a difference as a gain, which is positive where it is good."""
    if study.setup.higher_is_better:
        return gap
    return gap._replace(mean=-gap.mean, low=-gap.high, high=-gap.low)


def savings_text(results: Results) -> str:
    """Say what pruning has saved, of the samples and of the time."""
    samples = saved_shares(results, 'samples_seen')
    seconds = saved_shares(results, 'train_seconds')
    # Of all data as it was trained: a run that is stopped early saves nothing.
    samples = samples or [1 - share_of(run) for run in results[OURS].values()]
    text = f'InfoBatch saves {statistics.mean(samples):.0%} of the samples'
    if not seconds:
        return f'{text}.'
    saved = statistics.mean(seconds)
    if saved < 0:
        return f'{text} and takes {-saved:.0%} more time.'
    return f'{text} and {saved:.0%} of the time.'


def form_of(results: Results) -> str:
    """Return the format of the metric of some runs."""
    return decimals(
        run['value'] for runs in results.values() for run in runs.values()
    )


def _all_data_text(
    study: Study, against: dict[str, Paired], results: Results
) -> str:
    if ALL not in against:
        return 'Against all data: not run.'
    gap, form = against[ALL], f'+{form_of(results)}'
    found = judge(gain_of(study, gap)) or f'{why(gap)}: no verdict'
    if math.isfinite(gap.mean):
        found = f'{interval(gap, form)}, {found}'
    title = f'{study.setup.metric} against all data'
    return f'{title}: {found} ({_seeds(gap.seeds)}).'


def _controls_text(
    study: Study, title: str, arms: Sequence[str], against: dict[str, Paired]
) -> str:
    """Say what InfoBatch is to some arms: better, alike, worse."""
    found = {arm: judge(gain_of(study, against[arm])) for arm in arms}
    parts = [
        f'{words} {_listed(named)}'
        for kind, words in WORDS.items()
        if (named := [arm for arm in arms if found[arm] == kind])
    ]
    for reason in (ONE_SEED, DIVERGED, ALIKE):
        silent = [arm for arm in arms if not found[arm]]
        if named := [arm for arm in silent if why(against[arm]) == reason]:
            parts.append(f'no verdict from {reason} on {_listed(named)}')
    return f'{title}: {"; ".join(parts) or "nothing was run"}.'


def why(gap: Paired) -> str:
    """Say from what there is no verdict."""
    if gap.seeds < 2:
        return ONE_SEED
    return ALIKE if math.isfinite(gap.mean) else DIVERGED


def _seeds_text(study: Study, against: dict[str, Paired]) -> str:
    """Say how many more seeds would decide what is not decided."""
    deviation = pooled_deviation([*against.values()])
    if not math.isfinite(deviation):
        return ''
    parts = []
    for arm, gap in against.items():
        if judge(gain_of(study, gap)) in (BETTER, WORSE):
            continue
        if not math.isfinite(gap.mean) or not gap.mean:
            continue
        more = seeds_to_decide(gap, deviation)
        parts.append(f'{f"about {more}" if more else "over 100"} for {arm}')
    if not parts:
        return ''
    return (
        'More seeds that would decide, if the differences stay as they are: '
        f'{", ".join(parts)}.'
    )


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f'{", ".join(first)} and {last}' if first else last


def _seeds(count: int) -> str:
    return f'{count} seed{"s" * (count != 1)}'


# The files


def comparison_table(study: Study, results: Results) -> str:
    """Return each arm's metric, cost and difference, and what InfoBatch is."""
    form = form_of(results)
    head = f'arm, seeds, {study.setup.metric}, difference to `{ALL}`, samples'
    rows = [[*f'{head}, time'.split(', '), f'`{OURS}` less it', 'is']]
    for arm, runs in results.items():
        to_all = differences(results, arm, ALL) if arm != ALL else []
        gap = gap_to(results, arm) if arm != OURS else None
        shares = [share_of(run) for run in runs.values()]
        seconds = [run['train_seconds'] for run in runs.values()]
        rows.append(
            [
                f'`{arm}`',
                str(len(runs)),
                spread((run['value'] for run in runs.values()), form),
                interval(paired(to_all), f'+{form}') if to_all else '',
                f'{statistics.mean(shares):.1%}',
                time_text(statistics.mean(seconds)),
                interval(gap, f'+{form}') if gap else '',
                judge(gain_of(study, gap)) if gap else '',
            ]
        )
    return table(rows)


def as_json(
    study: Study, results: Results, config: str, verdict: str | None
) -> dict[str, Any]:
    """Return what `compare.json` holds.

    Its differences are those of InfoBatch to every other arm, and of every
    arm to all data; from one seed they have no ends of an interval.
    """
    pairs = [(OURS, arm) for arm in results if arm != OURS]
    pairs += [(arm, ALL) for arm in results if arm not in (OURS, ALL)]
    cells = [(arm, seed) for arm, runs in results.items() for seed in runs]
    return dict(
        config=config,
        metric=study.setup.metric,
        higher_is_better=study.setup.higher_is_better,
        length=study.setup.length,
        policy=policy_of(study),
        verdict=verdict,
        cells=[
            _cell_json(study, study.cell(*cell), results[cell[0]][cell[1]])
            for cell in cells
        ],
        differences=[
            dict(arm=pair[0], against=pair[1], **_gap_json(paired(found)))
            for pair in pairs
            if (found := differences(results, *pair))
        ],
    )


def _cell_json(study: Study, cell: Cell, run: Result) -> dict[str, Any]:
    return dict(
        arm=cell.arm,
        seed=cell.seed,
        work_dir=study.folder(cell).relative_to(study.work_dir).as_posix(),
        value=_known(run['value']),
        samples_share=share_of(run),
        train_seconds=run['train_seconds'],
        at_cost_of=study.arms[cell.arm].at_cost_of,
    )


def _gap_json(gap: Paired) -> dict[str, float | None]:
    mean, low, high = map(_known, (gap.mean, gap.low, gap.high))
    return dict(mean=mean, low=low, high=high, n=gap.seeds)


def _known(number: float) -> float | None:
    """Return a number as JSON has it, which knows no NaN."""
    return number if math.isfinite(number) else None


def policy_of(study: Study) -> str:
    """Return the pruning policy of a study, as its log names it."""
    cfg = config_of(study, study.cell(OURS, 0), ALL_DATA)
    return repr(InfoBatchHook(**hook_settings(cfg)).policy)


def write(study: Study, results: Results, config: str) -> str:
    """Write `compare.json`, and a table in Markdown.

    Args:
        study (Study): The study.
        results (Results): Its cells that were asked for.
        config (str): What the user calls the config.

    Returns:
        str: The verdict, or why there is none.
    """
    verdict = verdict_text(study, results)
    alone = len(results) == 1 and len(results[OURS]) > 1
    nothing = 'No other arm to compare with' if alone else 'One seed'
    said = verdict or f'{nothing}: no verdict. {savings_text(results)}'
    found = as_json(study, results, config, verdict)
    text = json.dumps(found, indent=2, allow_nan=False)
    (study.work_dir / JSON_FILE).write_text(text + '\n')
    words = [f'- `{arm}`: {study.arms[arm].words}' for arm in results]
    parts = [f'# {config}', said, comparison_table(study, results)]
    parts += ['\n'.join(words), *filter(None, [pilot_text(study)])]
    page = study.work_dir / TABLE_FILE
    page.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')
    return said


def write_page(work_dir: Path) -> Path:
    """Write the page about what :func:`write` has left in a folder.

    Needs jinja2 and matplotlib.
    """
    from ..report.page import write_comparison

    return write_comparison(work_dir)
