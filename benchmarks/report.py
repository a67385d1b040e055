"""RESULTS.md, its pictures and the tables of other pages, from the results."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infobatch_mm.compare.cells import Results, read_results, share_of
from infobatch_mm.compare.statistics import paired, verdict
from infobatch_mm.compare.tables import (
    arms_table,
    class_names,
    class_table,
    controls_table,
    differences,
    draw,
    efficiency_table,
    interval,
    power_text,
    spread,
    table,
)
from infobatch_mm.records import read_json_lines

from . import replace_block, suites, write_block
from .map import draw_map, map_table, prediction_table
from .suites import (
    ARMS,
    BATCHES,
    CORE,
    COSTS,
    GRID,
    HERE,
    LRS,
    MAP,
    PLANNED_ARMS,
    ROOT,
    SUITES,
    TUNED,
)

RESULTS = HERE / 'RESULTS.md'
PICTURES = HERE / 'pictures'
# Of the core arms at each cost.
SUFFIXES = ('', *(f'-{percent}' for percent in COSTS))
# Pages with the table of what fewer samples cost, and at which costs.
PAGES = {
    ROOT / 'README.md': SUFFIXES[:1],
    ROOT / 'docs/results.md': SUFFIXES,
}
SUMMARY_BLOCK = 'results'
# What a suite of the map must have to be on it.
MAP_ARMS = {'infobatch', 'full', 'random', 'short'}

SWEEP = {0.1: 'infobatch-r0.1', 0.3: 'infobatch-r0.3', 0.5: 'infobatch'}
SWEEP[0.7] = 'infobatch-r0.7'

# Whose effect on single classes is tabled: the first core arms but for `full`,
# what is to spare rare classes, and other prune ratios.
CLASS_ARMS = ['infobatch', 'random', 'short', 'class-balanced']
CLASS_ARMS += [arm for arm in SWEEP.values() if arm not in CLASS_ARMS]

# The rows of the README's table, in words.
SUMMARY_ROWS = {
    'digits-tuned': 'digits',
    'digits-tuned-three': 'digits, 3x as long',
    'digits': 'digits, not tuned',
    'digits-near0-three': 'the same, 3x as long',
    'digits-rare': 'the same, one digit rare',
    'digits-dice': 'the same with Dice loss',
    'camvid-finetune-tuned': 'CamVid, fine-tuned, AdamW',
    'camvid-finetune-sgd-tuned': 'CamVid, fine-tuned, SGD',
    'camvid': 'CamVid, SGD, not tuned',
    'camvid-adamw': 'CamVid, AdamW',
    'cifar10-finetune-tuned': 'CIFAR-10, fine-tuned',
    'cifar10-tuned-float32': 'CIFAR-10, SGD',
    'cifar10-tuned': 'CIFAR-10, SGD, in bfloat16',
    'cifar10-long': 'CIFAR-10, SGD, 10x as long',
    'cifar10': 'CIFAR-10, SGD, not tuned',
    'cifar10-adamw-tuned': 'CIFAR-10, AdamW',
    'cifar10-lars-tuned': 'CIFAR-10, LARS',
    'cifar10-lamb-tuned': 'CIFAR-10, LAMB',
    'cifar10-lars': 'CIFAR-10, LARS, not tuned',
    'cifar10-lamb': 'CIFAR-10, LAMB, not tuned',
}

# Those that only docs/results.md has: first stocks, on which saving samples
# can look free, what answers a question of its own, and what lacks arms.
DETAILS = {'digits', 'digits-near0-three', 'digits-rare', 'digits-dice'}
DETAILS |= {'camvid', 'cifar10', 'cifar10-lars', 'cifar10-lamb'}
DETAILS |= {'cifar10-lars-tuned', 'cifar10-lamb-tuned'}
DETAILS |= {'camvid-finetune-sgd-tuned'}
# Those with a picture.
DRAWN = ('digits', 'digits-tuned', 'camvid')

NEVER_ANNEALED = 'infobatch-small-batch-no-annealing'

# Its columns, in words: what is compared with all data.
SUMMARY_ARMS = {
    'infobatch': 'InfoBatch, as in the paper',
    'infobatch-small-batch': 'InfoBatch, all steps',
    NEVER_ANNEALED: 'and `delta=1`',
    'small-batch': 'smaller batches alone',
    'short': 'shorter schedule',
    'short-lr': 'and longer steps',
    'random': 'random pruning',
}
# What the tables by cost compare the core arms with.
COMPARED_WITH = ('full', 'small-batch')
NOT_RUN = '–'

# The columns of the table in docs/scaling.md, and the models of docs/zoo.md.
PLANNED = (
    'torch.randperm(N)',
    'none: plan',
    'random: plan',
    'InfoBatch: plan',
    'quantile: plan',
    'InfoBatch: plan, hand out',
)
STEP_MODELS = dict(
    upernet_r50='UPerNet-R50',
    segformer_b0='SegFormer-B0',
    bisenetv2='BiSeNetV2, five heads',
)


def read_all() -> dict[str, Results]:
    """Read the finished cells of all suites that have any."""
    found = {
        suite: read_results(suites.cells_file(suite), suite, ARMS)
        for suite in SUITES
    }
    return {suite: results for suite, results in found.items() if results}


# The blocks of RESULTS.md


def sweep_text(results: Results) -> str:
    """Test prune ratios in ascending order, to the first failure."""
    largest = None
    for prune_ratio, arm in SWEEP.items():
        if arm not in results:
            return f'Prune ratio {prune_ratio}: not run.'
        gap = paired(differences(results, arm, 'full'))
        if verdict(gap) != 'lossless':
            break
        largest = prune_ratio
    else:
        return f'Lossless at every prune ratio up to {largest}.'
    tested = f'stopped at {prune_ratio} ({verdict(gap)}: {interval(gap)})'
    if largest is None:
        return f'No prune ratio was shown to be lossless: {tested}.'
    return f'The largest lossless prune ratio is {largest}: {tested}.'


def costs_table(results: Results, to: str) -> str:
    """Return the core arms, and one more, against one of them, a row a cost.

    Args:
        results (Results): The finished cells of a suite.
        to (str): The arm that they are compared with, at the same cost.
    """
    arms = [arm for arm in CORE if arm not in ('full', to)]
    if any(arm.startswith(NEVER_ANNEALED) for arm in results):
        arms.append(NEVER_ANNEALED)
    rows = [[f'difference to `{to}` (seeds)', *(f'`{arm}`' for arm in arms)]]
    for suffix in SUFFIXES:
        if f'infobatch{suffix}' not in results:
            continue
        runs = results[f'infobatch{suffix}'].values()
        row = [f'{statistics.mean(map(share_of, runs)):.0%} of the samples']
        control = to if to == 'full' else f'{to}{suffix}'
        for arm in arms:
            gains = differences(results, f'{arm}{suffix}', control)
            row.append(
                f'{interval(paired(gains))} ({len(gains)})'
                if gains
                else NOT_RUN
            )
        rows.append(row)
    return table(rows)


def stock_table(results: Results) -> str:
    """Return all data by batch size and learning rate."""
    tried = [
        lr
        for lr in LRS
        if any(GRID[batch, lr] in results for batch in BATCHES)
    ]
    rows = [['`full`, with', *(f'learning rate x {lr:g}' for lr in tried)]]
    for batch in BATCHES:
        row = [f'batch x {batch:g}']
        for lr in tried:
            runs = results.get(GRID[batch, lr], {}).values()
            row.append(
                f'{spread(run["value"] for run in runs)} ({len(runs)})'
                if runs
                else NOT_RUN
            )
        rows.append(row)
    return table(rows)


def suite_text(suite: str, results: Results) -> str:
    """Return all that is said of a suite."""
    at_its_cost = {
        arm: runs
        for arm, runs in results.items()
        if arm not in TUNED and not arm.endswith(SUFFIXES[1:])
    }
    parts = [arms_table(at_its_cost, PLANNED_ARMS)]
    is_compared = {'full', 'infobatch'} <= results.keys()
    if is_compared:
        parts += [power_text(results), controls_table(at_its_cost)]
    if {f'small-batch{suffix}' for suffix in SUFFIXES} & results.keys():
        parts += [costs_table(results, to) for to in COMPARED_WITH]
    if TUNED.keys() & results.keys():
        parts.append(stock_table(results))
    if suite == 'digits':
        parts.append(sweep_text(results))
    if is_compared and class_names(results):
        arms = [arm for arm in CLASS_ARMS if arm in results]
        parts.append(class_table(results, arms))
    if is_drawn(suite, results):
        parts.append(picture(f'Curves of {suite}', suite))
    return '\n\n'.join(parts)


def is_drawn(suite: str, results: Results) -> bool:
    """Tell whether a suite has a picture: it needs a control."""
    return suite in DRAWN and results.keys() >= MAP_ARMS


def map_text(on_map: Mapping[str, Results]) -> str:
    """Return the tables and the picture of where pruning pays."""
    link = picture('Gain at equal cost', 'map')
    return '\n\n'.join([map_table(on_map), prediction_table(on_map), link])


def picture(text: str, name: str) -> str:
    """Return a link to a picture."""
    return f'![{text}](pictures/{name}.png)'


def in_pairs(results_of: Mapping[str, Results]) -> dict[str, Results]:
    """Return the suites that were run for the time saved, by plain name."""
    return {
        suite.removesuffix('-paired'): results
        for suite, results in results_of.items()
        if suite.endswith('-paired')
    }


def on_map(results_of: Mapping[str, Results]) -> dict[str, Results]:
    """Return the suites of the map whose core arms were run."""
    return {
        suite: results
        for suite, results in results_of.items()
        if suite in MAP and results.keys() >= MAP_ARMS
    }


def by_themselves(results_of: Mapping[str, Results]) -> dict[str, Results]:
    """Return the suites that have a block and a picture of their own."""
    return {
        suite: results
        for suite, results in results_of.items()
        if suite == 'digits' or not (suite in MAP or suite.endswith('-paired'))
    }


def blocks(results_of: Mapping[str, Results]) -> dict[str, str]:
    """Return the blocks of RESULTS.md, by name."""
    found = {
        suite: suite_text(suite, results)
        for suite, results in by_themselves(results_of).items()
    }
    if pairs := in_pairs(results_of):
        found['efficiency'] = efficiency_table(pairs)
    if len(fields := on_map(results_of)) > 1:
        found['map'] = map_text(fields)
    return found


def with_blocks(text: str, found: Mapping[str, str]) -> str:
    """Return a text with its blocks replaced, and new ones at its end."""
    for name, body in found.items():
        if f'<!-- begin: {name} -->' not in text:
            text = (
                f'{text.rstrip()}\n\n## {name}\n\n<!-- begin: {name} -->\n'
                f'<!-- end: {name} -->\n'
            )
        text = replace_block(text, name, body)
    return text


def draw_all(results_of: Mapping[str, Results], folder: Path) -> None:
    """Draw every picture that RESULTS.md shows."""
    for suite, results in by_themselves(results_of).items():
        if is_drawn(suite, results):
            draw(results, suite, folder / f'{suite}.png')
    if len(fields := on_map(results_of)) > 1:
        draw_map(fields, folder / 'map.png')


# The table of the README


def summary_table(
    results_of: Mapping[str, Results], suffixes: Sequence[str] = ('',)
) -> str:
    """Return what fewer samples cost, a row a suite and a cost.

    Args:
        results_of (Mapping): The finished cells by suite.
        suffixes (Sequence[str]): Those of the arms at the costs wanted. With
            one alone, suites of :data:`DETAILS` are left out.
    """
    rows = [['trained on (seeds)', 'samples', *SUMMARY_ARMS.values()]]
    for suite, words in SUMMARY_ROWS.items():
        if suite in DETAILS and len(suffixes) == 1:
            continue
        results = results_of.get(suite, {})
        for suffix in suffixes:
            if runs := results.get(f'infobatch{suffix}'):
                share = statistics.mean(map(share_of, runs.values()))
                seeds = len(differences(results, f'infobatch{suffix}', 'full'))
                row = [f'{words} ({seeds})', f'{share:.0%}']
                for arm in SUMMARY_ARMS:
                    gains = differences(results, f'{arm}{suffix}', 'full')
                    row.append(reach(gains, seeds))
                rows.append(row)
    return table(rows)


def reach(gains: Sequence[float], seeds: int) -> str:
    """Return a mean and half its interval, and the seeds where others."""
    if not gains:
        return NOT_RUN
    gap = paired(gains)
    text = f'{gap.mean:+.2f}'
    if gap.seeds > 1:
        text += f'±{gap.high - gap.mean:.2f}'
    return text if gap.seeds == seeds else f'{text} ({gap.seeds})'


# What pruning itself costs


def planning_table() -> str:
    """Return what planning a round costs, from the results of plan.py."""
    text = (HERE / 'plan/results.json').read_text()
    seconds: dict[int, dict[str, str]] = {}
    for row in json.loads(text)['rows']:
        cost = f'{row["seconds"]:.3g}'
        if row['work'] != PLANNED[0]:
            cost += f' ({row["in_permutations"]:.2f})'
        seconds.setdefault(row['samples'], {})[row['work']] = cost
    head = ['samples', f'`{PLANNED[0]}`', *PLANNED[1:]]
    rows = [
        [f'{samples:,}', *(by_work[name] for name in PLANNED)]
        for samples, by_work in seconds.items()
    ]
    return table([head, *rows])


def step_table() -> str:
    """Return what a pruned step costs, from the results of step.py."""
    rows = [['model', 'stock step', "all that differs: the heads' losses"]]
    rows[0] += ['the hook', 'whole step, pruned / stock']
    for line in timed_steps('cpu'):
        low, high = line['step_ratio_interval']
        least, most = (100 * share for share in line['heads_share_interval'])
        rows.append(
            [
                STEP_MODELS[line['model']],
                f'{line["stock_seconds"]:.1f} s',
                f'{100 * line["heads_share"]:+.2f} % '
                f'({least:+.2f} to {most:+.2f} %)',
                f'{100 * line["hook_share"]:+.1g} %',
                f'{line["step_ratio"]:.3f} ({low:.3f} to {high:.3f})',
            ]
        )
    return table(rows)


def gpu_step_table() -> str:
    """Return what a pruned step costs on a GPU, and what a round saves."""
    rows = [['model', 'batch', 'stock step', 'whole step, pruned / stock']]
    rows[0] += ['time saved: fewer steps', 'smaller batches']
    for line in timed_steps('cuda'):
        low, high = line['step_ratio_interval']
        rows.append(
            [
                STEP_MODELS[line['model']],
                f'{line["batch_size"]}',
                f'{1000 * line["stock_seconds"]:.0f} ms',
                f'{line["step_ratio"]:.3f} ({low:.3f} to {high:.3f})',
                f'{line["fewer_steps"]:.2f}',
                f'{line["smaller_batches"]:.2f}',
            ]
        )
    return table(rows)


def timed_steps(device: str) -> list[dict[str, Any]]:
    """Return the results of step.py on a device."""
    lines = read_json_lines(HERE / 'step/results.jsonl')
    return sorted(
        (line for line in lines if line.get('device', 'cpu') == device),
        key=lambda line: (
            [*STEP_MODELS].index(line['model']),
            line['batch_size'],
        ),
    )


def cost_blocks() -> list[tuple[Path, str, str]]:
    """Return the pages with what pruning itself costs: page, name, body."""
    return [
        (ROOT / 'docs/scaling.md', 'planning', planning_table()),
        (ROOT / 'docs/zoo.md', 'step', step_table()),
        (ROOT / 'docs/zoo.md', 'step on a GPU', gpu_step_table()),
    ]


def main() -> None:
    """Write the blocks of RESULTS.md and of the pages, and the pictures."""
    results_of = read_all()
    text = RESULTS.read_text(encoding='utf-8')
    text = with_blocks(text, blocks(results_of))
    RESULTS.write_text(text, encoding='utf-8')
    draw_all(results_of, PICTURES)
    for page, suffixes in PAGES.items():
        body = summary_table(results_of, suffixes)
        write_block(page, SUMMARY_BLOCK, body)
    for page, name, body in cost_blocks():
        write_block(page, name, body)
