"""UPerNet-R50 on ADE20K, 160k, pruned below the mean score.

Full-data budget: 160,000 iterations of 16 images (4 x 4), 126.7 passes
over 20,210 images in 1,263 iterations each. The run has 127 rounds: the
first is full, 110 are pruned, 16 from delta on are full. With a share s
of the images below the mean, the batches of a pruned round are smaller by
s / 2 on average and the run saves 0.434 s of the samples. Which s ADE20K has
was not measured; 60 % is about what CamVid has. In fewer steps, the paper's
way, it then runs 118,310 iterations and saves 26.1 %, in smaller batches as
much in all 160,000.
"""

_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'

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
