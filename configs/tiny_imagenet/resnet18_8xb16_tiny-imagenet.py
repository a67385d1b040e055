"""Unpruned: ResNet-18 on Tiny-ImageNet (64x64), trained as on CIFAR-100.

Prepare the data first: `infobatch prepare tiny-imagenet FOLDER` gives
training and validation images the same labels.
"""

_base_ = 'mmpretrain::resnet/resnet50_8xb16_cifar100.py'

data_preprocessor = dict(
    num_classes=200,
    mean=[122.45, 114.27, 101.36],
    std=[70.63, 68.62, 71.94],
    to_rgb=True,
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=64, padding=8),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/tiny-imagenet-200',
        data_prefix='train',
        ann_file='meta/train.txt',
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/tiny-imagenet-200',
        data_prefix='val',
        ann_file='meta/val.txt',
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 5))
test_evaluator = val_evaluator
model = dict(
    backbone=dict(depth=18), head=dict(num_classes=200, in_channels=512)
)
