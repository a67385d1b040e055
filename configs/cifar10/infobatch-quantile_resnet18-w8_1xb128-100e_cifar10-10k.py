"""The narrow ResNet-18 on 10,000 images, pruned by quantiles of the scores."""

_base_ = './infobatch_resnet18-w8_1xb128-100e_cifar10-10k.py'

custom_hooks = [
    dict(
        type='infobatch_mm.InfoBatchHook',
        policy=dict(
            type='QuantilePolicy',
            quantiles=(0.2, 0.85),
            prune_ratios=(0.75, 0.5),
        ),
        delta=0.875,
    )
]
