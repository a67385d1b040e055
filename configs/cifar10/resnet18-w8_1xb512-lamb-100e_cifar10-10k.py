"""Unpruned: the narrow ResNet-18 on 10,000 images with LAMB, batch 512."""

_base_ = './resnet18-w8_1xb128-100e_cifar10-10k.py'

train_dataloader = dict(batch_size=512)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='Lamb', lr=0.02, weight_decay=0.02),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0),
)
default_hooks = dict(logger=dict(interval=20))
