"""How the models of mmpretrain are made small.

They keep their heads, and as a rule the number of channels that these are
given.
"""

import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmpretrain.registry import MODELS

from zoo.small import drop_pretrained, parts, unsync_norm

# What the settings of an architecture call the numbers of its blocks.
DEPTHS = (
    'depths', 'depth', 'layers', 'num_layers', 'num_blocks', 'num_se_blocks',
    'blocks',
)  # fmt: skip
# Fewer blocks would change their channels, or are not accepted.
FIXED = (
    'Conformer', 'DenseNet', 'EfficientFormer', 'HiViT', 'LeViT', 'RegNet',
)  # fmt: skip
# These are large, and only take an architecture by its name: the small one
# that stands in for all of them, and the channels that it gives to the head.
STAND_INS = dict(
    EfficientNet=('b0', 1280), PyramidVig=('tiny', 384), Vig=('tiny', 192)
)


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


def settings_of(kind: Any, arch: str) -> Any:
    """Return the settings of an architecture, its name if they do not do."""
    known = getattr(kind, 'arch_zoo', None) or kind.arch_settings
    settings = known.get(arch, known.get(arch.lower()))
    if not isinstance(settings, Mapping) or settings.get('group_layer_map'):
        return arch  # that map counts the layers
    return deepcopy(settings)


def cut_depths(settings: Any) -> None:
    """Leave at most two blocks a stage, in place."""
    if not isinstance(settings, dict):
        return
    for name in DEPTHS:
        depth = settings.get(name)
        if isinstance(depth, int):
            settings[name] = min(2, depth)
        elif depth:
            settings[name] = [min(2, number) for number in depth]
    if 'downscale_indices' in settings:  # MViT has its stages in one row
        settings.update(num_layers=4, downscale_indices=[1, 2, 3])
