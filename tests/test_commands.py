"""The commands: how they start, how they end, what they share."""

import ast
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toys
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import MODELS
from processes import Child
from test_tools import load_tool

from infobatch_mm import commands, extras
from infobatch_mm.commands import ending, prepare, report, running, train
from infobatch_mm.commands import test as test_command

REPO = Path(__file__).parents[1]
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


# How they end


def test_an_error_from_elsewhere_keeps_its_traceback():
    parser = train.build_parser()
    with (
        pytest.raises(ValueError, match='theirs'),
        ending.in_one_line(parser, only=ending.is_ours),
    ):
        raise ValueError('theirs')


def test_an_error_of_ours_is_one_line(capsys):
    parser = train.build_parser('infobatch train')
    with (
        pytest.raises(SystemExit) as stopped,
        ending.in_one_line(parser, only=ending.is_ours),
    ):
        extras.require('no_such_package', 'things')
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
    found = json.loads(path.read_text())
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
