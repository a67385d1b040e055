"""ResNet-50 on ImageNet-1K with LAMB, batch 2048, pruned below the mean score.

Mixup and CutMix make the losses noisy and mix pruned partners in unequal
shares (docs/classification.md): scores are averages, and all data is used
until there is one.
"""

_base_ = 'mmpretrain::resnet/resnet50_8xb256-rsb-a3-100e_in1k.py'

custom_imports = dict(imports=['infobatch_mm'], allow_failed_imports=False)

train_dataloader = dict(
    sampler=dict(_delete_=True, type='infobatch_mm.InfoBatchSampler'),
    dataset=dict(
        _delete_=True,
        type='infobatch_mm.IndexedDataset',
        dataset={{_base_.train_dataloader.dataset}},
    ),
)
model = dict(
    head=dict(
        _delete_=True,
        type='infobatch_mm.WeightedClsHead',
        head={{_base_.model.head}},
    )
)
custom_hooks = [
    dict(
        type='infobatch_mm.InfoBatchHook',
        policy=dict(type='InfoBatchPolicy', prune_ratio=0.5),
        delta=0.875,
        pacing='smaller_batches',  # the paper's: 'fewer_steps'
        score_momentum=0.8,
        warmup_rounds=5,
    )
]
