"""The zoo: what is checked and can fail, and the pages that are made of it."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import mmengine.config.config
import pytest
import toys
from mmengine.config import Config
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS
from yapf.yapflib import yapf_api

from benchmarks import markers
from zoo import check as zoo_check
from zoo import judge, package, record, report, tables
from zoo.__main__ import main
from zoo.judge import in_process
from zoo.record import TOLERANCES, attempt

MMSEG = package.load_package('mmseg')


def use_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the zoo check the configs of a folder in place of a package's."""
    monkeypatch.undo()  # conftest's text of a config cannot be read back
    for module in (yapf_api, mmengine.config.config):
        monkeypatch.setattr(module, 'FormatCode', None, raising=False)
    zoo_check.skip_layout()
    monkeypatch.setattr(zoo_check, 'config_root', lambda package: folder)


def write_settings(folder: Path, name: str, **settings: Any) -> None:
    path = folder / f'{name}.py'
    path.parent.mkdir(exist_ok=True)
    lines = [f'{key} = {value!r}\n' for key, value in settings.items()]
    path.write_text(''.join(lines))


def check(folder: Path, *args: str) -> tuple[int, dict[str, Any]]:
    """Run the command; return its exit status and the records by config."""
    out = folder / 'out.jsonl'
    status = main(['check', *args, '--all', '--json', str(out)])
    records = [json.loads(line) for line in out.read_text().splitlines()]
    return status, {record['config']: record for record in records}


PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='PackSegInputs'),
]


@MODELS.register_module()
class LeakyHead(FCNHead):
    """Adds a loss past ``loss_by_feat``, where no weight reaches it."""

    def loss(self, inputs, batch_data_samples, train_cfg):
        losses = super().loss(inputs, batch_data_samples, train_cfg)
        return losses | dict(loss_leak=self(inputs).square().mean())


@MODELS.register_module()
class ShyHead(FCNHead):
    """Works as long as it is not weighted."""

    def loss_by_feat(self, *args, **kwargs):
        if hasattr(self, 'infobatch_ledger'):
            raise LookupError('a hook is watching')
        return super().loss_by_feat(*args, **kwargs)


@MODELS.register_module()
class BrokenHead(FCNHead):
    def loss_by_feat(self, *args, **kwargs):
        raise LookupError('broken upstream')


@MODELS.register_module()
class DeadlyHead(FCNHead):
    def loss_by_feat(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)


def write_config(root, name, head='FCNHead', **settings):
    model = toys.model(
        pruned=False,
        decode=toys.fcn_head(type=head),
        auxiliary=toys.fcn_head(in_index=1, in_channels=16),
    )
    config = dict(
        default_scope='mmseg',
        model=model,
        train_dataloader=dict(
            batch_size=4,
            num_workers=4,
            persistent_workers=True,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=dict(type='ADE20KDataset', pipeline=PIPELINE),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=80000),
        val_cfg=dict(type='ValLoop'),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)
        ),
        param_scheduler=[dict(type='PolyLR', end=80000, by_epoch=False)],
    )
    write_settings(root, name, **config | settings)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A folder of configs in place of mmseg's."""
    use_folder(tmp_path, monkeypatch)
    return tmp_path


# What is selected, and made small


def test_all_configs_of_mmseg_are_listed_those_of_ade20k_first():
    names = package.list_configs(package.config_root('mmseg'), MMSEG.first)
    ade20k = ['ade20k' in name for name in names]
    assert ade20k == sorted(ade20k, reverse=True)
    assert sum(ade20k) > 150 and len(names) > 600
    assert not any('_base_' in name for name in names)
    r50, r101 = (
        names.index(f'pspnet/pspnet_r{n}-d8_4xb4-80k_ade20k-512x512.py')
        for n in (50, 101)
    )
    assert r50 < r101


@pytest.mark.parametrize('pattern', ['ade20k', 'a/*_ade20k.py', '*'])
def test_a_pattern_is_a_part_or_a_glob(pattern):
    assert package.matches('a/fcn_ade20k.py', ['b/', pattern])
    assert not package.matches('a/fcn_ade20k.py', ['b/', 'ade'.upper()])


def test_one_config_is_chosen_for_each_combination_of_heads(zoo):
    for name in ('b', 'a', 'c'):
        write_config(zoo, name, head='LeakyHead' if name == 'c' else 'FCNHead')
    names = package.list_configs(zoo, MMSEG.first)
    heads = {n: package.describe_heads(zoo / n, MMSEG) for n in names}
    assert heads['a.py'] == '2 x FCNHead'
    assert heads['c.py'] == 'LeakyHead + FCNHead'
    assert package.one_a_head(names, heads) == ['a.py', 'c.py']


@pytest.mark.parametrize(
    'name',
    [
        'pspnet/pspnet_r101-d8_4xb4-80k_ade20k-512x512.py',
        'swin/swin-base-patch4-window12-in1k-384x384-pre_upernet_8xb2-160k_'
        'ade20k-512x512.py',
        'segformer/segformer_mit-b5_8xb2-160k_ade20k-512x512.py',
    ],
)
def test_a_small_config_has_the_heads_of_the_stock_one(name):
    stock = Config.fromfile(package.config_root('mmseg') / name)
    before = stock.to_dict()
    small, notes = MMSEG.shrink(stock)
    assert stock.to_dict() == before
    assert notes and all('of less depth' in note for note in notes)
    for head in ('decode_head', 'auxiliary_head'):
        found, expected = (
            json.dumps(cfg.model.get(head)) for cfg in (small, stock)
        )
        assert found == expected.replace('SyncBN', 'BN')
    assert 'Pretrained' not in str(small) and 'http' not in str(small)
    dataset = small.train_dataloader.dataset
    assert [t.type for t in dataset.pipeline] == [
        t.type for t in stock.train_dataloader.dataset.pipeline
    ]
    assert len(dataset.metainfo.classes) == 150


def test_enabling_too_much_is_noticed(zoo, monkeypatch):
    write_config(zoo, 'a')
    stock = Config.fromfile(zoo / 'a.py')
    judge.check_enabled(stock, MMSEG.weighted)
    enable = judge.infobatch_mm.enable

    def enable_more(cfg):
        cfg = enable(cfg)
        cfg.val_cfg = None
        return cfg

    monkeypatch.setattr(judge.infobatch_mm, 'enable', enable_more)
    with pytest.raises(AssertionError, match='more than it should'):
        judge.check_enabled(stock, MMSEG.weighted)


# The family


FAMILIES = dict(
    onedl=('onedl-mmengine', 'openmmlab'), openmmlab=('mmengine', 'onedl')
)


@pytest.mark.parametrize('installed', FAMILIES)
def test_an_environment_of_the_other_family_is_refused(monkeypatch, installed):
    name, other = FAMILIES[installed]
    monkeypatch.setattr(record, 'versions', lambda: {name: '1'})
    record.check_family(None, 'mmseg')
    record.check_family(installed, 'mmseg')
    message = rf'--family {other} was .* family {installed}\. .*mm\[{other}\]'
    with pytest.raises(ValueError, match=message):
        record.check_family(other, 'mmseg')


def test_the_family_is_asked_for_on_the_command_line(zoo):
    installed = record.installed_family()
    (other,) = set(record.FAMILIES) - {installed}
    assert main(['check', '--family', installed]) == 0
    with pytest.raises(ValueError, match=f'--family {other}'):
        main(['check', '--family', other])


def test_a_package_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setattr(package, 'is_importable', lambda name: False)
    message = r'mmpretrain was .* install "infobatch_mm\[cls\]" or '
    with pytest.raises(ValueError, match=message):
        package.load_package('mmpretrain')


# What passes and what fails


def test_a_reason_names_no_folder_of_the_machine():
    def fail():
        raise LookupError(f'in {sysconfig.get_path("purelib")}/mmseg/a.py')

    found = attempt(fail)
    assert found['reason'] == 'in mmseg/a.py'


def burn():
    while True:
        pass


@pytest.mark.parametrize(
    'function, timeout', [(burn, 0.5), (lambda: time.sleep(60), 0.01)]
)
def test_what_takes_too_long_is_stopped(function, timeout):
    found = in_process(function, timeout)
    expected = dict(error='Timeout', reason=f'longer than {timeout} s')
    assert found == expected


def test_a_sound_head_passes_and_configs_that_are_the_same_run_once(zoo):
    write_config(zoo, 'fcn/a_ade20k')
    write_config(zoo, 'fcn/b', val_cfg=dict(type='ValLoop', fp16=True))
    status, records = check(zoo)
    assert status == 0
    probed, same = records['fcn/a_ade20k.py'], records['fcn/b.py']
    assert probed['status'] == same['status'] == 'passed'
    assert same['same_as'] == 'fcn/a_ade20k.py' and 'same_as' not in probed
    assert set(probed['probes']) == set(TOLERANCES) - {'zeros_layers'}
    assert probed['rounds'][0] == 8 and min(probed['rounds']) < 8
    assert 0 < probed['probe_seconds'] <= probed['cpu_seconds'] < 60

    # Again: nothing is run, though the last line was torn.
    out = zoo / 'out.jsonl'
    first, second = out.read_text().splitlines()
    out.write_text(f'{first}\n{second[:40]}')
    status, again = check(zoo)
    assert status == 0 and again == records
    assert again['fcn/a_ade20k.py']['seconds'] == probed['seconds']


HEADS = dict(
    LeakyHead=('FAILED', 'sample weights at zero these parameters still'),
    ShyHead=('FAILED', 'LookupError: a hook is watching'),
    BrokenHead=('upstream', 'LookupError: broken upstream'),
    DeadlyHead=('upstream', 'Killed: ended by signal 9'),
)


def test_failures_are_ours_unless_the_stock_run_fails_alike(zoo):
    for head in HEADS:
        write_config(zoo, head, head)
    imports = dict(imports=['no_such_package'], allow_failed_imports=False)
    write_config(zoo, 'Missing', custom_imports=imports)
    report = zoo / 'report.md'
    status, records = check(zoo, '--jobs', '2', '--markdown', str(report))
    assert status == 1
    for head, (verdict, reason) in HEADS.items():
        found = records[f'{head}.py']
        assert found['status'] == verdict and reason in found['reason']
    missing = records['Missing.py']
    assert missing['status'] == 'missing'
    assert missing['reason'] == 'ImportError: no_such_package is not installed'

    text = report.read_text()
    assert '| all | 5 | 0 | 0 | 0 | 3 | 2 |' in text
    assert '| LeakyHead + FCNHead | 1 | 0 | 0 | 0 | 0 | 1 |' in text
    assert '| BrokenHead.py | upstream | LookupError: broken up' in text


def test_a_run_that_is_kept_goes_on_where_it_was_stopped(zoo, monkeypatch):
    kept, scratch = zoo / 'kept', zoo / 'scratch'
    for folder in (kept, scratch):
        folder.mkdir()
    monkeypatch.setattr(record, 'RECORDS', kept)
    monkeypatch.setattr(zoo_check, 'SCRATCH', scratch)
    name = f'mmseg-{record.installed_family()}.jsonl'
    imports = dict(imports=['no_such_package'], allow_failed_imports=False)
    for config in ('a', 'b'):
        write_config(zoo, config, custom_imports=imports)
    done = dict(config='a.py', status='passed', reason='', commit='old')
    (scratch / name).write_text(json.dumps(done) + '\n')
    (kept / name).write_text(json.dumps(dict(done, config='gone.py')) + '\n')

    assert main(['check', '--all', '--keep', 'b.py']) == 0
    kept_names = [r['config'] for r in record.read_records(kept / name)]
    assert kept_names == ['a.py', 'b.py', 'gone.py']

    (scratch / name).write_text(json.dumps(done) + '\n')
    assert main(['check', '--all', '--keep']) == 0
    first, second = record.read_records(kept / name)
    assert first == done and second['status'] == 'missing'
    assert second['commit'] == record.commit()
    assert not (scratch / name).exists()
    with pytest.raises(SystemExit):
        main(['check', '--keep', '--json', 'out.jsonl'])


# zoo report: the kept records, and the pages made of them

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
