"""Make a config of mmpretrain so small that it trains in seconds on a CPU.

What it keeps as it is, :func:`shrink` says.
"""

import inspect
import json
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmpretrain.models import (
    BaseClassifier,
    BaseRetriever,
    BaseSelfSupervisor,
)
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules
from PIL import Image

from infobatch_mm.config import CLS_HEADS
from zoo.package import (
    BATCH,
    ROUNDS,
    SAMPLES,
    Package,
    Small,
    as_list,
    cut_depths,
    drop_pretrained,
    fit_schedule,
    full_precision,
    num_classes,
    parts,
    resized,
    settings_of,
    small_config,
    unsync_norm,
)

CROP = 64
CROPS = dict(
    EfficientFormer=224,  # these count on the number of pixels
    HiViT=224,
    MixMIMTransformer=224,
    PyramidVig=224,
    VGG=224,
    Vig=224,
    InceptionV3=96,  # the smallest that is left anything of at the end
    LeNet5=32,
    ResNet_CIFAR=32,  # its images have 32
)
# Data sets of which an image has several labels.
SEVERAL_LABELS = ('VOC',)
# Fewer blocks would change their channels, or are not accepted.
FIXED = (
    'Conformer', 'DenseNet', 'EfficientFormer', 'HiViT', 'LeViT', 'RegNet',
)  # fmt: skip
# These are large, and only take an architecture by its name: the small one
# that stands in for all of them, and the channels that it gives to the head.
STAND_INS = dict(
    EfficientNet=('b0', 1280), PyramidVig=('tiny', 384), Vig=('tiny', 192)
)


# What tells models apart, and which of them classify


def describe(model: Any) -> str:
    """Return the types of a model, its head and loss, and how it mixes."""
    if not model:
        return 'no model'
    head = model.get('head')
    if not isinstance(head, dict):
        return model.type
    loss = head.get('loss') or {}
    words = [loss.get('type', 'CrossEntropyLoss').removesuffix('Loss')]
    words += [loss['mode']] if 'mode' in loss else []
    words += [name for name in ('use_soft', 'use_sigmoid') if loss.get(name)]
    settings = '' if words == ['CrossEntropy'] else f'({", ".join(words)})'
    kind = '' if model.type == 'ImageClassifier' else f'{model.type}: '
    augments = (model.get('train_cfg') or {}).get('augments')
    mixing = [f' + {augment["type"]}' for augment in as_list(augments)]
    return f'{kind}{head["type"]}{settings}{"".join(mixing)}'


# What the models of several modalities do, by what is in a config's name.
TASKS = {
    'caption': 'captioning',
    'nocaps': 'captioning',
    'vqa': 'visual question answering',
    'gqa': 'visual question answering',
    'nlvr': 'visual reasoning',
    'refcoco': 'visual grounding',
    'retrieval': 'retrieval',
    'zeroshot-cls': 'zero-shot classification',
}


def out_of_scope(name: str, cfg: Config | None) -> tuple[str, str] | None:
    """Return a status and a reason for a config that trains no classifier."""
    if 'mask-rcnn' in name:  # whose bases are mmdet's
        return 'not classification', 'detection'
    if cfg is None:
        return None
    if not cfg.get('model'):
        return 'not classification', 'no model: a part of other configs'
    kind = MODELS.get(cfg.model.type)
    if not inspect.isclass(kind):  # what it needs is not installed
        kind = object
    if issubclass(kind, BaseSelfSupervisor):
        return 'not classification', 'self-supervised pretraining'
    task = next((TASKS[word] for word in TASKS if word in name), '')
    if task and not issubclass(kind, (BaseClassifier, BaseRetriever)):
        return 'not classification', task
    for part in ('train_dataloader', 'train_cfg'):
        if not cfg.get(part):
            return 'does not train', f'the config has no {part}'
    return None


# The small config


def shrink(cfg: Config, lr_factor: float = 1.0) -> Small:
    """Return the training part of a stock config, so small that it is quick.

    The head and its loss, the neck, the mixing of images and the transforms
    of the data stay what they are but for the size of images; weights are
    random, backbones of repeated blocks have fewer of them.

    Args:
        cfg (Config): The stock config.
        lr_factor (float): Factor on the learning rate, which is meant for
            batches of hundreds.
    """
    crop = max(CROPS.get(str(p.get('type')), 0) for p in parts(cfg.model))
    crop = crop or CROP
    model = deepcopy(cfg.model)
    # As the runner takes it.
    model.setdefault('data_preprocessor', cfg.get('data_preprocessor') or {})
    notes = make_small(model, crop)
    loader = cfg.train_dataloader
    optim_wrapper, precision = full_precision(cfg.optim_wrapper)
    if lr_factor != 1:
        optim_wrapper.optimizer.lr *= lr_factor
    small = small_config(
        cfg,
        model=model,
        loader=dict(
            # As mmpretrain's tools/train.py sets it.
            collate_fn=loader.get('collate_fn')
            or dict(type='default_collate'),
            dataset=small_dataset(loader.dataset, model, crop),
        ),
        train_cfg=small_loop(cfg.train_cfg),
        optim_wrapper=optim_wrapper,
        param_scheduler=[
            small_scheduler(scheduler, cfg)
            for scheduler in as_list(cfg.get('param_scheduler'))
        ],
    )
    notes += precision
    if cfg.get('strategy'):
        notes.append(f'one process instead of {cfg.strategy.type}')
    return small, notes


# The small model: as a rule its head is given as many channels


def make_small(model: Any, crop: int) -> list[str]:
    """Let a model build and run fast, in place; return notes on how."""
    notes = []
    model.pop('pretrained', None)
    for part in parts(model):
        drop_pretrained(part)
        unsync_norm(part)
    for part in parts([model.get('backbone'), model.get('image_encoder')]):
        kind = MODELS.get(str(part.get('type')))
        if not inspect.isclass(kind):
            continue
        before = deepcopy(part)
        make_shallow(part, kind)
        if part != before:
            notes.append(f'{part["type"]} of less depth')
        resize(part, inspect.signature(kind).parameters, crop)
    backbone = model.get('backbone', {})
    if backbone.get('type') in STAND_INS:
        backbone.arch, channels = STAND_INS[backbone.type]
        model.head.in_channels = channels
        notes.append(f'{backbone.type} {backbone.arch}')
    return notes


def resize(
    backbone: Any, known: Mapping[str, inspect.Parameter], crop: int
) -> None:
    """Tell a backbone the size of its images, in place.

    Args:
        backbone (dict): Its config.
        known (dict): The parameters of its class.
        crop (int): Side of an image.
    """
    # Some pass it on to their base class, which gets it among kwargs.
    if 'img_size' in known or 'img_size' in backbone:
        size = backbone.get('img_size') or known['img_size'].default
        is_pair = isinstance(size, (list, tuple))
        backbone['img_size'] = (crop, crop) if is_pair else crop
    if 'pad_small_map' in known:
        backbone['pad_small_map'] = True


def make_shallow(backbone: Any, kind: Any) -> None:
    """Cut the depth of a backbone, which leaves its channels, in place.

    Args:
        backbone (dict): Its config.
        kind (type): Its class.
    """
    name, depth = kind.__name__, backbone.get('depth')
    if name == 'VGG':
        backbone.depth = 11
    elif name.startswith(('Res', 'SERes')) and depth and depth > 50:
        backbone.depth = 50
    elif name == 'EfficientNetV2' and backbone.arch in ('m', 'l', 'xl'):
        backbone.arch = 's'
    elif name in ('XCiT', 'T2T_ViT'):
        cut_depths(backbone)
    elif 'arch' in backbone and name not in (*FIXED, *STAND_INS):
        backbone.arch = settings_of(kind, backbone.arch)
        cut_depths(backbone.arch)
    if 'frozen_stages' in backbone and isinstance(backbone.get('arch'), dict):
        layers = backbone.arch.get('num_layers', backbone.frozen_stages)
        backbone.frozen_stages = min(layers, backbone.frozen_stages)


def small_loop(train_cfg: Any) -> dict[str, Any]:
    """Return the config of a loop by epochs, of few of them."""
    kept = {k: v for k, v in train_cfg.items() if k in ('type', 'by_epoch')}
    return dict(kept, max_epochs=ROUNDS)


def small_scheduler(scheduler: Any, cfg: Config) -> Any:
    """Return a scheduler whose warm-up and end fit the small budget."""
    by_epoch = scheduler.get('by_epoch', True)
    budget = ROUNDS if by_epoch else ROUNDS * SAMPLES // BATCH
    # How many iterations the full run has is not known. What has no end is
    # taken to last as long as what was before it.
    end = scheduler.get('end') or 2 * scheduler.get('begin', 0) or 1
    full = cfg.train_cfg.max_epochs if by_epoch else end
    return fit_schedule(
        scheduler,
        ('begin', 'end', 'T_max'),
        budget=budget,
        full=full,
        least=1,
    )


# The data


def small_dataset(dataset: Any, model: Any, crop: int) -> Any:
    """Return the config of a data set of synthetic images."""
    several = dataset.type in SEVERAL_LABELS
    classes = num_classes(model)
    sizes = dict.fromkeys(('scale', 'crop_size', 'size'), crop)
    pipeline = [resized(t, sizes) for t in dataset.pipeline]
    if pipeline[0]['type'] != 'LoadImageFromFile':  # those of CIFAR are read
        pipeline.insert(0, dict(type='LoadImageFromFile'))
    if len(model.data_preprocessor.get('mean', ())) == 1:
        pipeline[0]['color_type'] = 'grayscale'
    return dict(
        type='MultiLabelDataset' if several else 'CustomDataset',
        data_root=f'{classes}_classes',
        data_prefix='',
        ann_file='labels.json' if several else 'labels.txt',
        metainfo=dict(classes=tuple(map(str, range(classes)))),
        pipeline=pipeline,
    )


def write_images(dataset: Any) -> None:
    """Write the files of a synthetic data set: noise, brighter by class."""
    leaf = next(part for part in parts(dataset) if 'pipeline' in part)
    classes, root = leaf.metainfo.classes, Path(leaf.data_root)
    root.mkdir()
    random = np.random.default_rng(0)
    labels = np.resize(random.permutation(len(classes)), SAMPLES).tolist()
    lines, data_list = [], []
    for index, label in enumerate(labels):
        pixels = random.integers(0, 64, (CROP, CROP, 3), dtype=np.uint8)
        pixels += np.array([label * k % 192 for k in (7, 11, 13)], np.uint8)
        name = f'{index}.png'
        Image.fromarray(pixels).save(root / name)
        lines.append(f'{name} {label}\n')
        several = sorted({label, index % len(classes)})
        data_list.append(dict(img_path=name, gt_label=several))
    (root / 'labels.txt').write_text(''.join(lines))
    annotations = dict(metainfo=dict(classes=classes), data_list=data_list)
    (root / 'labels.json').write_text(json.dumps(annotations))


PACKAGE = Package(
    name='mmpretrain',
    weighted=CLS_HEADS,
    register=register_all_modules,
    describe=describe,
    shrink=shrink,
    write_images=write_images,
    out_of_scope=out_of_scope,
    refusals=("sampler.type is 'RepeatAugSampler'",),
    retries=dict(small_learning_rate=partial(shrink, lr_factor=0.01)),
)
