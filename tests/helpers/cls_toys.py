"""A real but tiny mmpretrain run, the common ground of the cls tests."""

from copy import deepcopy
from itertools import count
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from processes import PACING

NUMBERS = count()
CLASSES = 5


@DATASETS.register_module()
class Blobs(BaseDataset):
    """Noisy images of 8x8 pixels, brighter where their class says.

    With tasks there are two labels, of which some samples may lack one.
    """

    METAINFO = dict(classes=tuple('abcde'))

    def __init__(
        self,
        size: int,
        tasks: bool = False,
        unlabelled: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> None:
        self.size, self.tasks, self.unlabelled = size, tasks, unlabelled
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 200, (self.size, 8, 8, 3), dtype=np.uint8)
        for index, image in enumerate(images):
            image[:, index % CLASSES, index % 3] += 50
        return [
            dict(img=image, gt_label=self.label(index))
            for index, image in enumerate(images)
        ]

    def label(self, index: int) -> Any:
        if not self.tasks:
            return index % CLASSES
        labels = dict(first=index % CLASSES, second=index % 3)
        if index in self.unlabelled:
            del labels['second']
        return labels


def blobs(size: int, **settings: Any) -> dict:
    pack = dict(type='PackInputs')
    if 'tasks' in settings:
        pack = dict(type='PackMultiTaskInputs', multi_task_fields=['gt_label'])
    return dict(type='Blobs', size=size, pipeline=[pack], **settings)


def linear_head(**settings: Any) -> dict:
    return (
        dict(
            type='LinearClsHead',
            num_classes=CLASSES,
            in_channels=32,
            loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        )
        | settings
    )


def weighted(head: dict) -> dict:
    return dict(type='WeightedClsHead', head=head)


def model(*, pruned: bool, head: Any = None, **settings: Any) -> dict:
    wrap = weighted if pruned else deepcopy
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(
            type='ClsDataPreprocessor',
            mean=[127.5] * 3,
            std=[63.75] * 3,
            num_classes=CLASSES,
        ),
        backbone=dict(
            type='ResNet_CIFAR',
            depth=18,
            stem_channels=4,
            base_channels=4,
            out_indices=(3,),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=wrap(head or linear_head()),
        **settings,
    )


def config(
    work_dir: Any,
    *,
    pruned: bool = True,
    samples: int = 24,
    batch_size: int = 4,
    epochs: int = 4,
    policy: dict | None = None,
    hook: dict | None = None,
    workers: int = 0,
    head: Any = None,
    **overrides: Any,
) -> Config:
    """Return a run by epochs as mmpretrain's configs write it, or pruned.

    Overrides are merged.
    """
    dataset = blobs(samples)
    sampler = dict(type='DefaultSampler', shuffle=True)
    hooks = []
    train_cfg = dict(by_epoch=True, max_epochs=epochs)
    if pruned:
        dataset = dict(type='IndexedDataset', dataset=dataset)
        sampler = dict(type='InfoBatchSampler')
        policy = policy or dict(type='InfoBatchPolicy', prune_ratio=0.5)
        hook = PACING | (hook or {})
        hooks = [dict(type='InfoBatchHook', policy=policy, **hook)]
    name = f'cls_toy_{next(NUMBERS)}'
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            work_dir=str(work_dir),
            experiment_name=name,
            model=model(pruned=pruned, head=head),
            train_dataloader=dict(
                batch_size=batch_size,
                num_workers=workers,
                sampler=sampler,
                dataset=dataset,
                collate_fn=dict(type='default_collate'),
            ),
            train_cfg=train_cfg,
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.05, momentum=0.9)
            ),
            param_scheduler=dict(type='MultiStepLR', milestones=[2]),
            custom_hooks=hooks,
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1000)
            ),
            visualizer=dict(
                type='UniversalVisualizer',
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
