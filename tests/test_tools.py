"""The command lines of prepare, train and test; how CamVid is prepared."""

import importlib.util
import io
import os
import re
import sys
import tarfile
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from infobatch_mm import enable
from infobatch_mm.commands import prepare, running, train
from infobatch_mm.commands import test as test_tool
from infobatch_mm.prepare import segmentation

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / 'shared'
CONFIGS = REPO / 'configs' / 'camvid'


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


LAYOUT = segmentation.SegFolder(counts=dict(train=2, val=1), num_classes=3)


def write_pair(root: Path, split: str, name: str) -> None:
    """Write one image of 4x6 and a label map with the labels 0, 2, 255."""
    labels = np.zeros((4, 6), np.uint8)
    labels[1], labels[2] = 2, 255
    for folder, suffix, array in (
        ('images', 'jpg', np.zeros((4, 6, 3), np.uint8)),
        ('annotations', 'png', labels),
    ):
        path = root / folder / split / f'{name}.{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A correct data set of the tiny layout, not packed yet."""
    root = tmp_path / 'source' / 'tiny_4x6'
    for split, name in (('train', 'a'), ('train', 'b'), ('val', 'c')):
        write_pair(root, split, name)
    return root


@pytest.fixture
def pack(source: Path, tmp_path: Path) -> Callable[[], Path]:
    """Pack the source as it is now, with its folder on top."""

    def _pack() -> Path:
        archive = tmp_path / 'tiny_4x6.tar'
        with tarfile.open(archive, 'w') as tar:
            tar.add(source, arcname=source.name)
        return archive

    return _pack


# infobatch prepare


def test_archive_is_unpacked_once_and_then_checked(pack, tmp_path):
    archive, out = pack(), tmp_path / 'data' / 'tiny'
    first = segmentation.prepare_seg_folder(archive, out, LAYOUT)
    assert first == (
        f'unpacked: 2 train, 1 val images of 4x6 with 3 classes in {out}'
    )
    assert (out / 'annotations' / 'val' / 'c.png').is_file()
    archive.unlink()
    second = segmentation.prepare_seg_folder(archive, out, LAYOUT)
    assert second.startswith('checked, already there: 2 train, 1 val')
    assert [path.name for path in out.parent.iterdir()] == ['tiny']


def test_default_folder_is_named_after_the_archive(
    pack, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    segmentation.prepare_seg_folder(pack(), None, LAYOUT)
    assert (tmp_path / 'data' / 'tiny_4x6' / 'images' / 'train').is_dir()


def test_archive_without_a_folder_on_top(source, tmp_path):
    archive = tmp_path / 'flat.tar'
    with tarfile.open(archive, 'w') as tar:
        for folder in ('images', 'annotations'):
            tar.add(source / folder, arcname=folder)
    out = tmp_path / 'flat'
    segmentation.prepare_seg_folder(archive, out, LAYOUT)
    assert (out / 'images' / 'val' / 'c.jpg').is_file()
    assert out.stat().st_mode == source.stat().st_mode


def drop_pair(root: Path) -> None:
    (root / 'images/train/a.jpg').unlink()
    (root / 'annotations/train/a.png').unlink()


def rename_label_map(root: Path) -> None:
    path = root / 'annotations/train/a.png'
    path.rename(path.with_name('other.png'))


def save_label_map(array: np.ndarray) -> Callable[[Path], None]:
    return lambda root: Image.fromarray(array).save(
        root / 'annotations/train/b.png'
    )


def truncate_image(root: Path) -> None:
    (root / 'images/val/c.jpg').write_bytes(b'not an image')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (drop_pair, 'images/train holds 1 files, and 2 are expected'),
        (rename_label_map, 'a.jpg has no label map: .*a.png is missing'),
        (
            save_label_map(np.full((4, 6), 3, np.uint8)),
            r'b.png holds the labels \[3\], and only 0 to 2 and 255',
        ),
        (
            save_label_map(np.zeros((4, 6, 3), np.uint8)),
            r'b.png has shape \(4, 6, 3\)',
        ),
        (
            save_label_map(np.zeros((4, 5), np.uint8)),
            'b.jpg is 4x6 and .*b.png is 4x5',
        ),
        (truncate_image, 'c.jpg cannot be read as an image'),
    ],
)
def test_damage_is_named_and_leaves_nothing(
    damage, message, source, pack, tmp_path
):
    damage(source)
    out = tmp_path / 'data' / 'tiny'
    archive = pack()
    with pytest.raises(ValueError, match=message) as error:
        segmentation.prepare_seg_folder(archive, out, LAYOUT)
    assert str(archive) in str(error.value)
    assert not list(out.parent.iterdir())


def test_damage_in_a_prepared_folder_is_found(source, tmp_path):
    drop_pair(source)
    with pytest.raises(ValueError, match='unpack a complete archive'):
        segmentation.prepare_seg_folder(tmp_path / 'absent', source, LAYOUT)


def test_member_outside_the_folder_is_refused(tmp_path):
    archive, out = tmp_path / 'evil.tar', tmp_path / 'data' / 'evil'
    with tarfile.open(archive, 'w') as tar:
        member = tarfile.TarInfo('../../escaped.txt')
        tar.addfile(member, io.BytesIO())
    with pytest.raises(ValueError, match='evil.tar cannot be unpacked'):
        segmentation.prepare_seg_folder(archive, out, LAYOUT)
    assert not list(out.parent.iterdir())
    assert not (tmp_path / 'escaped.txt').exists()


def test_what_is_no_archive_is_named(tmp_path):
    archive = tmp_path / 'notes.tar'
    with pytest.raises(ValueError, match='notes.tar is not a file'):
        segmentation.prepare_seg_folder(archive, tmp_path / 'out', LAYOUT)
    archive.write_text('notes')
    with pytest.raises(ValueError, match='notes.tar cannot be unpacked'):
        segmentation.prepare_seg_folder(archive, tmp_path / 'out', LAYOUT)
    with pytest.raises(ValueError, match='notes.tar is a file; set --out'):
        segmentation.prepare_seg_folder(archive, archive, LAYOUT)


def test_archive_without_images_is_named(tmp_path):
    archive = tmp_path / 'other.tar'
    (tmp_path / 'readme').mkdir()
    with tarfile.open(archive, 'w') as tar:
        tar.add(tmp_path / 'readme', arcname='readme')
    with pytest.raises(ValueError, match='no folder named images'):
        segmentation.prepare_seg_folder(archive, tmp_path / 'out', LAYOUT)


@pytest.mark.parametrize(
    'name',
    ['camvid', 'ade20k', 'cifar10', 'cifar100', 'tiny-imagenet', 'imagenet'],
)
def test_command_line_ends_with_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        prepare.main([name, 'absent'])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(
        r'absent.* is (not a file|not a folder|missing)', lines[-1]
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason='needs ../shared/data')
@pytest.mark.parametrize('size', ['120x160', '240x320'])
def test_camvid_archives(size, tmp_path, capsys):
    archive = SHARED / 'data' / f'camvid_{size}.tar'
    out = tmp_path / archive.stem
    prepare.main(['camvid', str(archive), '--out', str(out)])
    assert capsys.readouterr().out == (
        f'unpacked: 367 train, 101 val, 233 test images of {size} with 11 '
        f'classes in {out}\n'
    )


# infobatch train and test


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
    return test_tool.load_config(test_tool.parse_args(arguments))


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


@pytest.mark.parametrize('tool', [train, test_tool])
@pytest.mark.parametrize('flag', ['--local_rank', '--local-rank'])
def test_local_rank_is_set_unless_the_launcher_did(
    tool, flag, config, monkeypatch
):
    arguments = [str(config)] + ['latest.pth'] * (tool is test_tool)
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


def test_a_config_in_the_place_of_a_checkpoint_is_named(config, capsys):
    with pytest.raises(SystemExit):
        train.main(['--resume', str(config)])
    assert 'put it before --resume' in capsys.readouterr().err


def test_resume_leaves_load_from_as_mmseg_does(config):
    cfg = load_train(config, '--resume', '--cfg-options', 'load_from=a.pth')
    assert (cfg.resume, cfg.load_from) == (True, 'a.pth')


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


@pytest.mark.parametrize(
    ('tool', 'extra'), [(train, []), (test_tool, ['latest.pth'])]
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


# configs/camvid


@pytest.mark.parametrize('schedule', ['50e', '4k'])
def test_overlay_is_what_enable_makes_of_its_stock_twin(schedule):
    name = f'upernet_r18_1xb4-{schedule}_camvid-120x160.py'
    stock = Config.fromfile(CONFIGS / name)
    found = Config.fromfile(CONFIGS / f'infobatch_{name}').to_dict()
    [hook] = found['custom_hooks']
    options = {key: hook[key] for key in hook if key != 'type'}
    expected = enable(stock, **options).to_dict()
    # The overlays leave defaults out, and mmengine's own loop by epochs in.
    kind = 'infobatch_mm.InfoBatchSampler'
    expected['train_dataloader']['sampler'] = dict(type=kind)
    expected['custom_imports']['allow_failed_imports'] = False
    if schedule == '50e':
        expected['train_cfg'] = stock.train_cfg.to_dict()
    assert found == expected
