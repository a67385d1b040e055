"""The pruned 160k config, run to its end on the few images of a sample.

It shows that pipeline, model and pruning work at 512x512 and without a GPU,
not what accuracy they reach: 8 rounds over 4 images, from scratch. The first
is full, the last too (delta 0.875), the six between are pruned. By quantiles:
of so few samples often too few lie below the mean to save a batch.

Full-data budget: 32 iterations of 2 samples, 4 a round. A pruned round keeps
6 of 8 samples in 3 iterations, so the run takes 26 and saves 18.75 %. One
takes about 40 s on one thread.

The 4 official and 3 derived pairs lie in two folders; check both:
    infobatch prepare ade20k data/ade20k_sample/ADEChallengeData2016 --sample
    infobatch prepare ade20k data/ade20k_sample/extra_derived --sample
"""

_base_ = './infobatch_upernet_r50_4xb4-160k_ade20k-512x512.py'

custom_hooks = [
    dict(
        type='infobatch_mm.InfoBatchHook',
        policy=dict(
            type='QuantilePolicy',
            quantiles=(0.2, 0.85),
            prune_ratios=(0.75, 0.5),
        ),
        delta=0.875,
        pacing='fewer_steps',  # a batch of 2 can be made no smaller
    )
]

# Each image counts twice: 8 samples, cropped and scored apart.
max_iters = 8 * 4
official = 'data/ade20k_sample/ADEChallengeData2016'
derived = 'data/ade20k_sample/extra_derived'
folders = dict(img_path='images/training', seg_map_path='annotations/training')
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='RepeatDataset',
            times=2,
            dataset=dict(
                type='ConcatDataset',
                datasets=[
                    dict(
                        type='ADE20KDataset',
                        data_root=data_root,
                        data_prefix=folders,
                        pipeline={{_base_.train_pipeline}},
                    )
                    for data_root in (official, derived)
                ],
            ),
        )
    ),
)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=official))
test_dataloader = val_dataloader

# One process and no download: plain batch norm, and weights from scratch.
norm_cfg = dict(type='BN')
model = dict(
    pretrained=None,
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(head=dict(norm_cfg=norm_cfg)),
    auxiliary_head=dict(head=dict(norm_cfg=norm_cfg)),
)
param_scheduler = [
    dict(
        type='PolyLR',
        eta_min=1e-4,
        power=0.9,
        begin=0,
        end=max_iters,
        by_epoch=False,
    )
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval=max_iters)
)
randomness = dict(seed=0)
