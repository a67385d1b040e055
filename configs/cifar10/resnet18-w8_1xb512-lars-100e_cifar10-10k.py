"""Unpruned: the narrow ResNet-18 on 10,000 images with LARS, batch 512."""

_base_ = './resnet18-w8_1xb128-100e_cifar10-10k.py'

train_dataloader = dict(batch_size=512)
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='LARS', lr=4.8, momentum=0.9, weight_decay=5e-4
    ),
    # As mmpretrain sets LARS: norms and biases without its trust ratio.
    paramwise_cfg=dict(
        custom_keys={
            'bn': dict(decay_mult=0.0, lars_exclude=True),
            'bias': dict(decay_mult=0.0, lars_exclude=True),
            'downsample.1': dict(decay_mult=0.0, lars_exclude=True),
        }
    ),
)
default_hooks = dict(logger=dict(interval=20))
