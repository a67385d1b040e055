"""Our suites: their finished cells, and what was written from them."""

import importlib
import math
import os

import pytest
import torch

from benchmarks import (
    __main__,
    is_current,
    markers,
    read_block,
    replace_block,
    report,
    suites,
    write_block,
)
from benchmarks.map import draw_map, map_table, prediction_table
from infobatch_mm.compare.arms import ALL_DATA
from infobatch_mm.compare.cells import budget_for, config_of
from infobatch_mm.compare.setup import config_hash, stock_config
from infobatch_mm.host.packages import is_importable
from infobatch_mm.records import read_json_lines

NEEDS = dict(cifar10='mmpretrain', digits='mmseg', camvid='mmseg')


def needs(suite):
    package = NEEDS[suite.partition('-')[0]]
    return pytest.mark.skipif(
        not is_importable(package), reason=f'needs {package}'
    )


@pytest.mark.parametrize(
    'suite', [pytest.param(s, marks=needs(s)) for s in suites.SUITES]
)
def test_finished_cells_are_those_of_todays_configs(suite):
    """Else they would be refused, and what they show be of something else."""
    study = suites.study(suite)
    lines = [
        line
        for line in read_json_lines(study.results)
        if line['suite'] == suite
    ]
    finished = study.finished()
    stock = stock_config(study.setup)
    found = {}
    for arm, runs in finished.items():
        for seed, result in runs.items():
            cell = study.cell(arm, seed)
            assert result['suite'] == suite
            budget = budget_for(study, cell, finished)
            cfg = config_of(study, cell, budget, stock)
            found[cell.name] = config_hash(cfg), result['config_hash']
    assert {k: a for k, (a, _) in found.items()} == {
        k: b for k, (_, b) in found.items()
    }
    assert len(found) == len(lines)  # each line is a cell of its own


@pytest.mark.parametrize(
    'suite',
    [pytest.param(s, marks=needs(s)) for s in ('digits', 'camvid', 'cifar10')],
)
def test_small_batches_cost_what_pruning_did(suite):
    study = suites.study(suite)
    finished = study.finished()
    pruned = finished['infobatch'][0]
    cell = study.cell('small-batch', 0)
    cfg = config_of(study, cell, budget_for(study, cell, finished))
    batch = cfg.train_dataloader.batch_size
    if 'max_epochs' in cfg.train_cfg:
        samples = cfg.train_cfg.max_epochs * pruned['dataset_size']
    else:
        samples = cfg.train_cfg.max_iters * batch
    assert samples == pytest.approx(pruned['samples_seen'], rel=0.012)
    steps = finished['full'][0]['iters']
    assert samples / batch == pytest.approx(steps, rel=0.5 / batch + 0.01)


@pytest.mark.parametrize('percent', suites.COSTS)
def test_controls_are_at_the_cost_of_their_own_infobatch(percent):
    pruned = f'infobatch-{percent}'
    for name, arm in suites.CORE.items():
        if arm.at_cost_of:
            assert suites.ARMS[f'{name}-{percent}'].at_cost_of == pruned
    assert suites.ARMS[pruned].at_cost_of is None


@pytest.mark.parametrize(
    'suite', [pytest.param(s, marks=needs(s)) for s in ('digits', 'cifar10')]
)
def test_every_stock_of_the_grid_sees_as_many_samples(suite):
    study = suites.study(suite)
    stock = stock_config(study.setup)
    for (batch, lr), arm in suites.GRID.items():
        cfg = config_of(study, study.cell(arm, 0), ALL_DATA, stock)
        now, before = cfg.train_dataloader, stock.train_dataloader
        assert now.batch_size == before.batch_size * batch
        rates = [c.optim_wrapper.optimizer.lr for c in (cfg, stock)]
        assert rates[0] == pytest.approx(lr * rates[1])
        if 'max_epochs' in cfg.train_cfg:
            assert cfg.train_cfg == stock.train_cfg
        else:
            iters = [c.train_cfg.max_iters for c in (cfg, stock)]
            assert iters[0] * batch == iters[1]
            ends = [c.param_scheduler[0].end for c in (cfg, stock)]
            assert ends == iters


def test_costs_are_compared_at_each_cost():
    def runs(*values, seen):
        return {
            seed: dict(value=value, samples_seen=seen, samples_budget=100)
            for seed, value in enumerate(values)
        }

    results = {
        'full': runs(50.0, 52.0, seen=100),
        'infobatch': runs(49.0, 51.5, seen=73),
        'small-batch': runs(50.0, 51.5, seen=73),
        'infobatch-50': runs(47.0, seen=50),
        'small-batch-50': runs(48.0, seen=50),
    }
    head, _, paper, half = report.costs_table(results, 'small-batch').split(
        '\n'
    )
    assert head.startswith('| difference to `small-batch` (seeds) | `infob')
    cells = [line.split(' | ')[1] for line in (paper, half)]
    assert cells == ['-0.50 [-3.66, +2.66] (2)', '-1.00 (1)']
    assert half.startswith('| 50% of the samples | ')
    assert '+0.00' not in half and half.count('–') == 4


def test_there_are_as_many_cells_as_ever():
    paths = {suites.cells_file(suite) for suite in suites.SUITES}
    assert {*suites.CELLS.iterdir()} == paths
    lines = [line for path in paths for line in read_json_lines(path)]
    assert len(lines) >= 420
    assert {line['suite'] for line in lines} <= suites.SUITES.keys()


@needs('digits')
def test_proportional_inclusion_is_exact(monkeypatch):
    """Each sample is expected to weigh 1, and is kept as its score says."""
    monkeypatch.syspath_prepend(str(suites.HERE / 'parts'))
    parts = importlib.import_module('benchmark_parts')
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(30, generator=generator) ** 2
    scores[0], scores[1] = math.nan, 0.0
    policy = parts.ProportionalPolicy(0.5, delta=0.875)
    rounds, kept, weight = 20_000, torch.zeros(30), torch.zeros(30)
    for _ in range(rounds):
        plan = policy.plan(scores, generator=generator)
        assert len(plan) == 15
        kept[plan.indices] += 1
        weight[plan.indices] += plan.weights
    assert (weight / rounds - 1).abs().max() < 0.1
    assert kept[0] == rounds, 'a sample without a score is kept'
    floored = scores.clamp(min=0.2 * scores.nanmean())
    shares, is_free = kept / rounds, kept < rounds
    constant = (shares / floored)[is_free]
    assert is_free.sum() > 10
    assert constant.max() < 1.1 * constant.min()
    assert (shares / floored)[~is_free][1:].max() < 1.1 * constant.min()
    assert len(policy.plan(scores, generator=generator, progress=0.9)) == 30


def test_the_names_in_the_digests_can_be_imported(monkeypatch):
    path = suites.study('digits').env['PYTHONPATH'].split(os.pathsep)[0]
    monkeypatch.syspath_prepend(path)
    for name in suites.DIGITS.parts:
        module = importlib.import_module(name)
        assert os.path.dirname(module.__file__) == path


def test_results_and_readme_are_those_of_the_cells():
    """After `python -m benchmarks report` they are."""
    results_of = report.read_all()
    text = report.RESULTS.read_text(encoding='utf-8')
    for name, body in report.blocks(results_of).items():
        assert read_block(text, name) == body, f'{name} is stale'
    for page, suffixes in report.PAGES.items():
        table = report.summary_table(results_of, suffixes)
        assert is_current(page, report.SUMMARY_BLOCK, table), page


def test_every_picture_of_the_results_is_there():
    text = report.RESULTS.read_text(encoding='utf-8')
    shown = {line.partition('pictures/')[2] for line in text.splitlines()}
    shown = {name.rstrip(')') for name in shown if name}
    assert shown == {path.name for path in report.PICTURES.iterdir()}


def test_a_stale_block_is_replaced_and_a_new_one_added():
    text = '# R\n\n<!-- begin: a -->\nold\n<!-- end: a -->\n\nlast\n'
    found = dict(a='new', b='other')
    for _ in range(2):  # the second time it replaces what the first wrote
        text = report.with_blocks(text, found)
    assert 'old' not in text and text.count('## b') == 1
    assert read_block(text, 'a') == 'new' and read_block(text, 'b') == 'other'
    assert text.index('last') < text.index('## b')


def test_no_row_of_the_readme_claims_more_than_its_interval():
    results_of = report.read_all()
    table = report.summary_table(results_of)
    rows = [
        suite
        for suite in report.SUMMARY_ROWS.keys() - report.DETAILS
        if 'infobatch' in results_of.get(suite, {})
    ]
    assert len(table.splitlines()) == 2 + len(rows)
    row = '| digits (6) | 73% | -0.83±0.31 | -0.65±0.63 | -0.66±0.46 |'
    assert row in table
    # Other seeds than those of the row are named.
    row = '| digits, not tuned (20) | 73% | -0.31±0.26 | +0.88±0.46 (6) |'
    assert row in report.summary_table(results_of, report.SUFFIXES)


@needs('digits')
def test_finished_cells_are_not_run_again(monkeypatch, capsys):
    def run_all(study, missing, jobs):
        assert missing == []
        return iter(())

    monkeypatch.setattr(__main__, 'run_all', run_all)
    argv = ['digits-near90-one', '--seeds', '0', '1', '--arms']
    assert __main__.main([*argv, *sorted(report.MAP_ARMS)]) == 0
    assert capsys.readouterr().out == '8 of 8 cells are finished\n'


@needs('digits')
def test_what_is_missing_is_run_and_a_failure_is_told(monkeypatch, capsys):
    def run_all(study, missing, jobs):
        assert jobs == 3
        yield missing[0], RuntimeError('it failed')
        yield (
            missing[1],
            dict(
                metric='mIoU',
                value=41.239,
                samples_seen=3,
                samples_budget=4,
                cpu_seconds=9.7,
            ),
        )

    monkeypatch.setattr(__main__, 'run_all', run_all)
    argv = ['digits-paired', '--arms', 'full', 'infobatch', '--seeds', '0']
    assert __main__.main([*argv, '--jobs', '3']) == 1
    out, err = capsys.readouterr()
    assert err == 'full-s0: it failed\n'
    assert 'infobatch-s0: mIoU 41.24, 75.0% of the samples, 10 s\n' in out


# The map


def test_the_map_leaves_out_what_was_not_run(tmp_path):
    rounds = [dict(total=4, kept=3, variance_ratio=0.1)]
    results = {
        arm: {
            seed: dict(value=value + seed, samples_seen=9, rounds=rounds)
            for seed in (0, 1)
        }
        for value, arm in enumerate(sorted(report.MAP_ARMS))
    }
    some = {'digits': results, 'digits-near90-three': results}
    assert draw_map(some, tmp_path / 'map.png').exists()
    lines = map_table(some).splitlines()
    assert [line.split('`')[1] for line in lines[2:]] == list(some)


def test_prediction_compares_suites_of_equal_length():
    def results(ratio, gain):
        rounds = [dict(total=4, kept=3, variance_ratio=ratio)]
        return {
            arm: {0: dict(value=gain * (arm == 'infobatch'), rounds=rounds)}
            for arm in report.MAP_ARMS
        }

    # More gain at the greater ratio, but for the length, which outdoes it.
    of = {
        'digits-near0-third': results(0.1, 3.0),
        'digits-near50-third': results(0.2, 4.0),
        'digits': results(0.3, 1.0),
        'digits-near50-one': results(0.4, 2.0),
    }
    lines = prediction_table(of).splitlines()
    assert lines[2] == '| `full` | -0.60 | 0.417 | +1.00 | 0.500 |'


# Blocks of a Markdown file that a command writes

TEXT = 'one\n<!-- begin: x -->\nold\n<!-- end: x -->\ntwo\n'


def test_a_block_is_replaced_and_read():
    text = replace_block(TEXT, 'x', '| a |\n|---|\n')
    assert text == (
        'one\n<!-- begin: x -->\n| a |\n|---|\n<!-- end: x -->\ntwo\n'
    )
    assert read_block(text, 'x') == '| a |\n|---|'
    assert replace_block(text, 'x', '| a |\n|---|') == text


@pytest.mark.parametrize('marker', markers('x'))
@pytest.mark.parametrize('twice', [False, True])
def test_a_marker_that_is_missing_or_twice_is_named(marker, twice):
    text = TEXT + marker if twice else TEXT.replace(marker, '')
    with pytest.raises(ValueError, match=f'{marker!r} stands {2 * twice} ti'):
        replace_block(text, 'x', 'new')


def test_markers_in_the_wrong_order_are_refused():
    begin, end = markers('x')
    with pytest.raises(ValueError, match='stands before'):
        replace_block(end + begin, 'x', 'new')


def test_a_file_is_written_and_found_current(tmp_path):
    path = tmp_path / 'some.md'
    path.write_text(TEXT)
    assert not is_current(path, 'x', 'new')
    write_block(path, 'x', 'new')
    assert is_current(path, 'x', 'new\n')
    assert path.read_text() == TEXT.replace('old', 'new')
