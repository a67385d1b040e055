"""Make a config of mmseg so small that it trains in seconds on a CPU.

A small config keeps its heads and losses, its neck, its optimizer and the
transforms of its data as they are; see :func:`shrink`.
"""

from collections import Counter
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import MODELS
from mmseg.utils import register_all_modules
from PIL import Image

from infobatch_mm.config import SEG_HEADS
from zoo.package import (
    BUDGET,
    SAMPLES,
    Package,
    Small,
    as_list,
    drop_pretrained,
    fit_schedule,
    full_precision,
    num_classes,
    parts,
    resized,
    small_config,
    unsync_norm,
)

CROP = 32
CROPS = dict(
    PIDHead=128,  # 32 gives NaN, also without pruning
    LRASPPHead=400,  # it pools over 49 x 49 pixels of stride 8
)
IMAGE, BLOCK = 96, 16
IGNORED = 255
RANDOM_WEIGHTS = 'random.pth'

# What tells models apart


def describe(model: Any) -> str:
    """Return the types of a model, its heads and their losses."""
    heads = [head for name in SEG_HEADS for head in as_list(model.get(name))]
    counts = Counter(map(describe_head, heads))
    names = [f'{n} x {name}' if n > 1 else name for name, n in counts.items()]
    kind = '' if model.type == 'EncoderDecoder' else f'{model.type}: '
    return kind + ' + '.join(names)


def describe_head(head: Any) -> str:
    """Return a head's type, with its losses and pixel sampler in brackets."""
    losses = [
        part['type']
        for name, value in head.items()
        if name.startswith('loss') or name == 'sampler'
        for part in as_list(value)
    ]
    names = [name.removesuffix('Loss') for name in losses]
    if not names or names == ['CrossEntropy']:
        return head['type']
    return f'{head["type"]}({", ".join(dict.fromkeys(names))})'


# The small config


def shrink(cfg: Config, *, ignored: bool = True) -> Small:
    """Return the training part of a stock config, so small that it is quick.

    The heads and their losses, the neck, and the transforms of the data stay
    what they are but for the size of images; weights are random, backbones
    of repeated blocks have fewer of them.

    Args:
        cfg (Config): A stock config.
        ignored (bool): Whether some pixels of the images have no label.

    Returns:
        tuple[Config, list[str]]: The config, and notes on what was changed
        beyond sizes and pretrained weights.
    """
    crop = max(CROPS.get(str(p.get('type')), CROP) for p in parts(cfg.model))
    model, notes = small_model(cfg.model, crop)
    dataset = cfg.train_dataloader.dataset
    classes = num_classes(cfg.model)
    optim_wrapper, precision = full_precision(cfg.optim_wrapper)
    small = small_config(
        cfg,
        model=model,
        loader=dict(dataset=small_dataset(dataset, classes, ignored, crop)),
        train_cfg=dict(type=cfg.train_cfg.type, max_iters=BUDGET),
        optim_wrapper=optim_wrapper,
        param_scheduler=[
            fit_schedule(
                scheduler,
                ('begin', 'end', 'milestones'),
                budget=BUDGET,
                full=cfg.train_cfg.max_iters,
                least=2,
            )
            for scheduler in as_list(cfg.get('param_scheduler'))
        ],
    )
    return small, notes + precision


def small_model(model: Any, crop: int) -> tuple[Any, list[str]]:
    """Return a model that builds and runs fast, and notes on the changes."""
    model = deepcopy(model)
    for part in parts(model):
        drop_pretrained(part)
        if isinstance(part.get('pretrained'), str):
            # Parts of SAN have no weights at all without a checkpoint.
            is_san = part.get('type') == 'MultimodalEncoderDecoder'
            part['pretrained'] = RANDOM_WEIGHTS if is_san else None
        unsync_norm(part)
        for name, value in (('size', (crop, crop)), ('size_divisor', crop)):
            if part.get('type') == 'SegDataPreProcessor' and part.get(name):
                part[name] = value
    notes = []
    for name in ('backbone', 'image_encoder', 'text_encoder'):
        for part in parts(model.get(name)):
            before = deepcopy(part)
            make_shallow(part)
            if part != before:
                notes.append(f'{part["type"]} of less depth')
    if 'img_size' in model.get('backbone', {}):
        model.backbone.img_size = (crop, crop)
    model.test_cfg = dict(mode='whole')
    return model, notes


def make_shallow(backbone: Any) -> None:
    """Cut the depth of a backbone, which leaves its channels, in place."""
    kind = str(backbone.get('type'))
    if kind.startswith('ResNe') and backbone.depth > 50:
        backbone.depth = 50
    if kind == 'HRNet':
        for stage in backbone.extra.values():
            stage.num_modules = 1
    if kind in ('VisionTransformer', 'BEiT', 'MAE'):
        out = backbone.get('out_indices', -1)
        backbone.num_layers = 1 if isinstance(out, int) else len(out)
        backbone.out_indices = (
            -1 if isinstance(out, int) else tuple(range(len(out)))
        )
    if kind == 'mmpretrain.ConvNeXt':
        settings = MODELS.get(kind).arch_settings[backbone.arch]
        backbone.arch = dict(settings, depths=[2] * 4)
    if kind == 'CLIPTextEncoder':
        backbone.num_layers = 1
        backbone.templates = ['a photo of a {}.']
    for name in ('depths', 'num_layers'):
        if isinstance(backbone.get(name), (list, tuple)):  # one a stage
            backbone[name] = [min(2, depth) for depth in backbone[name]]


def small_dataset(
    dataset: Any, classes: int, ignored: bool, crop: int, share: int = 1
) -> Any:
    """Return a data set of synthetic images, wrapped as it was.

    Args:
        dataset (dict): Config of a data set.
        classes (int): Number of classes.
        ignored (bool): Whether some pixels have no label.
        crop (int): Side of a crop.
        share (int): How many data sets share the SAMPLES between them.
    """
    options = (classes, ignored, crop)
    if 'dataset' in dataset:
        inner = small_dataset(dataset.dataset, *options, share)
        times = {'times': 1} if 'times' in dataset else {}
        return dict(type=dataset.type, dataset=inner, **times)
    if 'datasets' in dataset:
        share *= len(dataset.datasets)
        inner = [small_dataset(d, *options, share) for d in dataset.datasets]
        return dict(type=dataset.type, datasets=inner)
    sizes = transform_sizes(crop)
    folder = f'{classes}_classes' + ('' if ignored else '_none_ignored')
    reduces = any(t.get('reduce_zero_label') for t in dataset.pipeline)
    return dict(
        type='BaseSegDataset',
        data_root=folder + ('_zero_reduced' if reduces else ''),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        metainfo=dict(classes=tuple(map(str, range(classes)))),
        reduce_zero_label=reduces,
        indices=SAMPLES // share,
        pipeline=[resized(t, sizes) for t in dataset.pipeline],
    )


def transform_sizes(crop: int) -> dict[str, Any]:
    """Return the sizes that transforms have in place of their own."""
    return dict(
        crop_size=(crop, crop),
        size=(crop, crop),
        # Times 0.5 it is the crop still, so that nothing has to be padded.
        scale=(8 * crop, 2 * crop),
        scales=[crop, 2 * crop],
        max_size=8 * crop,
    )


def write_images(dataset: Any) -> None:
    """Write the files of each synthetic data set within a dataset's config.

    The labels are blocks of random classes. Of every second image half
    the columns are ignored, so that most losses are lower for it.
    """
    for leaf in (p for p in parts(dataset) if 'pipeline' in p):
        classes, root = len(leaf.metainfo.classes), Path(leaf.data_root)
        random = np.random.default_rng(0)
        side = IMAGE // BLOCK
        labels = np.resize(random.permutation(classes), (SAMPLES, side, side))
        labels = labels + bool(leaf.reduce_zero_label)
        for folder in ('images', 'labels'):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for index, blocks in enumerate(labels):
            label = np.kron(blocks, np.ones((BLOCK, BLOCK))).astype(np.uint8)
            if index % 2 and 'none_ignored' not in leaf.data_root:
                label[:, ::2] = IGNORED
            shape = (IMAGE, IMAGE, 3)
            noise = random.integers(0, 64, shape, dtype=np.uint8)
            image = noise + (label[..., None] * (7, 11, 13) % 192)
            for folder, array in (('images', image), ('labels', label)):
                file = root / folder / f'{index}.png'
                Image.fromarray(array.astype(np.uint8)).save(file)


PACKAGE = Package(
    name='mmseg',
    weighted=SEG_HEADS,
    register=register_all_modules,
    describe=describe,
    shrink=shrink,
    write_images=write_images,
    first='ade20k',
    retries=dict(no_ignored_pixels=partial(shrink, ignored=False)),
)
