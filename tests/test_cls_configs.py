"""The classification configs that are shipped: overlays on stock twins."""

import functools
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

pytest.importorskip('mmpretrain')
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS

from infobatch_mm import enable
from infobatch_mm.config import check_options
from infobatch_mm.heads import WeightedHeadMixin
from infobatch_mm.pruning.registry import build_policy

CONFIGS = Path(__file__).parents[1] / 'configs'
FOLDERS = ('cifar10', 'cifar100', 'tiny_imagenet', 'imagenet')
FILES = [
    path
    for folder in FOLDERS
    for path in sorted((CONFIGS / folder).glob('*.py'))
]
OVERLAYS = [path for path in FILES if path.stem.startswith('infobatch')]
TWINS = [path for path in FILES if path not in OVERLAYS]
# The families of mmpretrain's configs that the others are based on.
UPSTREAM = {
    'swin-tiny_16xb64_in1k': 'swin_transformer',
    'resnet50_8xb256-rsb-a3-100e_in1k': 'resnet',
    'resnet50_8xb32_in1k': 'resnet',
    'resnet50_8xb16_cifar100': 'resnet',
    'resnet18_8xb16_cifar10': 'resnet',
    'resnet50_8xb16_cifar10': 'resnet',
}
MIXED = ('swin', 'rsb')


@functools.cache
def read(path):
    return Config.fromfile(path)


def load(path):
    """Read a config, of which the caller has a copy."""
    return deepcopy(read(path))


@functools.cache
def read_upstream(stem):
    """Read a config of mmpretrain through a base, as the overlays do."""
    with TemporaryDirectory() as folder:
        file = Path(folder, f'{stem}.py')
        file.write_text(f"_base_ = 'mmpretrain::{UPSTREAM[stem]}/{stem}.py'")
        return Config.fromfile(file)


def stock_of(path):
    """Return the stock twin of an overlay, ours or mmpretrain's."""
    stem = path.stem.partition('_')[2]
    if stem in UPSTREAM:
        return deepcopy(read_upstream(stem))
    return load(path.with_name(f'{stem}.py'))


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_is_what_enable_makes_of_its_twin(path):
    found = load(path).to_dict()
    stock = stock_of(path)
    (hook,) = found['custom_hooks']
    options = {k: v for k, v in hook.items() if k != 'type'}
    expected = enable(stock, **options).to_dict()
    # mmengine's own loop by epochs will do.
    expected['train_cfg'] = stock.train_cfg.to_dict()
    # The scope is what mmengine adds to a base in another package.
    kind = 'infobatch_mm.InfoBatchSampler'
    expected['train_dataloader']['sampler'] = dict(type=kind)
    imports = found.pop('custom_imports')
    assert 'infobatch_mm' in imports['imports']
    assert set(expected.pop('custom_imports')['imports']) == set(
        imports['imports']
    )
    assert found == expected


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_its_hook_is_set_as_its_name_says(path):
    (hook,) = load(path).custom_hooks
    check_options({k: v for k, v in hook.items() if k != 'type'})
    policy = build_policy(hook.policy, hook.delta)
    assert type(policy).__name__ == 'InfoBatchPolicy'
    is_smoothed = 'score_momentum' in hook
    assert is_smoothed == any(name in path.stem for name in MIXED)


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_it_builds_its_head(path):
    cfg = load(path)
    init_default_scope(cfg.default_scope)
    head = MODELS.build(cfg.model.head)
    assert isinstance(head.loss_module, WeightedHeadMixin)
    assert head.num_classes == cfg.data_preprocessor.num_classes


@pytest.mark.parametrize('path', TWINS, ids=lambda path: path.stem)
def test_a_twin_of_ours_gives_class_scores(path):
    cfg = load(path)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        scores = model(torch.zeros(1, 3, 32, 32))
    assert scores.shape == (1, cfg.data_preprocessor.num_classes)


@pytest.mark.parametrize(
    'file, name',
    [
        ('cifar10/resnet18-w8_1xb512-lars-100e_cifar10-10k.py', 'LARS'),
        ('cifar10/resnet18-w8_1xb512-lamb-100e_cifar10-10k.py', 'Lamb'),
        ('imagenet/resnet50_8xb256-lars-coslr-90e_in1k.py', 'LARS'),
        ('imagenet/infobatch_resnet50_8xb256-rsb-a3-100e_in1k.py', 'Lamb'),
    ],
)
def test_large_batches_have_their_optimizer(file, name):
    """Also what mmpretrain excludes of it: norms, of LARS's trust ratio."""
    cfg = load(CONFIGS / file)
    init_default_scope('mmpretrain')
    assert cfg.optim_wrapper.optimizer.type == name
    assert cfg.train_dataloader.batch_size >= 256
    backbone = dict(cfg.model.backbone, depth=18, norm_cfg=dict(type='BN'))
    model = MODELS.build(backbone)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    norm = next(
        group
        for group in optimizer.param_groups
        if group['params'][0] is model.norm1.weight
    )
    assert norm['weight_decay'] == 0
    assert norm.get('lars_exclude', False) == (name == 'LARS')
