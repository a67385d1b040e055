"""Both families of OpenMMLab packages, and none."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from infobatch_mm import compat

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize('missing', ['mmengine', 'mmcv', 'mmseg'])
def test_without_a_family_the_error_names_the_extras(missing):
    code = (
        'import importlib.util as u; find = u.find_spec\n'
        'u.find_spec = lambda name, *a: '
        f'None if name == {missing!r} else find(name, *a)\n'
        'import infobatch_mm'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith('ImportError') and missing in error
    assert '[onedl]' in error and '[openmmlab]' in error


def test_bases_of_the_installed_family_are_found(tmp_path):
    base = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'
    file = tmp_path / 'config.py'
    file.write_text(f'_base_ = {base!r}')
    assert Config.fromfile(file).model.decode_head.type == 'UPerHead'


def test_the_alias_is_only_set_where_the_official_package_is_missing(
    monkeypatch,
):
    installed = {'mmsegmentation', 'onedl-mmsegmentation', 'onedl-mmdet'}
    monkeypatch.setattr(compat, '_is_installed', installed.__contains__)
    names = dict(mmseg='mmsegmentation', mmdet='mmdet', mmcv='mmcv')
    for name in list(MODULE2PACKAGE):
        monkeypatch.delitem(MODULE2PACKAGE, name)
    for name, distribution in names.items():
        monkeypatch.setitem(MODULE2PACKAGE, name, distribution)
    compat.alias_config_bases()
    assert names | dict(mmdet='onedl-mmdet') == MODULE2PACKAGE


def test_checkpoints_with_a_message_hub_load(tmp_path):
    file = tmp_path / 'checkpoint.pth'
    torch.save(dict(history=HistoryBuffer([1.0], [1])), file)
    loaded = CheckpointLoader.load_checkpoint(str(file))
    assert loaded['history'].current() == 1.0


def test_loader_of_local_files(tmp_path):
    file = tmp_path / 'checkpoint.pth'
    torch.save(dict(history=HistoryBuffer([1.0], [1])), file)
    assert compat.load_from_local(str(file))['history'].current() == 1.0
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        compat.load_from_local(str(tmp_path / 'none.pth'))
