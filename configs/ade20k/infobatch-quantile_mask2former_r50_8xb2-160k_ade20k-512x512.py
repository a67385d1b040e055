"""Mask2Former-R50 on ADE20K, 160k, pruned by quantiles of the scores.

Full-data budget: 160,000 iterations of 16 images (8 x 2), 126.7 passes
over 20,210 images in 1,263 iterations each. The run has 127 rounds: the
first is full, 110 are pruned, 16 from delta on are full. A pruned round
keeps a quarter of the lowest 20 % of the scores, half of the next 65 % and
all others: 10,608 images in 663 iterations, whatever the scores are. So the
run takes 94,000 iterations and saves 41.25 %.

It needs mmdet. AdamW and clipping count real steps, so a pruned round moves
the model less than a full one (docs/caveats.md).
"""

_base_ = './infobatch_mask2former_r50_8xb2-160k_ade20k-512x512.py'

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
