"""The files of a run."""

import itertools
import json
import math

import pytest
import torch
from mmengine.logging import HistoryBuffer

from infobatch_mm.records import (
    SCORE_EDGES,
    RunRecords,
    metric_of,
    score_histogram,
    summary_table,
)

SUMMARY = dict(
    policy='InfoBatchPolicy(0.5 until 0.875)',
    total=1024,
    rounds=30,
    samples_budget=30720,
    samples_seen=23456,
    saved_ratio=1 - 23456 / 30720,
    iters_budget=3840,
    iters_run=2932,
    train_seconds=61.23,
    train_seconds_budget=3840 / 2932 * 61.23,
    overhead_seconds=0.456,
)


@pytest.fixture
def records(tmp_path):
    records = RunRecords(str(tmp_path))
    records.begin()
    return records


def rounds(records: RunRecords) -> list[int]:
    lines = records.rounds_file.read_text().splitlines()
    return [json.loads(line)['round'] for line in lines]


def add(records: RunRecords, *numbers: int) -> None:
    for number in numbers:
        records.add_round(dict(round=number, kept=10, threshold=None))


def test_each_round_appends_a_line(records):
    add(records, 0, 1)
    assert records.rounds_file.name == 'infobatch.jsonl'
    assert records.rounds_file.read_text() == (
        '{"round": 0, "kept": 10, "threshold": null}\n'
        '{"round": 1, "kept": 10, "threshold": null}\n'
    )


@pytest.mark.parametrize(
    ('first', 'left'), [(0, []), (2, [0, 1]), (4, [0, 1, 2, 3])]
)
def test_rounds_that_run_again_are_dropped(records, first, left):
    add(records, 0, 1, 2, 3)
    records.begin(first)
    assert rounds(records) == left
    add(records, first)
    assert rounds(records) == [*left, first]


@pytest.mark.parametrize('torn', ['{"rou', '{"round": 2', '{"round', '2'])
def test_a_torn_last_line_is_dropped(records, torn):
    add(records, 0, 1)
    with records.rounds_file.open('a') as file:
        file.write(torn)
    records.begin(5)
    add(records, 2)
    assert rounds(records) == [0, 1, 2]


def test_a_last_line_that_lacks_only_its_end_is_kept(records):
    records.rounds_file.write_text('{"round": 0}\n{"round": 1}')
    records.begin(2)
    add(records, 2)
    assert rounds(records) == [0, 1, 2]


def test_the_summary_is_json(records):
    records.write_summary(SUMMARY)
    assert records.summary_file.name == 'infobatch_summary.json'
    assert json.loads(records.summary_file.read_text()) == SUMMARY


def test_the_table_holds_the_numbers():
    table = summary_table(SUMMARY)
    for text in (
        SUMMARY['policy'],
        '23,456 of 30,720',
        '23.6%',
        '2,932 of 3,840',
        '30',
        '61.2 s',
        '0.46 s',
        # 908 of 3,840 iterations at 20.9 ms.
        '19.0 s of an estimated 80.2 s (23.6%)',
    ):
        assert text in table
    assert max(map(len, table.splitlines())) <= 79


def test_the_table_has_the_metric_if_there_is_one():
    assert 'best' not in summary_table(SUMMARY)
    metric = dict(metric='mIoU', metric_last=35.2, metric_best=36.01)
    table = summary_table(SUMMARY | metric)
    assert 'mIoU' in table and '35.2 at the end, 36.01 at best' in table


def test_time_saved_is_not_known_after_a_stock_part():
    table = summary_table(SUMMARY | dict(train_seconds_budget=None))
    assert 'not known' in table and 'estimated' not in table


@pytest.mark.parametrize(
    'values, found',
    [
        ({'train/loss': [1, 2]}, {}),
        ({'val/time': [1.0], 'val/data_time': [1.0]}, {}),
        (
            {'val/time': [1.0, 1.0], 'val/aAcc': [9, 9], 'val/mIoU': [4, 3]},
            dict(metric='mIoU', metric_last=3, metric_best=4),
        ),
        (
            {'val/loss_x': [2, 1, 3]},
            dict(metric='loss_x', metric_last=3, metric_best=1),
        ),
    ],
)
def test_the_last_and_the_best_metric(values, found):
    history = {n: HistoryBuffer(v, [1] * len(v)) for n, v in values.items()}
    assert metric_of(history) == found


def test_scores_are_counted_between_the_edges():
    assert SCORE_EDGES[0] == pytest.approx(1e-6)
    assert SCORE_EDGES[-1] == pytest.approx(100)
    scores = [0.0, 1e-9, 1e-6, 0.05, 0.05, 0.9, 1.1, 99.0, 100.0, 1e9]
    scores += [math.nan, math.inf]
    counts = score_histogram(torch.tensor(scores))
    assert len(counts) == len(SCORE_EDGES) - 1
    expected = [0] * len(counts)
    for score in scores[:-2]:
        bins = [
            k
            for k, (low, high) in enumerate(itertools.pairwise(SCORE_EDGES))
            if low <= score < high
        ]
        expected[bins[0] if bins else -1 if score > 1 else 0] += 1
    assert counts == expected
