"""python -m zoo check --package mmpretrain."""

from copy import deepcopy

import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmpretrain')
import cls_toys
import test_zoo
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS

from zoo import subject
from zoo.package import config_root, load_package

MMPRETRAIN = load_package('mmpretrain')
MIXUP = dict(type='Mixup', alpha=0.8)
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]


@MODELS.register_module()
class LeakyClsHead(LinearClsHead):
    """Adds a loss past the loss module, where no weight reaches it."""

    def loss(self, feats, data_samples, **kwargs):
        losses = super().loss(feats, data_samples, **kwargs)
        return losses | dict(loss_leak=self(feats).square().mean())


@MODELS.register_module()
class SqueezingClsHead(LinearClsHead):
    """Has no gradient for one image alone, as LeNet5."""

    def forward(self, feats):
        return super().forward(feats).squeeze()


@MODELS.register_module()
class BriefClsHead(LinearClsHead):
    """Has a gradient for its first batches only, as if it had learnt all."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer('batches', torch.tensor(0))

    def forward(self, feats):
        self.batches += 1
        return super().forward(feats) * (self.batches < 5)


def write_config(root, name, **settings):
    config = dict(
        default_scope='mmpretrain',
        model=cls_toys.model(pruned=False),
        train_dataloader=dict(
            batch_size=32,
            num_workers=4,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(type='ImageNet', pipeline=PIPELINE),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=100, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=[
            dict(type='LinearLR', end=5, convert_to_iter_based=True),
            dict(type='CosineAnnealingLR', begin=5, T_max=95),
        ],
    )
    test_zoo.write_settings(root, name, **config | settings)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A folder of configs in place of mmpretrain's."""
    test_zoo.use_folder(tmp_path, monkeypatch)
    return tmp_path


def check(zoo, *args):
    return test_zoo.check(zoo, '--package', 'mmpretrain', *args)


def stock(name):
    root = config_root('mmpretrain')
    return Config.fromfile(root / f'{name}.py')


# What is selected


DESCRIPTIONS = {
    'resnet/resnet50_8xb32_in1k': 'LinearClsHead',
    'swin_transformer/swin-tiny_16xb64_in1k': (
        'LinearClsHead(LabelSmooth, original) + Mixup + CutMix'
    ),
    'vgg/vgg16_8xb16_voc': 'MultiLabelClsHead(CrossEntropy, use_sigmoid)',
    'arcface/resnet50-arcface_8xb32_inshop': (
        'ImageToImageRetriever: ArcFaceClsHead'
    ),
    'mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k': (
        'MAE: MAEPretrainHead(PixelReconstruction)'
    ),
}


@pytest.mark.parametrize('name', DESCRIPTIONS)
def test_models_are_told_apart_by_head_loss_and_mixing(name):
    model = stock(name).model
    assert MMPRETRAIN.describe(model) == DESCRIPTIONS[name]


OUT_OF_SCOPE = {
    'mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k': (
        'not classification',
        'self-supervised pretraining',
    ),
    'blip/blip-base_8xb32_nocaps': ('not classification', 'captioning'),
    'resnest/_randaug_policies': (
        'not classification',
        'no model: a part of other configs',
    ),
    'sam/vit-base-p16_sam_headless': (
        'does not train',
        'the config has no train_dataloader',
    ),
    'resnet/resnet50_8xb32_in1k': None,
    'arcface/resnet50-arcface_8xb32_inshop': None,
}


@pytest.mark.parametrize('name', OUT_OF_SCOPE)
def test_what_trains_no_classifier_is_said_to(name):
    assert MMPRETRAIN.out_of_scope(name, stock(name)) == OUT_OF_SCOPE[name]


# What is made small


@pytest.mark.parametrize(
    'name',
    [
        'resnet/resnet101_8xb16_cifar10',
        'swin_transformer/swin-large_16xb64_in1k-384px',
        'tinyvit/tinyvit-21m-distill_8xb256_in1k-512px',
        'vision_transformer/vit-base-p16_8xb64-lora_in1k-384px',
        'mocov3/benchmarks/vit-base-p16_8xb128-linear-coslr-90e_in1k',
    ],
)
def test_a_small_config_has_the_head_of_the_stock_one(name):
    cfg = stock(name)
    before = cfg.to_dict()
    small, notes = MMPRETRAIN.shrink(cfg)
    assert cfg.to_dict() == before
    assert len(notes) == 1 and notes[0].endswith(' of less depth')
    head = deepcopy(cfg.model.head)
    head.pop('init_cfg', None), small.model.head.pop('init_cfg', None)
    assert small.model.head == head
    assert small.model.get('train_cfg') == cfg.model.get('train_cfg')
    assert small.model.data_preprocessor == cfg.data_preprocessor
    assert 'Pretrained' not in str(small) and 'http' not in str(small)
    types = [t.type for t in small.train_dataloader.dataset.pipeline]
    stock_types = [t.type for t in cfg.train_dataloader.dataset.pipeline]
    assert types[-len(stock_types) :] == stock_types
    assert types[0] == 'LoadImageFromFile'


def test_what_is_wide_is_stood_in_for_and_the_head_is_told():
    name = 'efficientnet/efficientnet-l2_8xb32_in1k-475px'
    small, notes = MMPRETRAIN.shrink(stock(name))
    assert notes == ['EfficientNet b0']
    assert small.model.head.in_channels == 1280


def test_a_small_schedule_has_all_parts_of_the_stock_one():
    # Its second part has no end in the config.
    small, _ = MMPRETRAIN.shrink(
        stock('shufflenet_v1/shufflenet-v1-1x_16xb64_in1k')
    )
    first, second = small.param_scheduler
    assert (first.begin, first.end) == (0, 12)
    assert second.begin == 6 and 'end' not in second


# What passes and what fails


@pytest.fixture(scope='module')
def passing(tmp_path_factory):
    """Records of configs that pass, all of one run of the command."""
    folder = tmp_path_factory.mktemp('zoo')
    models = dict(
        plain=dict(),
        mixing=dict(train_cfg=dict(augments=[MIXUP])),
        brief=dict(head=cls_toys.linear_head(type='BriefClsHead')),
        squeezing=dict(head=cls_toys.linear_head(type='SqueezingClsHead')),
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        test_zoo.use_folder(folder, monkeypatch)
        for name, settings in models.items():
            model = cls_toys.model(pruned=False, **settings)
            write_config(folder, name, model=model)
        fast = dict(optimizer=dict(type='SGD', lr=1e4))
        write_config(folder, 'fast', optim_wrapper=fast)
        status, records = check(folder, '--jobs', '2')
    assert status == 0
    for record in records.values():
        assert record['status'] == 'passed' and 'same_as' not in record
    return records


@pytest.mark.parametrize('name', ['plain', 'mixing'])
def test_a_sound_head_passes_also_with_mixed_images(passing, name):
    record = passing[f'{name}.py']
    probes = record['probes']
    assert len(probes) == 7
    assert all(isinstance(error, float) for error in probes.values())
    assert record['rounds'][0] == 8 and min(record['rounds']) < 8
    mixing = ' + Mixup' if name == 'mixing' else ''
    assert record['heads'] == f'LinearClsHead{mixing}'


def test_a_head_without_a_gradient_left_is_measured_untrained(passing):
    assert passing['brief.py']['untrained']
    assert 'untrained' not in passing['plain.py']


def test_a_learning_rate_too_large_for_small_batches_is_cut(passing):
    assert 'NaN' in passing['fast.py']['small_learning_rate']
    assert 'small_learning_rate' not in passing['plain.py']


def test_a_head_that_takes_no_single_image_is_not_compared_with_one(passing):
    probes = passing['squeezing.py']['probes']
    assert probes['scores'] == 0
    reason = 'n/a: stock, on one image: size mismatch'
    for name in ('scores_alone', 'single_images'):
        assert probes[name].startswith(reason)


@pytest.mark.parametrize('side', ['input', 'gradient'])
def test_a_batch_norm_has_the_gradients_of_one_transposed_image(side):
    norm = torch.nn.BatchNorm2d(3).double().eval()
    subject.lay_out(norm)

    def forward(values):
        if side == 'input':  # from (B, H * W, C)
            return norm(values.transpose(1, 2).reshape(-1, 3, 2, 2))
        return norm(values).flatten(2).transpose(1, 2)

    shape = (1, 4, 3) if side == 'input' else (1, 3, 2, 2)
    values = torch.randn(shape, dtype=torch.double, requires_grad=True)
    # A hook is not made to be given None for a gradient.
    assert torch.autograd.gradcheck(
        forward, values, check_undefined_grad=False
    )


def test_what_is_single_enters_a_convolution_in_double():
    conv = torch.nn.Conv2d(3, 3, 1)
    subject.to_double(conv)
    assert conv(torch.randn(1, 3, 2, 2)).dtype == torch.double


def test_other_keys_and_shapes_are_noticed():
    subject.compare_keys(torch.nn.Linear(2, 3), torch.nn.Linear(2, 3))
    for other in (torch.nn.Linear(3, 3), torch.nn.Linear(2, 3, bias=False)):
        with pytest.raises(RuntimeError, match='weight|bias'):
            subject.compare_keys(other, torch.nn.Linear(2, 3))


def test_of_each_config_is_said_why_it_did_not_pass(zoo):
    leaky = cls_toys.linear_head(type='LeakyClsHead')
    write_config(zoo, 'leaky', model=cls_toys.model(pruned=False, head=leaky))
    loader = dict(
        batch_size=32,
        sampler=dict(type='RepeatAugSampler', shuffle=True),
        dataset=dict(type='ImageNet', pipeline=PIPELINE),
    )
    write_config(zoo, 'repeating', train_dataloader=loader)
    write_config(zoo, 'blip_caption', model=dict(type='BlipCaption'))
    write_config(zoo, 'caption')
    write_config(zoo, 'headless', train_dataloader=None)
    (zoo / 'broken.py').write_text("_base_ = 'nothing.py'")
    report = zoo / 'report.md'
    status, records = check(zoo, '--jobs', '2', '--markdown', str(report))
    assert status == 1
    statuses = {name: r['status'] for name, r in records.items()}
    assert statuses == {
        'leaky.py': 'FAILED',
        'repeating.py': 'refused',
        'blip_caption.py': 'not classification',
        'caption.py': 'passed',
        'headless.py': 'does not train',
        'broken.py': 'upstream',
    }
    reason = records['leaky.py']['reason']
    assert 'sample weights at zero these parameters still' in reason
    text = report.read_text()
    assert '| all | 6 | 4 | 1 | 1 | 0 | 1 | 1 | 1 | 1 | 1 |' in text
    assert '| not classification | captioning | 1 |' in text
    assert 'ADE20K' not in text and 'ignored' not in text
