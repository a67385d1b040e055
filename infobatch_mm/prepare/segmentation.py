"""Data sets of images and label maps: CamVid and ADE20K."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from . import extract, prepare_once

IGNORED = 255


class SegFolder(NamedTuple):
    """What `images/SPLIT/*.jpg` and `annotations/SPLIT/*.png` must hold.

    Args:
        counts (dict[str, int]): Number of images by split.
        num_classes (int): Labels are 0 to this less one, or 255 (ignored).
        zero_is_other (bool): Whether classes begin at 1, as what mmseg loads
            with `reduce_zero_label=True`.
        read_all (bool): Whether all pairs are decoded, or only the first of
            each split, where decoding all of them would take many minutes.
    """

    counts: dict[str, int]
    num_classes: int
    zero_is_other: bool = False
    read_all: bool = True

    @property
    def last_label(self) -> int:
        """int: The label of the last class."""
        return self.num_classes - (0 if self.zero_is_other else 1)


CAMVID = SegFolder(counts=dict(train=367, val=101, test=233), num_classes=11)
ADE20K = SegFolder(
    counts=dict(training=20210, validation=2000),
    num_classes=150,
    zero_is_other=True,
    read_all=False,
)


def read_image(path: Path) -> np.ndarray:
    """Decode an image as it is: (H, W) for a label map, else (H, W, C)."""
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError) as error:  # the latter of a broken PNG
        raise ValueError(
            f'{path} cannot be read as an image ({error}); '
            'unpack a complete archive again'
        ) from error


def check_label_map(labels: np.ndarray, last: int, path: Path) -> None:
    """Raise unless labels (H, W) are all 0 to last, or ignored."""
    if labels.ndim != 2:
        raise ValueError(
            f'{path} has shape {labels.shape}, and a label map must have one '
            'channel; take the archive with class ids, not with colours'
        )
    found = np.unique(labels)
    wrong = found[(found > last) & (found != IGNORED)]
    if wrong.size:
        raise ValueError(
            f'{path} holds the labels {wrong.tolist()}, and only 0 to {last} '
            f'and {IGNORED} (ignored) are known; take the archive with these'
        )


def check_pair(image: Path, label_map: Path, last: int) -> str:
    """Check an image and its labels 0 to last; gives its size as 'HxW'."""
    labels = read_image(label_map)
    check_label_map(labels, last, label_map)
    size = read_image(image).shape[:2]
    if size != labels.shape:
        raise ValueError(
            f'{image} is {size[0]}x{size[1]} and {label_map} is '
            f'{labels.shape[0]}x{labels.shape[1]} (height x width); take '
            'both from the same archive'
        )
    return f'{size[0]}x{size[1]}'


def list_files(folder: Path, suffix: str, count: int) -> list[Path]:
    """List the files of a folder in order; raise unless they are `count`."""
    if not folder.is_dir():
        raise ValueError(
            f'{folder} is not a folder; unpack a complete archive into an '
            'empty folder, and name the one that holds images and annotations'
        )
    files = sorted(folder.glob(f'*{suffix}'))
    if len(files) != count:
        raise ValueError(
            f'{folder} holds {len(files)} files, and {count} are expected; '
            'unpack a complete archive into an empty folder'
        )
    return files


def check_split(root: Path, split: str, layout: SegFolder) -> set[str]:
    """Check the files of one split; gives back the sizes read, as 'HxW'."""
    count = layout.counts[split]
    images = list_files(root / 'images' / split, '.jpg', count)
    label_maps = list_files(root / 'annotations' / split, '.png', count)
    found = {path.name for path in label_maps}
    for image in images:
        if f'{image.stem}.png' not in found:
            label_map = root / 'annotations' / split / f'{image.stem}.png'
            raise ValueError(
                f'{image} has no label map: {label_map} is missing; '
                'unpack a complete archive into an empty folder'
            )
    # Now both lists hold the same names in the same order.
    pairs = list(zip(images, label_maps, strict=True))
    return {
        check_pair(image, label_map, layout.last_label)
        for image, label_map in (pairs if layout.read_all else pairs[:1])
    }


def check_folder(root: Path, layout: SegFolder) -> str:
    """Check the files of a data set; gives back a summary of one line."""
    sizes: set[str] = set()
    for split in layout.counts:
        sizes |= check_split(root, split, layout)
    counts = ', '.join(f'{n} {split}' for split, n in layout.counts.items())
    of_sizes = f' of {" and ".join(sorted(sizes))}' if layout.read_all else ''
    return (
        f'{counts} images{of_sizes} with {layout.num_classes} classes in '
        f'{root}'
    )


def find_root(folder: Path, archive: Path) -> Path:
    """Find the folder that holds images/ in an unpacked archive."""
    for root in (folder, *sorted(folder.iterdir())):
        if (root / 'images').is_dir():
            return root
    raise ValueError(
        f'{archive} holds no folder named images, neither on '
        'top nor one level down; take the prepared archive'
    )


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive; gives back the root of the data set in it."""
    extract(archive, folder)
    return find_root(folder, archive)


def prepare_seg_folder(
    archive: Path, out: Path | None, layout: SegFolder
) -> str:
    """Unpack a data set, or check the folder if it is there already."""
    return prepare_once(
        archive,
        out or Path('data') / archive.name.split('.')[0],
        unpack=unpack,
        check=lambda root: check_folder(root, layout),
    )


def prepare_camvid(archive: Path, out: Path | None) -> str:
    """Prepare CamVid with the 11 classes of SegNet."""
    return prepare_seg_folder(archive, out, CAMVID)


def count_sample(root: Path, layout: SegFolder) -> SegFolder:
    """Return the layout with the splits and counts that are there."""
    counts = {
        split: len(list((root / 'images' / split).glob('*.jpg')))
        for split in layout.counts
    }
    counts = {split: count for split, count in counts.items() if count}
    if not counts:
        folders = ' or '.join(f'images/{split}' for split in layout.counts)
        raise ValueError(
            f'{root} holds no *.jpg in {folders}; name the folder that holds '
            'images and annotations'
        )
    return layout._replace(counts=counts)


def check_ade20k(root: Path, *, sample: bool) -> str:
    """Check an unpacked ADEChallengeData2016, or a sample of it."""
    layout = count_sample(root, ADE20K) if sample else ADE20K
    return f'checked: {check_folder(root, layout)}'
