"""Classification data sets: CIFAR, Tiny-ImageNet and ImageNet."""

import io
import os
import pickle
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from . import extract, prepare_once

# What reading a file may raise that holds no arrays as it should.
NO_ARRAYS = (
    *(KeyError, OSError, TypeError, ValueError),
    *(EOFError, BadZipFile, zlib.error),
)
IMAGE_SUFFIXES = ('.jpeg', '.jpg', '.png')


class Cifar(NamedTuple):
    """What a CIFAR archive must hold.

    Args:
        folder (str): Name of the folder that mmpretrain reads.
        train (tuple[str, ...]): Names of the training batches.
        test (str): Name of the test batch.
        labels (str): The key of the labels in a batch.
        counts (tuple[int, int]): Training and test images of each class.
        num_classes (int): Labels are 0 to this less one.
        side (int): Height and width of an image.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    labels: str
    counts: tuple[int, int]
    num_classes: int
    side: int = 32

    @property
    def batches(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """tuple: Names of the batches of each split."""
        return self.train, (self.test,)


CIFAR10 = Cifar(
    folder='cifar-10-batches-py',
    train=tuple(f'data_batch_{i}' for i in range(1, 6)),
    test='test_batch',
    labels='labels',
    counts=(5000, 1000),
    num_classes=10,
)
CIFAR100 = Cifar(
    folder='cifar-100-python',
    train=('train',),
    test='test',
    labels='fine_labels',
    counts=(500, 100),
    num_classes=100,
)


class ImageFolders(NamedTuple):
    """How many images and classes a data set of folders must have."""

    train: int
    val: int
    num_classes: int


TINY_IMAGENET = ImageFolders(train=100_000, val=10_000, num_classes=200)
IMAGENET = ImageFolders(train=1_281_167, val=50_000, num_classes=1000)


# CIFAR


def decode_strips(blob: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Decode concatenated image strips to pixels, (N, side, side, 3)."""
    strips = []
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        with Image.open(io.BytesIO(blob[start:end].tobytes())) as strip:
            pixels = np.asarray(strip.convert('RGB'))
        strips.append(pixels.reshape(-1, pixels.shape[1], *pixels.shape[1:]))
    return np.concatenate(strips)


def write_batches(archive: Path, folder: Path, layout: Cifar) -> None:
    """Write a lossless `.npz` of CIFAR into a new folder, as the official one.

    Each batch is a pickled dict of the labels and of `data`, uint8,
    (N, 3 * side * side), one colour after the other.
    """
    folder.mkdir()
    try:
        with np.load(archive) as file:
            arrays = dict(file)
        for split, names in zip(
            ('train', 'test'), layout.batches, strict=True
        ):
            images = decode_strips(
                arrays[f'{split}_webp'], arrays[f'{split}_off']
            )
            labels = arrays[f'{split}_y'].tolist()
            rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            size = -(-len(rows) // len(names))
            for i, name in enumerate(names):
                part = slice(i * size, (i + 1) * size)
                batch = {'data': rows[part], layout.labels: labels[part]}
                (folder / name).write_bytes(pickle.dumps(batch))
        classes = [str(name) for name in arrays['classes']]
    except NO_ARRAYS as error:
        raise ValueError(
            f'{archive} cannot be decoded ({error}); take the prepared file, '
            'with train_webp, train_off, train_y, test_* and classes'
        ) from error
    meta = pickle.dumps({'label_names': classes})
    (folder / 'batches.meta').write_bytes(meta)


def read_batch(path: Path) -> dict:
    """Read a pickled batch; only of archives that are trusted."""
    try:
        batch = pickle.loads(path.read_bytes(), encoding='latin1')
    except Exception as error:  # damaged, it may name anything
        raise ValueError(
            f'{path} cannot be read ({error}); unpack a complete archive again'
        ) from error
    if not isinstance(batch, dict):
        raise ValueError(
            f'{path} holds a {type(batch).__name__}; take the archive for '
            'Python'
        )
    return batch


def check_cifar(root: Path, layout: Cifar) -> str:
    """Check every batch; gives back a summary of one line."""
    folder = root / layout.folder
    for names, count in zip(layout.batches, layout.counts, strict=True):
        labels: list[int] = []
        for name in names:
            batch = read_batch(folder / name)
            data: Any = batch.get('data')
            classes = batch.get(layout.labels)
            has_pixels = isinstance(data, np.ndarray)
            if not (has_pixels and isinstance(classes, list)):
                raise ValueError(
                    f'{folder / name} holds no data or no {layout.labels}; '
                    'take the archive for Python'
                )
            labels += classes
            expected = (len(classes), 3 * layout.side**2)
            if data.shape != expected:
                raise ValueError(
                    f'{folder / name} holds pixels of shape '
                    f'{data.shape}, and its labels need {expected}; '
                    'unpack a complete archive again'
                )
        found = Counter(labels)
        if found != dict.fromkeys(range(layout.num_classes), count):
            raise ValueError(
                f'{folder} holds {len(labels)} images of {len(found)} classes '
                f'in {" and ".join(names)}, and {count} of each of '
                f'{layout.num_classes} are expected; unpack a complete archive'
            )
    train, test = (count * layout.num_classes for count in layout.counts)
    return (
        f'{train} train, {test} test images with {layout.num_classes} '
        f'classes in {root}'
    )


def unpack_cifar(archive: Path, folder: Path, layout: Cifar) -> Path:
    """Unpack a CIFAR of either form into a folder, its root."""
    if archive.suffix == '.npz':
        write_batches(archive, folder / layout.folder, layout)
    else:
        extract(archive, folder)
    return folder


def prepare_cifar(archive: Path, out: Path, layout: Cifar) -> str:
    """Unpack a CIFAR, or check the folder if it is there already."""
    return prepare_once(
        archive,
        out,
        unpack=lambda archive, folder: unpack_cifar(archive, folder, layout),
        check=lambda root: check_cifar(root, layout),
    )


# Folders of images


def list_images(folder: Path) -> list[str]:
    """List the images of a folder and below, as paths relative to it."""
    if not folder.is_dir():
        raise ValueError(
            f'{folder} is not a folder; give the folder of the unpacked '
            'archive'
        )
    found = (
        os.path.relpath(os.path.join(at, name), folder)
        for at, _, names in os.walk(folder, followlinks=True)
        for name in names
    )
    return sorted(f for f in found if f.lower().endswith(IMAGE_SUFFIXES))


def check_count(folder: Path, found: int, expected: int) -> None:
    """Raise unless a folder holds as many images as it should."""
    if found != expected:
        raise ValueError(
            f'{folder} holds {found} images, and {expected} are expected; '
            'unpack a complete archive'
        )


def check_classes(folder: Path, found: Iterable[str], expected: int) -> None:
    """Raise unless there are as many classes as there should be."""
    classes = len(set(found))
    if classes != expected:
        raise ValueError(
            f'{folder} holds images of {classes} classes, and {expected} are '
            'expected; unpack a complete archive'
        )


def check_names(folder: Path, found: Iterable[str], known: set[str]) -> None:
    """Raise unless classes are named as they are elsewhere in the data set."""
    if others := sorted(set(found) ^ known):
        raise ValueError(
            f'{folder} has other classes than the rest of the data set: '
            f'{", ".join(others[:3])} {"..." * (len(others) > 3)}is not in '
            'both; take all from one archive'
        )


def read_lines(path: Path, words: int = 1) -> list[list[str]]:
    """Read a text file as lists of the words of its lines.

    Args:
        path (Path): The file, of which empty lines are left out.
        words (int): How many a line must have at least.
    """
    if not path.is_file():
        raise ValueError(
            f'{path} is missing; unpack a complete archive into an empty '
            'folder'
        )
    lines = [line.split() for line in path.read_text().splitlines()]
    for number, line in enumerate(lines, 1):
        if 0 < len(line) < words:
            raise ValueError(
                f'{path}, line {number}: {" ".join(line)} has {len(line)} of '
                f'{words} words; unpack a complete archive'
            )
    return list(filter(None, lines))


def write_annotations(path: Path, labels: Iterable[tuple[str, int]]) -> None:
    """Write what mmpretrain's CustomDataset reads: a path and a label."""
    path.parent.mkdir(exist_ok=True)
    lines = [f'{name} {label}\n' for name, label in labels]
    path.write_text(''.join(lines))


def prepare_tiny_imagenet(
    root: Path, layout: ImageFolders = TINY_IMAGENET
) -> str:
    """Check an unpacked tiny-imagenet-200 and write its annotations.

    Its training images lie in folders by class, those of validation in one
    with a table of classes: `meta/train.txt` and `meta/val.txt` give both
    the same labels, those of the sorted names in `wnids.txt`.
    """
    names = sorted(words[0] for words in read_lines(root / 'wnids.txt'))
    check_classes(root / 'wnids.txt', names, layout.num_classes)
    labels = {name: label for label, name in enumerate(names)}
    train = list_images(root / 'train')
    check_count(root / 'train', len(train), layout.train)
    table = read_lines(root / 'val' / 'val_annotations.txt', words=2)
    val = {f'images/{words[0]}': words[1] for words in table}
    found = list_images(root / 'val')
    check_count(root / 'val', len(found), layout.val)
    if sorted(val) != found:
        raise ValueError(
            f'{root / "val" / "val_annotations.txt"} does not name the '
            f'images in {root / "val" / "images"}; unpack a complete archive'
        )
    by_class = [(path, Path(path).parts[0]) for path in train]
    splits = dict(train=by_class, val=list(val.items()))
    for split, pairs in splits.items():
        check_classes(root / split, (n for _, n in pairs), layout.num_classes)
        check_names(root / split, (n for _, n in pairs), set(labels))
    for split, pairs in splits.items():
        write_annotations(
            root / 'meta' / f'{split}.txt',
            ((path, labels[name]) for path, name in pairs),
        )
    return (
        f'checked, annotations in {root / "meta"}: {layout.train} train, '
        f'{layout.val} val images with {layout.num_classes} classes in {root}'
    )


def classes_of_table(path: Path, images: list[str], total: int) -> list[str]:
    """Return the labels that a table gives to the images of one folder."""
    lines = read_lines(path, words=2)
    if sorted(words[0] for words in lines) != images:
        raise ValueError(
            f'{path} does not name the images in {path.parents[1] / path.stem}'
            '; take the one of this archive'
        )
    classes = [words[1] for words in lines]
    if wrong := sorted(set(classes) - set(map(str, range(total)))):
        raise ValueError(
            f'{path} has the label {wrong[0]}, and they must be 0 to '
            f'{total - 1}, by the sorted names of the classes; take the table '
            'that mmpretrain names'
        )
    return classes


def check_imagenet(root: Path, layout: ImageFolders = IMAGENET) -> str:
    """Check an unpacked ImageNet-1K, in either layout that mmpretrain knows.

    Images lie in folders by class, or all in one beside `meta/SPLIT.txt`.
    """
    folders: set[str] = set()
    for split in ('train', 'val'):
        folder = root / split
        images = list_images(folder)
        check_count(folder, len(images), getattr(layout, split))
        classes = [Path(path).parts[0] for path in images]
        if classes == images:
            table = root / 'meta' / f'{split}.txt'
            classes = classes_of_table(table, images, layout.num_classes)
        else:
            folders = folders or set(classes)
            check_names(folder, classes, folders)
        check_classes(folder, classes, layout.num_classes)
    return (
        f'checked: {layout.train} train, {layout.val} val images with '
        f'{layout.num_classes} classes in {root}'
    )
