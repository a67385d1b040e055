"""infobatch estimate and rank: what they say, against plans and runs."""

import collections
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import light
import numpy as np
import pytest
import torch
import toys
from mmcv.transforms import LoadAnnotations, RandomFlip
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, MODELS
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from infobatch_mm import InfoBatchHook, estimate
from infobatch_mm.commands import estimate as command
from infobatch_mm.commands import pilot, rank
from infobatch_mm.compare.parts import UnscaledPolicy
from infobatch_mm.compare.setup import samples_of_epoch
from infobatch_mm.datasets.indexed import IndexedDataset
from infobatch_mm.estimate import Budget, Schedule
from infobatch_mm.host import checkpoint_files
from infobatch_mm.pacing import Dealing
from infobatch_mm.pruning.prune_ratio import PruneRatio
from infobatch_mm.pruning.registry import build_policy
from infobatch_mm.report import samples
from infobatch_mm.report.runs import last_start
from infobatch_mm.report.samples import State

POLICIES = [
    dict(type='InfoBatchPolicy'),
    dict(type='InfoBatchPolicy', prune_ratio=0.8),
    dict(type='QuantilePolicy'),
    dict(
        type='RandomPolicy',
        prune_ratio=dict(type='linear', start=0.0, end=0.9),
    ),
    dict(type='NoPruningPolicy'),
]


def planned(policy, scores, batch, rounds):
    """Return the counts of plans at the starts of equally long rounds."""
    return [
        len(scores)
        if number == 0
        else len(
            policy.plan(
                scores.float(),
                generator=torch.Generator().manual_seed(number),
                multiple_of=batch,
                progress=number / rounds,
            )
        )
        for number in range(rounds)
    ]


@pytest.mark.parametrize('config', POLICIES)
@pytest.mark.parametrize('share', [0.3, 0.5, 0.7])
@pytest.mark.parametrize('total, batch', [(103, 4), (96, 16)])
def test_it_counts_as_the_policy_plans(config, share, total, batch):
    policy = build_policy(config, delta=0.875)
    scores = estimate.scores_below_mean(share, total)
    passes = -(-total // batch)
    budget = Budget(total, batch, 12 * passes, drops_rest=False)
    kept = planned(policy, scores, batch, 12)
    assert estimate.schedule(policy, scores, budget) == Schedule(
        rounds=12,
        pruned=sum(k < total for k in kept),
        iters=sum(-(-k // batch) for k in kept),
        samples=sum(kept),
        fewest=min(kept),
    )


@pytest.mark.parametrize('config', POLICIES)
@pytest.mark.parametrize('world_size, smallest', [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize('drops', [True, False])
def test_smaller_batches_are_those_that_are_dealt(
    config, world_size, smallest, drops
):
    total, batch, rounds = 103, 8, 12
    passes = total // batch if drops else -(-total // batch)
    dealing = Dealing(passes, batch, world_size, smallest)
    policy = build_policy(config, delta=0.875)
    scores = estimate.scores_below_mean(0.6, total)
    # The budget ends in the middle of a round, whose larger batches it has.
    budget = Budget(total, batch, (rounds - 5) * passes + 5, drops)
    run = estimate.schedule(policy, scores, budget, dealing=dealing)
    sizes, kept = [], [total]
    for number in range(rounds - 4):
        plan = policy.plan(
            scores.float(),
            generator=torch.Generator().manual_seed(number),
            progress=number * passes / budget.iters,
            **dealing.limits,
        )
        if number == 0 or len(plan) == total:
            each = [batch] * (total // batch) + [total % batch] * (not drops)
        else:
            order = dealing.paced(plan, total).indices
            parts = np.array_split(order[::world_size], passes)
            each = [world_size * len(part) for part in parts]
            kept.append(len(plan))
        sizes += each
    assert run.iters == budget.iters
    assert run.samples == sum(sizes[: budget.iters])
    assert (run.pruned, run.fewest) == (len(kept) - 1, min(kept))


@pytest.mark.parametrize('share', [0.01, 0.4, 0.5, 0.93])
def test_a_share_of_the_scores_is_below_their_mean(share):
    scores = estimate.scores_below_mean(share, 1000)
    assert len(scores.unique()) == 1000
    assert (scores < scores.mean()).sum() == round(1000 * share)
    assert estimate.share_below_mean(scores) == pytest.approx(share)


def test_a_policy_that_plans_in_its_own_way_is_refused():
    policy = UnscaledPolicy(dict(type='InfoBatchPolicy'), delta=0.875)
    scores = estimate.scores_below_mean(0.5, 26)
    with pytest.raises(ValueError, match="'UnscaledPolicy' plans in its own"):
        estimate.schedule(policy, scores, Budget(26, 4, 25, True))


def test_the_full_run_is_that_of_no_pruning():
    policy = build_policy(dict(type='NoPruningPolicy'), delta=0.875)
    for drops in (True, False):
        budget = Budget(26, 4, 25, drops)
        scores = estimate.scores_below_mean(0.5, 26)
        run = estimate.schedule(policy, scores, budget)
        assert run == estimate.full_schedule(budget)
    # Six iterations a pass of 26 samples, if two are left out.
    assert estimate.full_schedule(Budget(26, 4, 25, True)).samples == 100


def test_rounds_of_warm_up_use_all_data():
    policy = build_policy(dict(type='RandomPolicy', prune_ratio=0.5), 1.0)
    scores = estimate.scores_below_mean(0.5, 24)
    budget = Budget(24, 4, 48, drops_rest=True)
    run = estimate.schedule(policy, scores, budget, warmup_rounds=3)
    assert run == Schedule(8, 5, 3 * 6 + 5 * 3, 3 * 24 + 5 * 12, 12)


@pytest.mark.parametrize('iters', [None, 45], ids=['epochs', 'iterations'])
@pytest.mark.parametrize(
    'policy',
    [
        dict(type='RandomPolicy', prune_ratio=0.6),
        dict(type='QuantilePolicy'),
        dict(type='InfoBatchPolicy', keep=0.6),
    ],
    ids=['random', 'quantile', 'keep'],
)
def test_a_run_does_what_was_estimated(tmp_path, iters, policy):
    # Where a pass leaves samples out, the second round knows fewer scores.
    total = 24 if iters else 26
    cfg = toys.config(
        tmp_path, samples=total, epochs=8, policy=policy, pacing='fewer_steps'
    )
    if iters:
        toys.make_iter_based(cfg, iters)
    budget = command.budget_of(cfg, 1, total)
    made = build_policy(policy, 0.875)
    scores = estimate.scores_below_mean(0.5, total)
    run = estimate.schedule(made, scores, budget)
    toys.train(cfg)
    found = json.loads((tmp_path / 'infobatch_summary.json').read_text())
    assert found['iters_run'] == run.iters < budget.iters
    assert found['samples_seen'] == run.samples
    assert found['rounds'] == run.rounds
    assert found['samples_budget'] == estimate.full_schedule(budget).samples


@pytest.mark.parametrize('iters', [None, 45], ids=['epochs', 'iterations'])
def test_so_does_one_in_smaller_batches(tmp_path, iters):
    total = 24 if iters else 26
    loop = dict(type='EpochBasedTrainLoop', max_epochs=8)
    if iters:
        loop = dict(type='InfoBatchIterBasedTrainLoop', max_iters=iters)
    policy = dict(type='RandomPolicy', prune_ratio=0.6)
    cfg = light.config(tmp_path, loop, samples=total, policy=policy)
    cfg.custom_hooks[0].pacing = 'smaller_batches'
    hook = InfoBatchHook(policy, pacing='smaller_batches')
    budget = command.budget_of(cfg, 1, total)
    dealing = command.dealing_of(hook, budget, 1)
    scores = estimate.scores_below_mean(0.5, total)
    made = build_policy(policy, 0.875)
    run = estimate.schedule(made, scores, budget, dealing=dealing)
    toys.train(cfg)
    found = json.loads((tmp_path / 'infobatch_summary.json').read_text())
    assert found['iters_run'] == run.iters == budget.iters
    assert found['samples_seen'] == run.samples < found['samples_budget']
    assert found['rounds'] == run.rounds


# The command


@pytest.fixture
def stock(tmp_path):
    """The file of a stock config of 24 samples and 8 epochs."""
    cfg = toys.config(tmp_path / 'unused', pruned=False, epochs=8)
    toys.add_validation(cfg, interval=2)
    cfg.custom_imports = dict(imports=['infobatch_mm.digit_scenes'])
    cfg.dump(tmp_path / 'config.py')
    return str(tmp_path / 'config.py')


def say(capsys, *arguments):
    """Return what the command says, and the cells of its table."""
    command.main(list(arguments), prog='infobatch estimate')
    text = capsys.readouterr().out
    rows = re.findall(r'^(all data|\w+Policy) (.*)$', text, re.MULTILINE)
    assert max(map(len, text.splitlines()[1:])) < 80
    return text, [[policy, *rest.split()] for policy, rest in rows]


def test_policies_stand_beside_each_other(stock, capsys):
    text, rows = say(capsys, stock)
    batches, text = text.split("pacing='fewer_steps'")
    assert "pacing='smaller_batches'" in batches
    # Each table has the same lines.
    assert [row[:2] for row in rows[:6]] == [row[:2] for row in rows[6:]]
    assert [row[4] for row in rows[:6]] == ['48'] * 6
    rows = rows[6:]
    assert rows[0] == ['all data', '-', '8', '0', '48', '192', '0.0%']
    assert [row[0] for row in rows[1:]] == [
        *['InfoBatchPolicy'] * 3,
        'QuantilePolicy',
        'RandomPolicy',
    ]
    assert [row[1] for row in rows[1:]] == ['50%', '70%', '90%', 'any', 'any']
    # Rounds 1 to 6 of 8 keep 12 of 24 samples, in three steps instead of six.
    assert rows[5][2:] == ['8', '6', '30', '120', '37.5%']
    assert 'Validation: every 2 epochs' in text
    assert 'Checkpoints: every 1,000 epochs' in text


def test_the_options_are_those_of_train(stock, capsys):
    flags = ['policy.type=RandomPolicy', 'policy.prune_ratio=0.5', 'delta=1']
    _, rows = say(capsys, stock, '--infobatch-options', *flags)
    for row, iters in zip(rows[1::2], ['48', '27'], strict=True):
        assert row[2:] == ['8', '7', iters, '108', f'{1 - 108 / 192:.1%}']


def test_samples_and_processes_can_be_given(stock, capsys):
    flags = ['--samples', '800', '--gpus', '2']
    text, rows = say(capsys, stock, *flags)
    assert '800 samples, 8 a step' in text
    assert rows[0][4:6] == ['800', '6,400']


@pytest.mark.parametrize(
    'kind, expected',
    [
        (dict(type='RepeatDataset', times=3), 2400),
        (dict(type='ConcatDataset'), 800),
        (dict(type='ClassBalancedDataset', oversample_thr=0.1), None),
        (dict(type='KFoldDataset', num_splits=4), None),
    ],
)
def test_given_samples_are_those_within_a_wrapper(kind, expected):
    inner = dict(type='LightData', size=9)
    if kind['type'] == 'ConcatDataset':  # of those of all its parts
        inner = [inner, inner]
    wrapped = dict(type='IndexedDataset', dataset=dict(kind, dataset=inner))
    if expected:
        assert command.repeated(wrapped, 800) == expected
        return
    with pytest.raises(ValueError, match=f'800 does not .* {kind["type"]}'):
        command.repeated(wrapped, 800)


def test_samples_that_are_repeated(stock, tmp_path, capsys):
    cfg = Config.fromfile(stock)
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=5, dataset=inner
    )
    cfg.dump(path := tmp_path / 'repeated.py')
    given = say(capsys, str(path), '--samples', '24')
    assert given == say(capsys, str(path))
    assert '120 samples' in given[0]


def test_a_pilot_trains_some_rounds(stock, tmp_path, capsys):
    before = sorted(tmp_path.rglob('*'))
    text, rows = say(capsys, stock, '--pilot', '2')
    assert 'Pilot: 2 rounds' in text
    kept = re.findall(r'round \d: kept (\S+)%', text)
    assert kept[0] == '100.0' and 50 <= float(kept[1]) < 100
    # The share below the mean is that of the pilot, for all policies.
    [share] = {row[1] for row in rows if row[0] != 'all data'}
    assert len(rows) == 8 and 0 < int(share[:-1]) < 100
    counts = re.findall(r'^ .* to \S+ +(\d+)', text, re.MULTILINE)
    assert sum(map(int, counts)) == 24
    assert sorted(tmp_path.rglob('*')) == before


def test_smaller_batches(stock, capsys):
    flags = ['--infobatch-options', 'pacing=smaller_batches']
    text, rows = say(capsys, stock, *flags, '--pilot', '2')
    assert [row[4] for row in rows] == ['48'] * 4
    # Half of 24 samples in six steps, as RandomPolicy keeps them.
    assert rows[3][5:] == ['120', '37.5%']
    assert 'at least 12 of 24 samples (50%)' in text
    assert 'RandomPolicy, ' in text and ': 2 of 4\n' in text
    # The second round of the pilot took less than a batch of four a step.
    [first, second] = re.findall(r'kept (\S+)%, \S+ s an iteration', text)
    assert first == '100.0' and 50 <= float(second) < 100


def test_a_pacing_that_could_not_prune_says_so(stock, capsys):
    flags = ['--cfg-options', 'train_dataloader.batch_size=2']
    text, rows = say(capsys, stock, *flags)
    assert len(rows) == 6
    reason = text.split("pacing='smaller_batches'\n")[1]
    assert reason.startswith('train_dataloader.batch_size is 2 and')


def test_a_pilot_by_iterations(tmp_path, capsys):
    cfg = toys.config(tmp_path / 'unused', pruned=False)
    toys.make_iter_based(cfg, 60)
    cfg.custom_imports = dict(imports=['infobatch_mm.digit_scenes'])
    cfg.dump(tmp_path / 'config.py')
    text, _ = say(capsys, str(tmp_path / 'config.py'), '--pilot', '3')
    assert 'Pilot: 3 rounds' in text


def test_a_pilot_without_a_finite_score_is_named(tmp_path):
    loop = dict(type='EpochBasedTrainLoop', max_epochs=9)
    cfg = light.config(tmp_path, loop)
    cfg.train_dataloader.dataset.dataset.nan_at = list(range(26))
    with pytest.raises(ValueError, match='the 2 rounds of the pilot left no'):
        pilot.fly(cfg, 2)


@pytest.mark.parametrize('kept', [24, 25])
def test_a_pilot_is_as_fast_as_its_full_batches(kept):
    """Of a loop by iterations a full round may leave a remainder out."""
    rounds = [
        dict(iter=0, seconds=60.0, total=25, kept=kept, drawn=25),
        dict(iter=6, seconds=6.0, total=25, kept=12, drawn=12),
    ]
    found = pilot.Pilot(torch.rand(25), rounds, [10.0, 1.0], 12)
    assert found.seconds == 10.0


@MODELS.register_module()
class SlowToBegin(light.LightModel):
    def forward(self, *args, **kwargs):
        if not hasattr(self, 'begun'):
            self.begun = time.sleep(1.5)
        return super().forward(*args, **kwargs)


def test_a_start_is_not_taken_for_the_pace(tmp_path):
    """Of six iterations the first takes as long as a start."""
    loop = dict(type='InfoBatchIterBasedTrainLoop', max_iters=40)
    cfg = light.config(tmp_path, loop)
    cfg.model.type = 'SlowToBegin'
    found = pilot.fly(cfg, 2)
    assert len(found.paces) == 2 and found.seconds < 0.1


@pytest.mark.parametrize(
    'flags, words',
    [
        (
            [
                '--infobatch-options',
                'pacing=smaller_batches',
                'smallest_batch=4',
            ],
            'batch_size is 4 and smallest_batch=4, .* make no batch smaller',
        ),
        (['--cfg-options', 'train_dataloader.dataset.type=Gone'], '--samples'),
        (['--samples', '3'], 'fewer than one.*batch of 4'),
        (['--infobatch-options', 'delta=7'], 'delta must be in'),
        (
            ['--cfg-options', 'train_dataloader.batch_size=0'],
            'train_dataloader.batch_size is 0; set it to 1',
        ),
        (
            ['--cfg-options', 'train_cfg.max_iters=0'],
            'train_cfg.max_iters is 0; set it to 1',
        ),
        (
            ['--cfg-options', 'train_cfg.max_epochs=None'],
            'train_cfg sets neither max_epochs nor max_iters',
        ),
    ],
)
def test_what_is_wrong_ends_in_one_line(stock, capsys, flags, words):
    cut = ['--cfg-options', 'train_dataloader.drop_last=True']
    with pytest.raises(SystemExit) as stopped:
        say(capsys, stock, *(cut if 'samples' in flags[0] else []), *flags)
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(f'^infobatch estimate: error: .*{words}', line)


# infobatch rank


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


def test_a_reader_that_has_enough_may_close_the_table(run, monkeypatch):
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, 'w') as output:
        monkeypatch.setattr(sys, 'stdout', output)
        rank.main([str(run[0])], prog='infobatch rank')


def test_the_easiest_first_as_json_lines_in_a_file(run, tmp_path, capsys):
    work_dir, _, _ = run
    rows, _ = read(capsys, work_dir)
    out = tmp_path / 'table.jsonl'
    flags = ['--order', 'easiest', '--top', '3', '--format', 'jsonl']
    rank.main([str(work_dir), *flags, '--out', str(out)], prog='rank')
    assert capsys.readouterr().out == ''
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line['rank'] for line in lines] == [1, 2, 3]
    by_index = {row['index']: row for row in rows}
    for line, expected in zip(lines, reversed(rows), strict=False):
        row = by_index[str(line['index'])]
        assert list(line) == list(row)
        for name in ('path', 'times_kept'):
            assert str(line[name]) == row[name]
        # Of equal scores either may be the first.
        assert line['score'] == float(row['score'])
        assert line['score'] == float(expected['score'])


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
    monkeypatch.setattr(samples.runs, 'config', lambda folder: changed)
    rows, notes = read(capsys, work_dir)
    assert len(notes) == 2
    assert 'by their index alone' in notes[1] and reason in notes[1]
    assert {row['path'] for row in rows} == {''}
    assert sorted(int(row['index']) for row in rows) == list(range(24))


@DATASETS.register_module()
class LateScenes(toys.DigitScenes):
    """Scenes that are listed when they are first asked for."""

    def __init__(self, *, lazy_init, **settings):
        self.is_late = lazy_init
        super().__init__(**settings)

    def full_init(self):
        if not self.is_late:
            super().full_init()
        self.is_late = False


def test_a_data_set_that_lists_its_samples_late(tmp_path, capsys):
    cfg = toys.config(tmp_path, samples=8, epochs=1)
    cfg.train_dataloader.dataset.dataset.update(
        type='LateScenes', lazy_init=True
    )
    cfg.default_hooks.checkpoint.interval = 1
    toys.train(cfg)
    rows, notes = read(capsys, tmp_path)
    assert len(notes) == 1
    assert all(row['path'] for row in rows)


def test_a_table_holds_nothing_that_others_print(run, tmp_path):
    """mmseg prints when it is imported, and a data set when it is built."""
    printing = tmp_path / 'printing.py'
    printing.write_text('print("loaded 24 samples")\n')
    folder = shutil.copytree(run[0], tmp_path / 'run')
    path = last_start(folder) / 'vis_data/config.py'
    imports = 'custom_imports = dict(imports=["printing"])\n'
    path.write_text(path.read_text() + imports)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, '-m', 'infobatch_mm', 'rank', str(folder)],
        env=os.environ | dict(PYTHONPATH=paths),
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'loaded 24 samples' in done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row['rank'] for row in rows] == [str(i + 1) for i in range(24)]


def test_a_data_set_that_fails_for_a_sample_leaves_its_path_out(
    run, monkeypatch, capsys
):
    look_up = toys.DigitScenes.get_data_info

    def get_data_info(self, idx):
        if self.split == 'val' and idx == 3:
            raise OSError('this one is gone')
        return look_up(self, idx)

    monkeypatch.setattr(toys.DigitScenes, 'get_data_info', get_data_info)
    rows, _ = read(capsys, run[0])
    assert len(rows) == 24
    assert [row['index'] for row in rows if not row['path']] == ['3']


class Window(collections.deque):
    """What a hook may keep in the message hub."""


def test_a_checkpoint_may_hold_objects_of_any_kind(tmp_path):
    kinds = [collections.deque([1.0, 2.0], maxlen=5), Window([1.0])]
    kinds += [collections.defaultdict(list, a=[1]), collections.Counter('ab')]
    kinds += [{1, 2}, Path('a'), PruneRatio(0.0, 0.5, delta=1.0), np.ones(3)]
    kinds += [collections.OrderedDict(a=1), torch.nn.Linear(2, 2), Window]
    state = dict(scores=torch.rand(5), text='words', number=7)
    torch.save(dict(kinds=kinds, infobatch=state), tmp_path / 'last.pth')
    found = checkpoint_files.read_plain(tmp_path / 'last.pth')['infobatch']
    assert torch.equal(found.pop('scores'), state.pop('scores'))
    assert found == state


class Trap:
    def __reduce__(self):
        return os.mkdir, ('trapped',)


def test_what_a_checkpoint_names_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(trap=Trap(), number=7), 'last.pth')
    assert checkpoint_files.read_plain(Path('last.pth'))['number'] == 7
    assert not Path('trapped').exists()


def test_a_path_that_is_not_what_was_trained_on_is_left_out(run):
    found = samples.read(run[0])
    numbers = found.state.identities.clone()
    numbers[5] += 1
    state = found.state._replace(identities=numbers)
    found = found._replace(state=state)
    paths = [row['path'] for row in samples.rows(found, range(24))]
    assert [i for i, path in enumerate(paths) if path is None] == [5]


def test_samples_without_a_score_come_last():
    nan = torch.nan
    state = State(torch.tensor([1.0, nan, 3.0, 1.0, nan]), None, 1)
    assert samples.order(state) == [2, 0, 3, 1, 4]
    assert samples.order(state, hardest_first=False) == [0, 3, 2, 1, 4]
    found = samples.Ranking(state, None, [])
    [row] = samples.rows(found, [1])
    assert row == dict.fromkeys(samples.COLUMNS) | dict(rank=1, index=1)


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


@pytest.mark.parametrize('total, iters', [(31, 2), (1023, 64), (15, 1)])
def test_with_drop_last_each_rank_drops_its_own(total, iters):
    """mmengine's samplers fill the ranks up to equal numbers first."""
    dataset = TensorDataset(torch.arange(total))
    sampler = DistributedSampler(dataset, num_replicas=2, rank=1)
    loader = DataLoader(dataset, 8, sampler=sampler, drop_last=True)
    budget = Budget(total, 16, 0, drops_rest=True, ranks=2)
    assert budget.iters_of(total) == len(loader) == iters
    settings = dict(batch_size=8, drop_last=True)
    assert samples_of_epoch(settings, total, 2) == 16 * iters


def test_scores_of_a_pilot_stand_for_samples_without_one():
    found = pilot.Pilot(torch.rand(95)[torch.randperm(95)], [], [], 0)
    ((share, scores),) = command.cases(100, found)
    assert len(scores) == 100 and set(scores.tolist()) == set(
        found.scores.tolist()
    )
    below = estimate.share_below_mean(found.scores)
    assert share == f'{below:.0%}'
    assert estimate.share_below_mean(scores) == pytest.approx(below, abs=0.02)


def test_a_data_set_is_listed_whose_types_are_classes(tmp_path):
    """As in new-style configs, also without a default_scope."""
    cfg = light.config(tmp_path, dict(type='InfoBatchEpochBasedTrainLoop'))
    cfg.train_dataloader.dataset.type = IndexedDataset
    cfg.train_dataloader.dataset.dataset.type = light.LightData
    cfg.default_scope = None
    assert len(samples.build_dataset(cfg)) == 26
    steps = [dict(type=kind) for kind in (LoadAnnotations, RandomFlip)]
    kept = samples.without_augmentation(dict(pipeline=steps))
    assert kept == dict(pipeline=steps[:1])
