"""ResNet-50 on ImageNet-1K, 100 epochs, pruned by quantiles of the scores."""

_base_ = './infobatch_resnet50_8xb32_in1k.py'

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
