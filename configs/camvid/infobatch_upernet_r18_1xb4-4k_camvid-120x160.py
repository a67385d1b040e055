"""The config of the same name without infobatch_, by iterations, pruned."""

_base_ = './upernet_r18_1xb4-4k_camvid-120x160.py'

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
    decode_head=dict(
        _delete_=True,
        type='infobatch_mm.WeightedDecodeHead',
        head={{_base_.model.decode_head}},
    ),
    auxiliary_head=dict(
        _delete_=True,
        type='infobatch_mm.WeightedDecodeHead',
        head={{_base_.model.auxiliary_head}},
    ),
)
custom_hooks = [
    dict(
        type='infobatch_mm.InfoBatchHook',
        policy=dict(type='InfoBatchPolicy', prune_ratio=0.5),
        delta=0.875,
        pacing='smaller_batches',  # the paper's: 'fewer_steps'
    )
]
train_cfg = dict(type='infobatch_mm.InfoBatchIterBasedTrainLoop')
