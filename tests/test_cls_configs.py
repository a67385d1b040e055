"""The classification configs that are shipped: overlays on stock twins."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

pytest.importorskip('mmpretrain')
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS

from infobatch_mm import enable
from infobatch_mm.config import check_options
from infobatch_mm.heads import WeightedHeadMixin
from infobatch_mm.policies import build_policy

CONFIGS = Path(__file__).parents[1] / 'configs'
FOLDERS = ('cifar10', 'cifar100', 'tiny_imagenet', 'imagenet')
FILES = [
    path for folder in FOLDERS for path in sorted((CONFIGS / folder).glob('*'))
]
OVERLAYS = [path for path in FILES if path.stem.startswith('infobatch')]
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


def stock_of(path, folder):
    """Read the stock twin of an overlay, here or in mmpretrain."""
    stem = path.stem.partition('_')[2]
    if stem not in UPSTREAM:
        return Config.fromfile(path.with_name(f'{stem}.py'))
    file = folder / f'{stem}.py'
    base = f'mmpretrain::{UPSTREAM[stem]}/{stem}.py'
    file.write_text(f'_base_ = {base!r}')
    return Config.fromfile(file)


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_is_what_enable_makes_of_its_twin(path, tmp_path):
    found = Config.fromfile(path).to_dict()
    stock = stock_of(path, tmp_path)
    (hook,) = found['custom_hooks']
    options = {k: v for k, v in hook.items() if k != 'type'}
    expected = enable(stock, **options).to_dict()
    # mmengine's own loop by epochs will do.
    expected['train_cfg'] = stock.train_cfg.to_dict()
    expected['train_dataloader']['sampler'].pop('shuffle')
    imports = found.pop('custom_imports')
    assert 'infobatch_mm' in imports['imports']
    assert set(expected.pop('custom_imports')['imports']) == set(
        imports['imports']
    )
    assert found == expected


@pytest.mark.parametrize('path', OVERLAYS, ids=lambda path: path.stem)
def test_its_hook_is_set_as_its_name_says(path):
    (hook,) = Config.fromfile(path).custom_hooks
    check_options({k: v for k, v in hook.items() if k != 'type'})
    is_quantile = path.stem.startswith('infobatch-quantile')
    kind = 'QuantilePolicy' if is_quantile else 'InfoBatchPolicy'
    policy = build_policy(hook.policy, hook.delta)
    assert type(policy).__name__ == kind
    is_smoothed = 'score_momentum' in hook
    assert is_smoothed == any(name in path.stem for name in MIXED)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_it_builds_its_model(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    is_weighted = isinstance(model.head.loss_module, WeightedHeadMixin)
    assert is_weighted == (path in OVERLAYS)
    classes = cfg.data_preprocessor.num_classes
    assert model.head.num_classes == classes


@pytest.mark.parametrize('name', ['LARS', 'Lamb'])
def test_large_batches_have_their_optimizer(name):
    """Also what mmpretrain excludes of it: norms and biases of LARS."""
    init_default_scope('mmpretrain')
    configs = {path: Config.fromfile(path) for path in FILES}
    found = {
        path: cfg
        for path, cfg in configs.items()
        if cfg.optim_wrapper.optimizer.type == name
    }
    assert {path.parent.name for path in found} == {'cifar10', 'imagenet'}
    for cfg in found.values():
        cfg.model.backbone.pop('norm_cfg', None)  # SyncBN of the bases
        model = MODELS.build(cfg.model)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
        norm = next(
            group
            for group in optimizer.param_groups
            if group['params'][0] is model.backbone.norm1.weight
        )
        assert norm['weight_decay'] == 0
        assert norm.get('lars_exclude', False) == (name == 'LARS')
