"""Unpruned: a small UPerNet on scenes of handwritten digits, 20 epochs.

The scenes are composed on the fly from the digits that scikit-learn ships,
so nothing is downloaded; one run takes a few minutes on two CPU cores.
"""

custom_imports = dict(
    imports=['infobatch_mm.digit_scenes'], allow_failed_imports=False
)
default_scope = 'mmseg'

# Data: 1,536 / 256 scenes of 10 digits and background.
size = 48
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='DigitScenes',
        split='train',
        num_scenes=1536,
        size=size,
        pipeline=[dict(type='PackSegInputs')],
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='DigitScenes',
        split='val',
        num_scenes=256,
        size=size,
        pipeline=[dict(type='PackSegInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

# Model: the first three stages of a ResNet-18, a quarter as wide.
norm_cfg = dict(type='BN', requires_grad=True)
# Four pixels of five are background; at full weight it hides the digits for
# many epochs, and at too low a weight strokes come out too thick.
class_weight = [0.5] + [1.0] * 10
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(size, size),
    ),
    backbone=dict(
        type='ResNetV1c',
        depth=18,
        stem_channels=16,
        base_channels=16,
        num_stages=3,
        out_indices=(0, 1, 2),
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
    ),
    decode_head=dict(
        type='UPerHead',
        in_channels=[16, 32, 64],
        in_index=[0, 1, 2],
        pool_scales=(1, 2),
        channels=32,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=1.0,
            class_weight=class_weight,
        ),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=64,
        in_index=2,
        channels=32,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=0.4,
            class_weight=class_weight,
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

# Schedule, counted in epochs. Momentum SGD, so that a pruned epoch moves the
# model about as far as a full one does.
max_epochs = 20
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.2, momentum=0.9, weight_decay=0.0005),
)
param_scheduler = [
    dict(
        type='PolyLR',
        power=0.9,
        eta_min=1e-4,
        begin=0,
        end=max_epochs,
        by_epoch=True,
    )
]
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# Runtime: one line of log an epoch, one checkpoint, at the end.
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=1000, ignore_last=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', interval=max_epochs, max_keep_ckpts=1
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer'
)
# `mean_time` is the mean over all iterations so far: times `iter`, it is the
# time spent in training, without validation.
log_processor = dict(
    by_epoch=True,
    custom_cfg=[
        dict(
            data_src='time',
            log_name='mean_time',
            method_name='mean',
            window_size='global',
        )
    ],
)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)
