"""The narrow ResNet-18 on 10,000 images, pruned below the mean score."""

_base_ = './resnet18-w8_1xb128-100e_cifar10-10k.py'

custom_imports = dict(
    imports=['infobatch_mm', 'infobatch_mm.cifar'], allow_failed_imports=False
)

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
    )
]
