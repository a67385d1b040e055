"""ResNet-50 on CIFAR-100, 200 epochs, pruned by quantiles of the scores."""

_base_ = './infobatch_resnet50_8xb16_cifar100.py'

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
