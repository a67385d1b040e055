"""python -m zoo report: the kept records, and the pages made of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.blocks import markers
from zoo import record, report, tables

REPO = Path(__file__).parents[1]


def record_of(config, status='passed', **settings):
    known = dict(heads='FCNHead', versions=dict(torch='2'), reason='')
    return dict(known, config=config, status=status) | settings


def write(path, *records):
    path.write_text(''.join(json.dumps(r) + '\n' for r in records))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder in place of zoo/records."""
    monkeypatch.setattr(record, 'RECORDS', tmp_path)
    return tmp_path


@pytest.fixture
def both(kept):
    """Records of mmseg in both families."""
    gone = dict(status='missing', reason='ImportError: | is not installed')
    write(
        kept / 'mmseg-openmmlab.jsonl',
        record_of(
            'a/a_ade20k.py',
            seconds=3600.0,
            cpu_seconds=1800.0,
            probes=dict(linear=1e-6),
        ),
        record_of('a/b.py', **gone),
        record_of('a/c.py', **gone),
        record_of('a/d.py', same_as='a/a_ade20k.py'),
    )
    write(
        kept / 'mmseg-onedl.jsonl',
        record_of('a/a_ade20k.py', **gone),
        record_of('a/b.py', commit='abc'),
        record_of('a/c.py', status='upstream', reason='KeyError: x'),
        record_of('a/d.py', status='FAILED', reason='linear: 1'),
        record_of('a/e.py', status='refused', reason='ValueError: y'),
        record_of('a/f.py', status='does not train', reason='no loop'),
    )


# The pages of this repository


PAGES = report.pages()


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_what_the_report_wrote_is_not_stale(path):
    assert path.read_text() == PAGES[path], (
        f'{path.name} is stale: run python -m zoo report'
    )


def test_the_page_of_the_zoo_has_all_blocks():
    text = (REPO / 'docs' / 'zoo.md').read_text()
    assert all(markers(name)[0] in text for name in report.blocks(''))


def test_a_report_needs_neither_torch_nor_mmengine():
    code = """
import sys
from zoo import __main__, report
report.Path.write_text = lambda *args: None
report.replace_block = lambda text, name, body: text + body
__main__.main(['report'])
loaded = {name.partition('.')[0] for name in sys.modules}
print(loaded & {'torch', 'numpy', 'mmengine', 'infobatch_mm', 'rich'})
"""
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    *wrote, loaded = done.stdout.splitlines()
    assert 'wrote docs/zoo.md' in wrote and loaded == 'set()'


def test_tables_by_folder_of_configs_are_written_where_asked(
    both, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, 'PAGES', {})
    report.run(tmp_path / 'new' / 'tables')
    text = (tmp_path / 'new' / 'tables' / 'mmseg-onedl.md').read_text()
    assert '| folder | configs | trained |' in text and '| a | 6 |' in text
    assert '| a/d.py | FAILED | linear: 1 |' in text


# Counts over both families


def test_a_config_passes_if_it_does_in_a_family_and_fails_in_none(both):
    assert report.counts('mmseg') == report.Counts(
        configs=5, passed=2, refused=1, could_not_run=1, failed=1
    )
    assert report.counts('mmseg', 'ade20k').passed == 1
    assert report.counts('mmpretrain') == (0, 0, 0, 0, 0)


def test_the_counts_stand_in_the_sentences(both):
    text = report.sentences('zoo.md')
    assert text.startswith('2 of the 5 configs of mmseg (1 of the 1 for')
    assert '1 failed' in text and '(zoo.md)' in text


def test_families_are_counted_side_by_side(both):
    rows = report.family_table('mmseg').splitlines()
    assert rows[0] == '|  | official | OneDL | passed in at least one |'
    assert '| configs | 4 | 6 | 6 |' in rows
    assert '| passed | 2 | 1 | 2 |' in rows
    assert '| same run | 1 | 0 |  |' in rows
    assert '| ADE20K: passed | 1 | 0 | 1 |' in rows
    assert '| FAILED | 0 | 1 | 1 |' in rows


def test_reasons_are_listed_what_runs_nowhere_first(both):
    rows = report.reasons_table('mmseg').splitlines()
    gone = 'ImportError: / is not installed'
    assert rows[2] == '| a | 1 |  | ValueError: y |'
    assert rows[3] == f'| a | 1 | {gone} | KeyError: x |'
    assert f'| a | 1 | passed | {gone} |' in rows
    assert f'| a | 1 | {gone} | passed |' in rows
    assert not any('no loop' in row for row in rows)
    assert 'no loop | 1 |' in report.untrained_table('mmseg')


def test_times_and_errors_are_those_of_the_records(both):
    official, onedl = report.times_table().splitlines()[2:]
    assert 'not recorded (4) | 1 | 1.0 h | 0.5 h | 60 min |' in official
    assert 'not recorded (5), abc (1)' in onedl or (
        'abc (1), not recorded (5)' in onedl
    )
    assert '| `linear` | 0.0001 | 1e-06 |  |' in report.errors_table()


def test_of_each_probe_is_said_how_often_it_was_not_made():
    probes = [dict(linear=0.5), dict(linear='n/a: one image'), {}]
    records = [record_of('a.py', probes=found) for found in probes]
    rows = {name: row for name, *row in tables.largest_errors(records)}
    assert rows['linear'] == ['1', '1', '0.5', '0.0001']
    assert rows['zeros'] == ['0', '0', '', '0']


# What is kept


def test_new_records_take_the_place_of_the_old_ones(kept):
    path = kept / 'mmseg-onedl.jsonl'
    write(path, record_of('r101.py'), record_of('r50.py'))
    new = record_of('r50.py', status='FAILED')
    record.keep_records(path, [new], all_of=False)
    assert record.read_records(path) == [new, record_of('r101.py')]
    record.keep_records(path, [new], all_of=True)
    assert record.read_records(path) == [new]
    assert [p.name for p in kept.iterdir()] == ['mmseg-onedl.jsonl']


def test_a_torn_line_is_left_out_and_cut_off(kept):
    path = kept / 'runs' / 'some.jsonl'
    assert record.resume_records(path) == []
    record.append_record(path, record_of('a.py'))
    with path.open('a') as file:
        file.write('{"config": "b')
    assert record.read_records(path) == [record_of('a.py')]
    assert record.resume_records(path) == [record_of('a.py')]
    record.append_record(path, record_of('c.py'))
    names = [r['config'] for r in record.read_records(path)]
    assert names == ['a.py', 'c.py']
