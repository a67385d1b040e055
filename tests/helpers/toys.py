"""A real but tiny mmseg run, the common ground of the tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from processes import PACING

from infobatch_mm.digit_scenes import DigitScenes

# For names: mmengine keeps loggers, message hubs and visualizers by them.
NUMBERS = count()

NORM = dict(type='BN', requires_grad=True)


@DATASETS.register_module()
class FlakyScenes(DigitScenes):
    """Scenes of which some cannot be loaded, so that others replace them."""

    def __init__(self, broken: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.broken = broken

    def prepare_data(self, idx: int) -> Any:
        return None if idx in self.broken else super().prepare_data(idx)


def uper_head(**settings: Any) -> dict:
    return (
        dict(
            type='UPerHead',
            in_channels=[8, 16, 32, 64],
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2),
            channels=8,
            dropout_ratio=0.0,
            num_classes=11,
            norm_cfg=NORM,
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', loss_weight=1.0),
        )
        | settings
    )


def fcn_head(**settings: Any) -> dict:
    return (
        dict(
            type='FCNHead',
            in_channels=32,
            in_index=2,
            channels=8,
            num_convs=1,
            concat_input=False,
            dropout_ratio=0.0,
            num_classes=11,
            norm_cfg=NORM,
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4),
        )
        | settings
    )


def weighted(head: dict) -> dict:
    return dict(type='WeightedDecodeHead', head=head)


def model(*, pruned: bool, decode: Any = None, auxiliary: Any = None) -> dict:
    wrap = weighted if pruned else deepcopy
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[127.5] * 3,
            std=[63.75] * 3,
            size=(32, 32),
            seg_pad_val=255,
        ),
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            stem_channels=8,
            base_channels=8,
            norm_cfg=NORM,
            norm_eval=False,
            strides=(1, 2, 2, 2),
            dilations=(1, 1, 1, 1),
            out_indices=(0, 1, 2, 3),
        ),
        decode_head=wrap(decode or uper_head()),
        auxiliary_head=wrap(auxiliary or fcn_head()),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def scenes(num_scenes: int, **settings: Any) -> dict:
    return (
        dict(
            type='DigitScenes',
            split='train',
            num_scenes=num_scenes,
            size=32,
            pipeline=[dict(type='PackSegInputs')],
        )
        | settings
    )


def config(
    work_dir: Any,
    *,
    pruned: bool = True,
    samples: int = 24,
    batch_size: int = 4,
    epochs: int = 4,
    policy: dict | None = None,
    delta: float = 0.875,
    pacing: str | None = None,
    workers: int = 0,
    **overrides: Any,
) -> Config:
    """Return an epoch-based run, stock or pruned; overrides are merged."""
    dataset = scenes(samples)
    sampler = dict(type='DefaultSampler', shuffle=True)
    hooks = []
    if pruned:
        dataset = dict(type='IndexedDataset', dataset=dataset)
        sampler = dict(type='InfoBatchSampler')
        policy = policy or dict(type='InfoBatchPolicy', prune_ratio=0.5)
        hook = dict(type='InfoBatchHook', policy=policy, delta=delta)
        hook.update(PACING if pacing is None else dict(pacing=pacing))
        hooks = [hook]
    name = f'toy_{next(NUMBERS)}'
    cfg = Config(
        dict(
            default_scope='mmseg',
            work_dir=str(work_dir),
            experiment_name=name,
            model=model(pruned=pruned),
            train_dataloader=dict(
                batch_size=batch_size,
                num_workers=workers,
                persistent_workers=workers > 0,
                sampler=sampler,
                dataset=dataset,
            ),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs),
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
            ),
            param_scheduler=[
                dict(type='PolyLR', power=0.9, by_epoch=True, end=epochs)
            ],
            custom_hooks=hooks,
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1000)
            ),
            visualizer=dict(
                type='SegLocalVisualizer',
                vis_backends=[dict(type='LocalVisBackend')],
                name=name,
            ),
            log_processor=dict(by_epoch=True),
            log_level='ERROR',
            randomness=dict(seed=7),
        )
    )
    cfg.merge_from_dict(overrides)
    return cfg


def make_iter_based(cfg: Config, max_iters: int) -> None:
    """Turn a pruned or stock run into an iteration-based one, in place."""
    pruned = bool(cfg.custom_hooks)
    loop = 'InfoBatchIterBasedTrainLoop' if pruned else 'IterBasedTrainLoop'
    cfg.train_cfg = dict(type=loop, max_iters=max_iters)
    if not pruned:
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.param_scheduler = [
        dict(type='PolyLR', power=0.9, by_epoch=False, end=max_iters)
    ]
    cfg.log_processor = dict(by_epoch=False)


def add_validation(cfg: Config, interval: int) -> None:
    """Let a run validate on two scenes, by mean IoU."""
    cfg.val_dataloader = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=scenes(2, split='val'),
    )
    cfg.val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    cfg.val_cfg = dict(type='ValLoop')
    cfg.train_cfg.val_interval = interval


@contextmanager
def count_steps(steps: list) -> Iterator[None]:
    """Append to a list for each step of an SGD optimizer."""
    stock = torch.optim.SGD.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return stock(self, *args, **kwargs)

    with patch.object(torch.optim.SGD, 'step', step):
        yield


def train(cfg: Config) -> Runner:
    """Run a config and return its runner."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def hook_of(runner: Runner) -> Any:
    """Return the InfoBatchHook of a runner."""
    from infobatch_mm import InfoBatchHook

    return next(h for h in runner.hooks if isinstance(h, InfoBatchHook))
