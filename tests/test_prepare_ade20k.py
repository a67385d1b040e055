"""infobatch prepare ade20k."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_tools import SHARED

from infobatch_mm.commands import prepare
from infobatch_mm.prepare import files, segmentation

ADE20K = segmentation.ADE20K._replace(counts=dict(training=2, validation=1))
LABELS = np.array([[0, 1, 150], [7, 0, 255]], np.uint8)


def write_pair(
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
        write_pair(folder, split, name)
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


def rename_label_map(root: Path) -> None:
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
            rename_label_map,
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
    write_pair(root, 'training', 'ADE_train_3')
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
    files.extract(SHARED / 'data' / 'ade20k_sample.tar', tmp_path)
    sample = tmp_path / 'ade20k_sample'
    official = check(sample / 'ADEChallengeData2016', '--sample')
    assert official.startswith('checked: 1 training, 3 validation images')
    derived = check(sample / 'extra_derived', '--sample')
    assert derived.startswith('checked: 3 training images')
