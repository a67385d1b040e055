"""The suite `digits`: a tiny segmentor on 1,024 scenes, 60 passes.

Small scenes, kept in memory, and iterations of 32 scenes, so that a core
trains a run to its plateau in a few minutes.
"""

_base_ = '../../configs/quickstart/upernet_tiny_1xb16-20e_digits-48x48.py'

size = 32
num_scenes = 1024
passes = 60
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(num_scenes=num_scenes, size=size, cached=True),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(num_scenes=1024, size=size, cached=True),
)
test_dataloader = val_dataloader

head = dict(
    _delete_=True,
    type='FCNHead',
    in_channels=[16, 32, 64],
    in_index=[0, 1, 2],
    input_transform='resize_concat',
    channels=32,
    num_convs=1,
    concat_input=False,
    dropout_ratio=0.1,
    num_classes=11,
    norm_cfg={{_base_.norm_cfg}},
    align_corners=False,
    loss_decode=dict(
        type='CrossEntropyLoss',
        use_sigmoid=False,
        loss_weight=1.0,
        class_weight={{_base_.class_weight}},
    ),
)
model = dict(
    data_preprocessor=dict(size=(size, size)),
    decode_head=head,
    auxiliary_head=None,
)

iters_a_pass = num_scenes // 32
max_iters = passes * iters_a_pass
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=1e-4, end=max_iters, by_epoch=False)
]
train_cfg = dict(
    _delete_=True,
    type='IterBasedTrainLoop',
    max_iters=max_iters,
    val_interval=10 * iters_a_pass,
)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(interval=iters_a_pass, log_metric_by_epoch=False),
    # A cell is done in minutes: one that is cut off begins anew.
    checkpoint=dict(interval=max_iters + 1, save_last=False, by_epoch=False),
)
