"""infobatch prepare for classification, on stand-ins of the data sets."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infobatch_mm.commands import prepare as command
from infobatch_mm.prepare import classification as prepare

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / 'shared/data'
CLASSES, SIDE = 2, 4
PER_CLASS = (10, 3)

SMALL = prepare.CIFAR10._replace(
    counts=PER_CLASS, num_classes=CLASSES, side=SIDE
)
FOLDERS = prepare.ImageFolders(train=6, val=4, num_classes=2)


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
    return prepare.prepare_cifar(archive, out, layout)


def test_the_lossless_file_becomes_the_official_layout(archive, tmp_path):
    out = tmp_path / 'data' / 'cifar10'
    summary = run(archive, out)
    assert summary == (
        f'unpacked: 20 train, 6 test images with 2 classes in {out}'
    )
    folder = out / 'cifar-10-batches-py'
    names = sorted(path.name for path in folder.iterdir())
    assert names == ['batches.meta', *SMALL.train, SMALL.test]
    batches = [prepare.read_batch(folder / name) for name in SMALL.train]
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
def test_damage_is_named_and_leaves_nothing(arrays, tmp_path, spoil, message):
    spoil(arrays)
    path = tmp_path / 'cifar.npz'
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        run(path, tmp_path / 'out')
    assert str(path) in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


def test_damage_in_a_prepared_folder_is_found(archive, tmp_path):
    out = tmp_path / 'out'
    run(archive, out)
    batch = out / SMALL.folder / 'test_batch'
    batch.write_bytes(batch.read_bytes()[:50])
    with pytest.raises(ValueError, match=r'test_batch cannot be read'):
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


def test_what_is_no_archive_is_named(tmp_path):
    for name in 'none.npz', 'none.tar.gz':
        with pytest.raises(ValueError, match=f'{name} is not a file'):
            run(tmp_path / name, tmp_path / 'out')
    taken = tmp_path / 'file'
    taken.write_text('x')
    with pytest.raises(ValueError, match='is a file; set --out'):
        run(tmp_path / 'none.npz', taken)


def test_cifar10_of_the_shared_data(tmp_path, capsys):
    path = SHARED / 'cifar10_lossless_webp.npz'
    if not path.is_file():
        pytest.skip('../shared/data is not there')
    out = tmp_path / 'cifar10'
    command.main(['cifar10', str(path), '--out', str(out)])
    assert capsys.readouterr().out == (
        f'unpacked: 50000 train, 10000 test images with 10 classes in {out}\n'
    )
    batch = prepare.read_batch(out / 'cifar-10-batches-py' / 'data_batch_1')
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
    return prepare.prepare_tiny_imagenet(root, FOLDERS)


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


@pytest.mark.parametrize(
    'spoil, message',
    [
        (drop_image, 'train holds 5 images, and 6 are expected'),
        (drop_table, r'val_annotations\.txt is missing'),
        (other_image, r'val_annotations\.txt does not name the images'),
        (other_class, 'val holds images of 1 classes, and 2 are expected'),
        (drop_class, r'wnids\.txt holds images of 1 classes'),
    ],
)
def test_damage_in_tiny_imagenet_is_named(tiny, spoil, message):
    spoil(tiny)
    with pytest.raises(ValueError, match=message):
        tiny_imagenet(tiny)


def imagenet(root):
    return prepare.check_imagenet(root, FOLDERS)


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
        prepare.list_images(full / 'none')


@pytest.mark.parametrize('full', ['flat'], indirect=True)
def test_a_table_of_another_imagenet_is_named(full):
    table = full / 'meta' / 'train.txt'
    table.write_text(table.read_text().replace('0_0', '0_9'))
    with pytest.raises(ValueError, match=r'train\.txt does not name'):
        imagenet(full)


def test_a_pickle_that_holds_no_batch_is_named(archive, tmp_path):
    out = tmp_path / 'out'
    run(archive, out)
    (out / SMALL.folder / 'data_batch_1').write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match='data_batch_1 holds no data or'):
        run(archive, out)
