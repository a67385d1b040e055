"""The file of finished runs."""

import json
import multiprocessing

import pytest

from infobatch_mm.compare.results import append_result, read_results
from infobatch_mm.records import read_json_lines


def result(arm, seed):
    return dict(arm=arm, seed=seed, value=0.1 + seed, threshold=None)


def test_results_are_read_by_arm_and_seed(tmp_path):
    path = tmp_path / 'new' / 'results.jsonl'
    assert read_results(path, ['full']) == {}
    for arm, seed in [('b', 2), ('a', 1), ('other', 0), ('b', 1)]:
        append_result(path, result(arm, seed))
    found = read_results(path, ['a', 'c', 'b'])
    assert list(found) == ['a', 'b'] and list(found['b']) == [1, 2]
    assert found['b'][2] == result('b', 2)


def test_a_torn_last_line_is_left_out_and_replaced(tmp_path):
    path = tmp_path / 'results.jsonl'
    append_result(path, result('a', 0))
    torn = json.dumps(result('a', 1))[:-9]
    for _ in range(2):
        with path.open('a') as file:
            file.write(torn)
        assert len(read_json_lines(path)) == 1
    append_result(path, result('a', 2))
    assert read_json_lines(path) == [result('a', 0), result('a', 2)]


def test_a_file_that_was_torn_at_its_first_line(tmp_path):
    path = tmp_path / 'results.jsonl'
    path.write_text('{"arm": "a", ')
    assert read_json_lines(path) == []
    append_result(path, result('a', 0))
    assert read_json_lines(path) == [result('a', 0)]


def test_a_broken_line_before_the_last_is_an_error(tmp_path):
    path = tmp_path / 'results.jsonl'
    path.write_text('{}\n{"arm": \n{}\n')
    with pytest.raises(ValueError, match='line 2'):
        read_json_lines(path)


def append_many(path, arm):
    for seed in range(50):
        append_result(path, result(arm, seed))


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / 'results.jsonl'
    context = multiprocessing.get_context('fork')
    writers = [
        context.Process(target=append_many, args=(path, arm)) for arm in 'abc'
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = read_results(path, 'abc')
    for arm in 'abc':
        assert found[arm] == {s: result(arm, s) for s in range(50)}
