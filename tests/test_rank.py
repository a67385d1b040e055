"""infobatch rank: the table of samples, against what the run itself knew."""

import csv
import io
import json

import pytest
import torch
import toys
from mmengine.hooks import Hook

from infobatch_mm.commands import rank
from infobatch_mm.report import ranking
from infobatch_mm.report.runs import last_start
from infobatch_mm.report.samples import State


class Witness(Hook):
    """Note the path that each index came with."""

    def __init__(self):
        self.paths = {}

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        for sample in data_batch['data_samples']:
            self.paths[sample.infobatch_index] = sample.img_path


def config(work_dir, **settings):
    """Return a run on a nest of data sets that saves at its end."""
    cfg = toys.config(work_dir, delta=1.0, **settings)
    repeated = dict(type='RepeatDataset', times=2, dataset=toys.scenes(6))
    parts = [toys.scenes(12, split='val'), repeated]
    nest = dict(type='ConcatDataset', datasets=parts)
    data = cfg.train_dataloader.dataset
    if 'dataset' in data:
        data.dataset = nest
    else:
        cfg.train_dataloader.dataset = nest
    return cfg


def train(cfg):
    runner = toys.Runner.from_cfg(cfg)
    witness = Witness()
    runner.register_hook(witness, priority='LOWEST')
    runner.train()
    return runner, witness.paths


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run whose last checkpoint lies at the end of a pruned round."""
    work_dir = tmp_path_factory.mktemp('by_iterations')
    cfg = config(work_dir)
    toys.make_iter_based(cfg, 24)
    cfg.default_hooks.checkpoint.by_epoch = False
    runner, paths = train(cfg)
    return work_dir, toys.hook_of(runner), paths


def read(capsys, *arguments):
    """Return the rows of a CSV table, and the lines beside it."""
    rank.main(list(map(str, arguments)), prog='infobatch rank')
    out, err = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(out))), err.splitlines()


def test_the_table_is_what_the_run_knew(run, capsys):
    work_dir, hook, paths = run
    rows, notes = read(capsys, work_dir)
    name = (work_dir / 'last_checkpoint').read_text().rpartition('/')[2]
    assert notes == [f'infobatch rank: {name}, 4 rounds planned']
    assert [int(row['rank']) for row in rows] == list(range(1, 25))
    scores = [float(row['score']) for row in rows]
    assert scores == sorted(scores, reverse=True)
    plan = hook.sampler._plan
    weights = dict(
        zip(plan.indices.tolist(), plan.weights.tolist(), strict=True)
    )
    assert 0 < len(weights) < 24
    for row, score in zip(rows, scores, strict=True):
        index = int(row['index'])
        assert score == pytest.approx(hook.board.scores[index].item())
        assert int(row['times_kept']) == hook.times_kept[index]
        expected = weights.get(index, 0.0)
        assert float(row['last_weight']) == pytest.approx(expected)
        assert row['path'] == paths[index]
    # The first half is of the one part, the rest twice of the other.
    assert {row['path'] for row in rows} == {
        *(f'digits/val/{i:05d}' for i in range(12)),
        *(f'digits/train/{i:05d}' for i in range(6)),
    }


def test_the_easiest_first_as_json_lines_in_a_file(run, tmp_path, capsys):
    work_dir, _, _ = run
    rows, _ = read(capsys, work_dir)
    out = tmp_path / 'table.jsonl'
    flags = ['--order', 'easiest', '--top', '3', '--format', 'jsonl']
    rank.main([str(work_dir), *flags, '--out', str(out)], prog='rank')
    assert capsys.readouterr().out == ''
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line['rank'] for line in lines] == [1, 2, 3]
    for line, row in zip(lines, reversed(rows), strict=False):
        assert list(line) == list(row)
        for name in ('index', 'path', 'times_kept'):
            assert str(line[name]) == row[name]
        assert line['score'] == float(row['score'])


def test_between_two_rounds_the_last_weight_is_not_known(tmp_path, capsys):
    cfg = config(tmp_path, epochs=3)
    cfg.default_hooks.checkpoint.interval = 3
    train(cfg)
    rows, notes = read(capsys, tmp_path)
    assert {row['last_weight'] for row in rows} == {''}
    assert 'last_weight is not known' in notes[1]
    # A round that kept all samples had the weight 1 for each.
    lines = (tmp_path / 'infobatch.jsonl').read_text().splitlines()
    last = json.loads(lines[-1])
    lines[-1] = json.dumps(last | dict(kept=24))
    (tmp_path / 'infobatch.jsonl').write_text('\n'.join(lines) + '\n')
    rows, notes = read(capsys, tmp_path)
    assert {row['last_weight'] for row in rows} == {'1.0'}
    assert len(notes) == 1


@pytest.mark.parametrize(
    'old, new, reason',
    [
        ('DigitScenes', 'GoneScenes', 'GoneScenes'),
        ("split='val'", "split='train'", 'other samples'),
    ],
)
def test_without_its_data_there_are_indices(
    run, monkeypatch, capsys, old, new, reason
):
    work_dir, _, _ = run
    text = (last_start(work_dir) / 'vis_data/config.py').read_text()
    assert old in text
    changed = toys.Config.fromstring(text.replace(old, new), '.py')
    monkeypatch.setattr(ranking.runs, 'config', lambda folder: changed)
    rows, notes = read(capsys, work_dir)
    assert len(notes) == 2
    assert 'by their index alone' in notes[1] and reason in notes[1]
    assert {row['path'] for row in rows} == {''}
    assert sorted(int(row['index']) for row in rows) == list(range(24))


def test_a_path_that_is_not_what_was_trained_on_is_left_out(run):
    found = ranking.read(run[0])
    numbers = found.state.identities.clone()
    numbers[5] += 1
    state = found.state._replace(identities=numbers)
    found = found._replace(state=state)
    paths = [row['path'] for row in ranking.rows(found, range(24))]
    assert [i for i, path in enumerate(paths) if path is None] == [5]


def test_samples_without_a_score_come_last():
    nan = torch.nan
    state = State(torch.tensor([1.0, nan, 3.0, 1.0, nan]), None, 1)
    assert ranking.order(state) == [2, 0, 3, 1, 4]
    assert ranking.order(state, hardest_first=False) == [0, 3, 2, 1, 4]
    found = ranking.Ranking(state, None, [])
    [row] = ranking.rows(found, [1])
    assert row == dict.fromkeys(ranking.COLUMNS) | dict(rank=1, index=1)


@pytest.mark.parametrize('stock', [True, False], ids=['stock', 'no-run'])
def test_what_has_no_scores_ends_in_one_line(tmp_path, capsys, stock):
    if stock:
        cfg = config(tmp_path, pruned=False, epochs=1)
        cfg.default_hooks.checkpoint.interval = 1
        toys.train(cfg)
        capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        rank.main([str(tmp_path)], prog='infobatch rank')
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert ('stock run' if stock else 'last_checkpoint') in line
