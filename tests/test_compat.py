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

from infobatch_mm.host import config_bases, loading

ROOT = Path(__file__).parents[1]


def run_without(packages, code):
    """Run code in a new process in which packages cannot be imported."""
    block = f'import sys; sys.modules |= dict.fromkeys({packages!r})\n'
    return subprocess.run(
        [sys.executable, '-c', block + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    'missing', [('mmengine',), ('mmcv',), ('mmseg', 'mmpretrain')]
)
def test_without_a_family_the_error_names_the_extras(missing):
    done = run_without(missing, 'import infobatch_mm')
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith('ImportError')
    for name in (*missing, '[onedl]', '[openmmlab]', '[cls]'):
        assert name in error


@pytest.mark.parametrize(
    'blocked, package, head',
    [
        ('mmpretrain', 'mmseg', 'WeightedDecodeHead'),
        ('mmseg', 'mmpretrain', 'WeightedClsHead'),
    ],
)
def test_one_task_is_enough(blocked, package, head):
    pytest.importorskip(package)
    code = (
        'import infobatch_mm, infobatch_mm.heads\n'
        'from infobatch_mm import *\n'
        f'from {package}.registry import MODELS\n'
        f'assert MODELS.get({head!r}) is {head} is infobatch_mm.heads.{head}\n'
        'from infobatch_mm.host.packages import is_importable\n'
        f'assert not is_importable({blocked!r})\n'
        'print([n for n in globals() if n.startswith("Weighted")])'
    )
    done = run_without([blocked], code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([head])


def test_bases_of_the_installed_family_are_found(tmp_path):
    base = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'
    file = tmp_path / 'config.py'
    file.write_text(f'_base_ = {base!r}')
    config_bases.alias_config_bases()
    assert Config.fromfile(file).model.decode_head.type == 'UPerHead'


def test_the_alias_is_only_set_where_the_official_package_is_missing(
    monkeypatch,
):
    installed = {'mmsegmentation', 'onedl-mmsegmentation', 'onedl-mmdet'}
    monkeypatch.setattr(config_bases, 'is_installed', installed.__contains__)
    names = dict(mmseg='mmsegmentation', mmdet='mmdet', mmcv='mmcv')
    for name in list(MODULE2PACKAGE):
        monkeypatch.delitem(MODULE2PACKAGE, name)
    for name, distribution in names.items():
        monkeypatch.setitem(MODULE2PACKAGE, name, distribution)
    config_bases.alias_config_bases()
    assert names | dict(mmdet='onedl-mmdet') == MODULE2PACKAGE


def test_checkpoints_with_a_message_hub_load(tmp_path):
    file = tmp_path / 'checkpoint.pth'
    torch.save(dict(history=HistoryBuffer([1.0], [1])), file)
    loading.allow_resuming()
    loaded = CheckpointLoader.load_checkpoint(str(file))
    assert loaded['history'].current() == 1.0


def test_loader_of_local_files(tmp_path):
    file = tmp_path / 'checkpoint.pth'
    torch.save(dict(history=HistoryBuffer([1.0], [1])), file)
    assert loading.load_from_local(str(file))['history'].current() == 1.0
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        loading.load_from_local(str(tmp_path / 'none.pth'))
