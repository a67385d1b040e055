"""The commands: how they start, how they end, and what they read."""

import ast
import contextlib
import copy
import importlib.util
import io
import json
import os
import re
import socket
import subprocess
import sys
import traceback
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import light
import pytest
import torch
import toys
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, MODELS
from processes import Child

from infobatch_mm import commands, scores
from infobatch_mm.commands import (
    ending,
    prepare,
    rank,
    report,
    running,
    train,
)
from infobatch_mm.commands import test as test_command
from infobatch_mm.host.packages import require
from infobatch_mm.rescale import scale_gradient
from infobatch_mm.scores import ScoreBoard

REPO = Path(__file__).parents[1]


def load_tool(name: str) -> ModuleType:
    """Import tools/NAME.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location(
        f'infobatch_mm_tools_{name}', REPO / 'tools' / f'{name}.py'
    )
    module = importlib.util.module_from_spec(spec)
    # A script finds its neighbours in the folder that it is in.
    with patch.object(sys, 'path', [str(REPO / 'tools'), *sys.path]):
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config that names no work dir; LOCAL_RANK is put back at the end."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    path = tmp_path / 'small_config.py'
    path.write_text(
        "optim_wrapper = dict(type='OptimWrapper')\n"
        "model = dict(type='Inner', size=1)\n"
        'test_dataloader = dict(dataset=dict(pipeline=[1]))\n'
        'test_evaluator = dict(iou_metrics=["mIoU"])\n'
    )
    return path


def load_train(config: Path, *flags: str) -> Config:
    return train.load_config(train.parse_args([str(config), *flags]))


def load_test(config: Path, *flags: str) -> Config:
    arguments = [str(config), 'latest.pth', *flags]
    return test_command.load_config(test_command.parse_args(arguments))


def test_train_defaults(config):
    cfg = load_train(config)
    assert cfg.work_dir == './work_dirs/small_config'
    assert (cfg.launcher, cfg.resume) == ('none', False)
    assert cfg.optim_wrapper == dict(type='OptimWrapper')


def test_train_flags_reach_the_config(config):
    cfg = load_train(
        config,
        '--work-dir',
        'out',
        '--resume',
        '--launcher',
        'slurm',
        '--cfg-options',
        'model.size=7',
        'model.pair="[(1,2),(3,4)]"',
    )
    assert (cfg.work_dir, cfg.resume, cfg.launcher) == ('out', True, 'slurm')
    assert cfg.model == dict(type='Inner', size=7, pair=[(1, 2), (3, 4)])


def test_work_dir_of_the_config_beats_its_name(config):
    assert (
        load_train(config, '--cfg-options', 'work_dir=mine').work_dir == 'mine'
    )
    assert (
        load_train(
            config, '--work-dir', 'cli', '--cfg-options', 'work_dir=mine'
        ).work_dir
        == 'cli'
    )


@pytest.mark.parametrize('tool', [train, test_command])
@pytest.mark.parametrize('flag', ['--local_rank', '--local-rank'])
def test_local_rank_is_set_unless_the_launcher_did(
    tool, flag, config, monkeypatch
):
    arguments = [str(config)] + ['latest.pth'] * (tool is test_command)
    monkeypatch.delenv('LOCAL_RANK')
    tool.parse_args([*arguments, f'{flag}=3'])
    assert os.environ['LOCAL_RANK'] == '3'
    tool.parse_args([*arguments, f'{flag}=5'])
    assert os.environ['LOCAL_RANK'] == '3'


def test_amp_switches_the_wrapper(config, monkeypatch):
    monkeypatch.setattr(train, 'get_device', lambda: 'cuda')
    cfg = load_train(config, '--amp')
    assert cfg.optim_wrapper == dict(
        type='AmpOptimWrapper', loss_scale='dynamic'
    )


def test_amp_keeps_a_wrapper_that_is_mixed_already(config, monkeypatch):
    monkeypatch.setattr(train, 'get_device', lambda: 'cuda')
    cfg = load_train(
        config,
        '--amp',
        '--cfg-options',
        'optim_wrapper.type=AmpOptimWrapper',
        'optim_wrapper.dtype=bfloat16',
    )
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', dtype='bfloat16')


@pytest.mark.parametrize(
    ('device', 'kind', 'message'),
    [
        ('cuda', 'ApexOptimWrapper', "optim_wrapper.type='ApexOptimWrapper'"),
        ('cpu', 'OptimWrapper', 'only a CPU was found'),
    ],
)
def test_amp_refuses_in_one_line(
    device, kind, message, config, monkeypatch, capsys
):
    monkeypatch.setattr(train, 'get_device', lambda: device)
    arguments = [
        str(config),
        '--amp',
        '--cfg-options',
        f'optim_wrapper.type={kind}',
    ]
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('policy=QuantilePolicy', "policy='QuantilePolicy' is not the config"),
        ('policy.prune_ration=0.7', 'its settings: prune_ratio'),
        ('policy.prune_ratio=70%', "prune_ratio must be .* '70%'"),
        ('delta=2', 'delta must be in .* got 2'),
        ('rounds=3', 'rounds=3 is not an option of InfoBatch; known: policy'),
        ('delta', "--infobatch-options: 'delta' is not KEY=VALUE"),
        (
            "policy=dict(type='InfoBatchPolicy',prune_ratio=0.5)",
            r'one by one, as in policy\.type=NAME policy\.SETTING=VALUE',
        ),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    option, message, config, capsys
):
    with pytest.raises(SystemExit) as stopped:
        train.main([str(config), '--infobatch-options', option])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_a_checkpoint_to_resume_from_is_named(config):
    cfg = load_train(config, '--resume', 'some.pth')
    assert (cfg.resume, cfg.load_from) == (True, 'some.pth')


def test_a_checkpoint_that_is_not_there_is_named(config, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main([str(config), '--resume', 'some.pth'])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('--resume some.pth: there is no such file')
    with pytest.raises(SystemExit):
        train.main([str(config), '--resume', str(config.parent)])
    assert 'is a folder; name a file in it' in capsys.readouterr().err


def test_a_moved_work_dir_goes_on_from_its_own_checkpoint(config, tmp_path):
    (tmp_path / 'old').mkdir()
    (tmp_path / 'new').mkdir()
    new, old = (tmp_path / name / 'iter_3.pth' for name in ('new', 'old'))
    for path in new, old:
        path.write_text('')
    flags = '--resume', '--work-dir', str(new.parent)
    assert load_train(config, *flags).get('load_from') is None
    (new.parent / 'last_checkpoint').write_text(str(old))
    assert load_train(config, *flags).load_from == str(new)
    # Where it was left, mmengine's own way is kept.
    (new.parent / 'last_checkpoint').write_text(str(new))
    assert load_train(config, *flags).get('load_from') is None
    (new.parent / 'last_checkpoint').write_text(str(tmp_path / 'gone.pth'))
    with pytest.raises(FileNotFoundError, match=r'gone\.pth as its last'):
        load_train(config, *flags)


def test_a_config_in_the_place_of_a_checkpoint_is_named(config, capsys):
    with pytest.raises(SystemExit):
        train.main(['--resume', str(config)])
    assert 'put it before --resume' in capsys.readouterr().err


def test_resume_leaves_load_from_as_mmseg_does(config):
    cfg = load_train(config, '--resume', '--cfg-options', 'load_from=a.pth')
    assert (cfg.resume, cfg.load_from) == (True, 'a.pth')
    # In a file it names the weights to begin with.
    config.write_text(config.read_text() + "load_from = 'b.pth'\n")
    with pytest.raises(ValueError, match=r"go on from load_from='b\.pth'"):
        load_train(config, '--resume')
    assert load_train(config, '--resume', 'c.pth').load_from == 'c.pth'
    assert load_train(config).load_from == 'b.pth'


@pytest.mark.parametrize(
    ('load', 'flags', 'cure'),
    [
        (load_train, ['--no-validate'], 'val_cfg=None'),
        (load_train, ['--auto-scale-lr'], 'auto_scale_lr.enable=True'),
        (load_train, ['--no-pin-memory'], 'pin_memory=False'),
        (load_train, ['--no-persistent-workers'], 'persistent_workers=False'),
        (load_test, ['--out', 'x', '--out-item', 'pred'], 'label maps'),
        (load_test, ['--amp'], 'test_cfg.fp16=True'),
        (load_test, ['--interval', '2'], 'visualization.interval=N'),
        (load_test, ['--no-pin-memory'], 'pin_memory=False'),
    ],
)
def test_flags_of_mmpretrain_are_refused_elsewhere(load, flags, cure, config):
    config.write_text(config.read_text() + "default_scope = 'mmseg'\n")
    with pytest.raises(ValueError, match="default_scope='mmseg'") as error:
        load(config, *flags)
    flag = next(word for word in reversed(flags) if word.startswith('--'))
    assert str(error.value).startswith(flag) and cure in str(error.value)


def test_a_checkpoint_to_test_must_be_there(config, capsys):
    with pytest.raises(SystemExit) as stopped:
        test_command.main([str(config), 'lost.pth'])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('checkpoint lost.pth: there is no such file')


def test_metrics_go_to_a_file_that_can_hold_them(config):
    config.write_text(config.read_text() + "default_scope = 'mmpretrain'\n")
    flags = '--out-item', 'metrics', '--out'
    with pytest.raises(ValueError, match=r'--out x\.txt: .* \.json, '):
        load_test(config, *flags, 'x.txt')


@pytest.mark.parametrize(
    ('tool', 'extra'), [(train, []), (test_command, [__file__])]
)
def test_runner_type_goes_through_the_registry(
    tool, extra, config, monkeypatch
):
    built = []
    steps = SimpleNamespace(
        _resume=False,
        train=lambda: built.append('train'),
        test=lambda: built.append('test'),
    )
    monkeypatch.setattr(running, 'init_default_scope', built.append)
    monkeypatch.setattr(
        running,
        'RUNNERS',
        SimpleNamespace(
            build=lambda cfg: built.append(cfg.runner_type) or steps
        ),
    )
    tool.main([str(config), *extra, '--cfg-options', 'runner_type=Special'])
    verb = 'train' if tool is train else 'test'
    assert built == ['mmengine', 'Special', verb]


def test_group_is_left_after_training(config, monkeypatch):
    """Its threads abort, now and then, a rank that ends before they do."""
    address = dict(RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1')
    for key, value in (address | dict(MASTER_PORT='0')).items():
        monkeypatch.setenv(key, value)
    groups = []

    class Steps:
        _resume = False

        def train(self):
            self.runner = self  # mmengine's runner holds itself, too
            self.group = torch.distributed.group.WORLD
            groups.append(weakref.ref(self.group))

    monkeypatch.setattr(running, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(running, 'build_runner', lambda cfg: Steps())
    train.main([str(config), '--launcher', 'pytorch'])
    assert not torch.distributed.is_initialized()
    assert [group() for group in groups] == [None]


def test_test_flags_reach_the_config(config):
    cfg = load_test(
        config,
        '--out',
        'maps',
        '--show-dir',
        'painted',
        '--tta',
        '--cfg-options',
        'tta_model.type=Outer',
        'tta_pipeline=[2]',
        'visualizer.type=V',
        'default_hooks.visualization.type=H',
    )
    assert cfg.load_from == 'latest.pth'
    assert cfg.test_evaluator == dict(
        iou_metrics=['mIoU'], output_dir='maps', keep_results=True
    )
    assert cfg.visualizer.save_dir == 'painted'
    assert cfg.default_hooks.visualization == dict(type='H', draw=True)
    assert cfg.model == dict(type='Outer', module=dict(type='Inner', size=1))
    assert cfg.test_dataloader.dataset.pipeline == [2]


def test_of_several_metrics_one_writes_the_label_maps(config):
    text = config.read_text() + "test_evaluator = [dict(type='A'), {}]\n"
    config.write_text(text.replace('{}', "dict(type='mmseg.IoUMetric')"))
    assert load_test(config, '--out', 'maps').test_evaluator == [
        dict(type='A'),
        dict(type='mmseg.IoUMetric', output_dir='maps', keep_results=True),
    ]
    config.write_text(text.replace('{}', "dict(type='B')"))
    with pytest.raises(ValueError, match='has A, B alone'):
        load_test(config, '--out', 'maps')


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        ('--tta', '--tta needs tta_model and tta_pipeline'),
        ('--show', 'need default_hooks.visualization'),
    ],
)
def test_test_names_what_the_config_lacks(flag, message, config):
    with pytest.raises(ValueError, match=message):
        load_test(config, flag)


# How they start

DOORS = dict(
    train=train, test=test_command, prepare_data=prepare, report=report
)
# The package without what its own __init__ imports.
BARE = """
import sys, types
package = types.ModuleType('infobatch_mm')
package.__path__ = [sys.argv[1]]
sys.modules['infobatch_mm'] = package
from infobatch_mm.commands import main
try:
    main(['--help'])
except SystemExit as stopped:
    assert stopped.code == 0
print('loaded:', *sys.modules)
"""


def test_help_needs_no_package():
    command = [sys.executable, '-c', BARE, str(REPO / 'infobatch_mm')]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.partition('loaded:')
    for name, does in commands.COMMANDS.items():
        assert f'  {name} ' in text and does in text
    heavy = {'torch', 'numpy', 'mmengine', 'matplotlib', 'rich'}
    assert not heavy & set(loaded.split())


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_each_command_documents_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        commands.main([name, '--help'])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: infobatch {name} ')


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        commands.main(['trian'])
    assert stopped.value.code == 2
    assert "'trian'" in capsys.readouterr().err


@pytest.mark.parametrize('name', DOORS)
def test_a_door_is_the_command(name):
    """And needs nothing beside it: a wheel holds the doors for mim alone."""
    assert load_tool(name).main is DOORS[name].main
    tree = ast.parse((REPO / 'tools' / f'{name}.py').read_text())
    [imported] = (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom))
    assert imported.module.startswith('infobatch_mm.commands.')
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


def test_the_package_runs_as_a_module(tmp_path):
    command = [sys.executable, '-m', 'infobatch_mm', 'train', 'absent.py']
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | dict(PYTHONPATH=str(REPO)),
    )
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith('infobatch train: error: ')
    assert 'absent.py' in line


# Completion

COMPLETE = """
source /dev/stdin
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_infobatch
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope='module')
def completion():
    """The script for bash."""
    pytest.importorskip('shtab')
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        pytest.raises(SystemExit) as stopped,
    ):
        commands.main(['--print-completion', 'bash'])
    assert not stopped.value.code
    return out.getvalue()


@pytest.mark.parametrize(
    ('words', 'found'),
    [
        (['tra'], {'train'}),
        (['train', '--infob'], {'--infobatch', '--infobatch-options'}),
        (['train', '--launcher', ''], {'none', 'pytorch', 'slurm', 'mpi'}),
        (['train', 'small_con'], {'small_config.py'}),
        (['test', 'small_config.py', 'sma'], {'small_config.py'}),
        (['rank', '--format', 'js'], {'jsonl'}),
        (['prepare', 'cam'], {'camvid'}),
        (['prepare', 'camvid', 'small_con'], {'small_config.py'}),
    ],
    # In words of their own, since sets have no order.
    ids=lambda each: ' '.join(sorted(each)),
)
def test_a_shell_completes(words, found, completion, config):
    done = subprocess.run(
        ['bash', '-c', COMPLETE, 'bash', 'infobatch', *words],
        input=completion,
        capture_output=True,
        text=True,
        cwd=config.parent,
    )
    assert set(done.stdout.split()) == found, done.stderr


def test_completion_needs_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'shtab', None)
    with pytest.raises(SystemExit) as stopped:
        commands.main(['--print-completion', 'zsh'])
    assert stopped.value.code == 2
    assert 'infobatch_mm[completion]' in capsys.readouterr().err


# How they end


def test_an_error_from_elsewhere_keeps_its_traceback():
    parser = train.build_parser()
    with (
        pytest.raises(ValueError, match='theirs'),
        ending.in_one_line(parser, only=ending.is_ours),
    ):
        raise ValueError('theirs')


def last_line(capsys, config, *flags):
    """Return what `infobatch train` ends with, if that is exit status 2."""
    with pytest.raises(SystemExit) as stopped:
        train.main([str(config), *flags], prog='infobatch train')
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert 'Traceback' not in text and text.count('\n') == 1
    return text.removeprefix('infobatch train: error: ')


LIGHT = dict(type='EpochBasedTrainLoop', max_epochs=2)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return a function that writes the config of a run to a file."""
    monkeypatch.setenv('LOCAL_RANK', '0')

    def write(change=lambda cfg: None, **settings):
        cfg = light.config(tmp_path / 'run', LIGHT, **settings)
        change(cfg)
        cfg.dump(tmp_path / 'config.py')
        return tmp_path / 'config.py'

    return write


def break_setting(cfg):
    cfg.custom_hooks[0].delta = 7


def break_sampler(cfg):
    cfg.train_dataloader.sampler.type = 'DefaultSampler'


def break_loss(cfg):
    cfg.model.type = 'PenalisedModel'


def break_rows(cfg):
    cfg.model.type = 'StrangeModel'


def break_sample(cfg):
    cfg.train_dataloader.dataset.dataset.type = 'UnpackedData'


@MODELS.register_module()
class PenalisedModel(light.LightModel):
    """One with a term of the loss beside its head."""

    def forward(self, inputs, data_samples, mode):
        losses = super().forward(inputs, data_samples, mode)
        if mode == 'loss':
            losses['loss_weights'] = self.head.fc.weight.square().sum()
        return losses


@MODELS.register_module()
class StrangeModel(light.LightModel):
    """One that trains on samples without an index."""

    def forward(self, inputs, data_samples, mode):
        for sample in data_samples:
            del sample.infobatch_index
        return super().forward(inputs, data_samples, mode)


@DATASETS.register_module()
class UnpackedData(light.LightData):
    """Points that carry no data sample."""

    def prepare_data(self, idx):
        return torch.zeros(4)


@pytest.mark.parametrize(
    ('change', 'workers', 'message'),
    [
        (break_setting, 0, r'delta must be in \[0, 1\], but got 7'),
        (break_sampler, 0, 'InfoBatchHook needs .* it is DefaultSampler'),
        (break_loss, 0, 'with all sample weights at zero .* head.fc.weight'),
        (break_rows, 0, 'LightHead computed .* carry no infobatch_index'),
        (break_sample, 0, 'IndexedDataset needs .* UnpackedData gave Tensor'),
        (break_sample, 1, 'IndexedDataset needs .* UnpackedData gave Tensor'),
    ],
    ids=['build', 'bind', 'look', 'step', 'sample', 'worker'],
)
def test_an_error_of_ours_in_a_run_is_one_line(
    change, workers, message, written, capsys
):
    line = last_line(capsys, written(change, workers=workers))
    assert re.match(message, line)
    # Without the hook's name and place in memory, or a worker's traceback.
    assert ' object at 0x' not in line and 'File "' not in line


@HOOKS.register_module()
class BrokenHook(Hook):
    """A user's hook, with an error of its own."""

    def before_train(self, runner):
        raise TypeError('a hook of the user')


@DATASETS.register_module()
class BrokenData(light.LightData):
    """A user's data, with an error of its own."""

    def prepare_data(self, idx):
        raise ValueError('a sample of the user')


@HOOKS.register_module()
class AskingHook(Hook):
    """A user's hook that asks ours for what there is not."""

    def before_train(self, runner):
        return toys.hook_of(runner).of_the_user


def break_their_hook(cfg):
    cfg.custom_hooks.append(dict(type='BrokenHook'))


def break_their_question(cfg):
    cfg.custom_hooks.append(dict(type='AskingHook'))


def break_their_data(cfg):
    cfg.train_dataloader.dataset.dataset.type = 'BrokenData'


@pytest.mark.parametrize(
    ('change', 'workers', 'error'),
    [
        (break_their_hook, 0, TypeError),
        (break_their_question, 0, AttributeError),
        (break_their_data, 0, ValueError),
        (break_their_data, 1, ValueError),
    ],
)
def test_an_error_of_theirs_in_a_run_is_not(change, workers, error, written):
    config = written(change, workers=workers)
    with pytest.raises(error, match='of.the.user'):
        train.main([str(config)])


def test_what_torch_refuses_in_our_code_is_not_ours():
    """As an operation does for which a GPU has no memory left."""
    with pytest.raises(RuntimeError) as raised:
        scale_gradient(
            torch.ones(2, 3, requires_grad=True), torch.ones(2)
        ).backward(torch.ones(5))
    assert not ending.is_ours(raised.value)
    with pytest.raises(RuntimeError) as raised:
        ScoreBoard(4).put(torch.arange(3), torch.ones(2))
    *_, last = traceback.extract_tb(raised.tb)
    assert last.filename == scores.__file__
    assert not ending.is_ours(raised.value)


def test_an_error_of_ours_is_one_line(capsys):
    parser = train.build_parser('infobatch train')
    with (
        pytest.raises(SystemExit) as stopped,
        ending.in_one_line(parser, only=ending.is_ours),
    ):
        require('no_such_package', 'things')
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        'infobatch train: error: no_such_package is not installed, and this '
        'needs it: pip install "infobatch_mm[things]"\n'
    )


def test_a_message_of_several_lines_becomes_one(capsys):
    parser = prepare.build_parser('infobatch prepare')
    with pytest.raises(SystemExit), ending.in_one_line(parser):
        raise ValueError('no archive\n- method gz\n- method xz')
    assert capsys.readouterr().err == (
        'infobatch prepare: error: no archive - method gz - method xz\n'
    )


def test_a_setting_of_the_hook_ends_in_one_line(tmp_path, capsys):
    cfg = toys.config(tmp_path / 'run', pruned=False)
    cfg.dump(tmp_path / 'config.py')
    flags = ['--infobatch-options', 'delta=7']
    with pytest.raises(SystemExit) as stopped:
        train.main([str(tmp_path / 'config.py'), *flags], prog='train')
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('train: error: delta must be in [0, 1]')


# What train and test share


def test_names_of_packages_are_read_by_both(monkeypatch):
    pytest.importorskip('mmseg')
    # As a process has it that imported nothing of ours.
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    name = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'
    trained = train.load_config(train.parse_args([name]))
    tested = test_command.load_config(
        test_command.parse_args([name, 'some.pth'])
    )
    assert trained.model.decode_head.type == 'FCNHead'
    assert tested.model == trained.model
    assert tested.work_dir == trained.work_dir
    assert tested.load_from == 'some.pth'


def test_our_own_configs_have_names():
    name = 'quickstart/upernet_tiny_1xb16-20e_digits-48x48.py'
    named = running.read_config(f'infobatch_mm::{name}')
    assert Path(named.filename) == REPO / 'configs' / name
    with pytest.raises(FileNotFoundError, match=r'no config gone/a\.py'):
        running.read_config('infobatch_mm::gone/a.py')


@pytest.mark.parametrize('command', [train, test_command])
def test_a_package_that_is_not_there_is_named(command):
    extra = ['some.pth'] * (command is test_command)
    args = command.parse_args(['nothing_here::some/config.py', *extra])
    with pytest.raises(ValueError, match='package nothing_here is not'):
        command.load_config(args)


def test_a_runner_can_resume(monkeypatch):
    """Official mmengine does so only after allow_resuming."""
    calls = []
    monkeypatch.setattr(running, 'allow_resuming', lambda: calls.append(1))
    monkeypatch.setattr(running.Runner, 'from_cfg', calls.append)
    running.build_runner({'model': 0})
    assert calls == [1, {'model': 0}]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The files of a config that tests on four scenes, and a checkpoint."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg = toys.config(tmp_path / 'unused', pruned=False)
    toys.add_validation(cfg, interval=1)
    cfg.val_dataloader.dataset.num_scenes = 4
    cfg.custom_imports = dict(imports=['infobatch_mm.digit_scenes'])
    cfg.test_dataloader = cfg.val_dataloader
    cfg.test_evaluator = cfg.val_evaluator
    cfg.test_cfg = dict(type='TestLoop')
    cfg.dump(tmp_path / 'config.py')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model, default_args=dict(_scope_='mmseg'))
    model.init_weights()
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    return str(tmp_path / 'config.py'), str(tmp_path / 'model.pth')


def run_alone(arguments, progress):
    test_command.main(arguments)


def run_rank(rank, world_size, port, arguments, progress):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        OMP_NUM_THREADS='1',
        MKL_NUM_THREADS='1',
    )
    test_command.main([*arguments, '--launcher', 'pytorch'])


def metrics(work_dir):
    [path] = work_dir.glob('*/*.json')
    # All ranks of mmengine write this file, with times of their own: behind
    # the last one's text there may be the end of a longer one.
    found, _ = json.JSONDecoder().raw_decode(path.read_text())
    return {key: found[key] for key in ('aAcc', 'mIoU', 'mAcc')}


def test_two_cpu_ranks_test_what_one_does(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(running, 'get_device', lambda: 'cpu')
    one, two = tmp_path / 'one', tmp_path / 'two'
    alone = Child(run_alone, [*saved, '--work-dir', str(one)])
    assert alone.join(120) == 0
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]
    arguments = [*saved, '--work-dir', str(two)]
    ranks = [Child(run_rank, rank, 2, port, arguments) for rank in range(2)]
    assert [rank.join(120) for rank in ranks] == [0, 0]
    assert metrics(two) == metrics(one)


# Settings of the command line are those of the file


def test_imports_that_the_command_line_names_are_imported(
    config, tmp_path, monkeypatch
):
    (tmp_path / 'of_the_user.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    imports = 'custom_imports.imports=["of_the_user"]'
    load_train(config, '--cfg-options', imports)
    assert sys.modules.pop('of_the_user')


def test_the_command_heeds_options_in_the_loop(written):
    path = written(pruned=False, samples=8)
    more = ['train_cfg.infobatch.delta=0.9', 'train_cfg.max_epochs=1']
    train.main([str(path), '--cfg-options', *more], prog='infobatch train')
    assert (path.parent / 'run/infobatch.jsonl').exists()


@pytest.mark.parametrize('option, words', [
    ('model.size.depth=3', 'has nothing to set there'),
    ('custom_imports.imports=["not_there_at_all"]', 'not_there_at_all'),
])  # fmt: skip
def test_options_that_cannot_be_set_end_in_one_line(
    config, option, words, capsys
):
    assert words in last_line(capsys, config, '--cfg-options', option)


def test_a_config_without_a_model_is_of_no_run(config, capsys):
    config.write_text('')
    assert 'has no model' in last_line(capsys, config)


def test_a_base_that_is_not_installed_is_named_with_its_extra(
    config, capsys, monkeypatch
):
    def read(name):
        raise ModuleNotFoundError('mmpretrain is not installed')

    monkeypatch.setattr(running, 'get_config', read)
    monkeypatch.setattr(running, 'is_importable', lambda name: name != 'mmseg')
    with pytest.raises(ValueError, match='mmseg is not installed'):
        running.read_config('mmseg::some.py')
    monkeypatch.setattr(running, 'is_importable', lambda name: name == 'mmseg')
    with pytest.raises(ValueError, match=r'infobatch_mm\[cls\]'):
        running.read_config('mmseg::some.py')


def test_slurm_without_srun_is_told_of():
    with pytest.raises(ValueError, match='not started by srun'):
        running.take_slurm_ranks({})


def test_an_error_of_ours_in_a_test_is_one_line(written, tmp_path, capsys):
    def change(cfg):
        cfg.test_dataloader = copy.deepcopy(cfg.train_dataloader)
        cfg.test_dataloader.dataset.dataset.type = 'UnpackedData'
        cfg.test_dataloader.sampler = dict(type='DefaultSampler')
        cfg.test_cfg = dict(type='TestLoop')
        cfg.test_evaluator = dict(type='LightMetric')

    path, checkpoint = written(change), tmp_path / 'stock.pth'
    torch.save(light.LightModel().state_dict(), checkpoint)
    with pytest.raises(SystemExit) as stopped:
        test_command.main([str(path), str(checkpoint)], prog='infobatch test')
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'IndexedDataset needs samples' in line


def test_a_folder_that_must_not_be_written_to_is_named_first(
    tmp_path, monkeypatch
):
    asked = []  # root may write anywhere
    monkeypatch.setattr(ending.os, 'access', lambda *args: asked.append(args))
    with pytest.raises(ValueError, match='no permission to write there'):
        ending.check_out(tmp_path / 'table.csv')
    assert asked == [(tmp_path, os.W_OK)]


@pytest.mark.parametrize('command', [report, rank])
def test_a_file_that_cannot_be_written_is_named_first(
    command, tmp_path, capsys
):
    for out, message in (
        (tmp_path, f'--out {tmp_path} is a folder'),
        (tmp_path / 'no/x', f'there is no folder {tmp_path}/no'),
    ):
        with pytest.raises(SystemExit) as stopped:
            command.main([str(tmp_path), '--out', str(out)], prog='x')
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
