"""A model and data that train in milliseconds, for tests of the schedule."""

from itertools import count
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.structures import BaseDataElement
from processes import PACING
from torch import nn

from infobatch_mm.heads import attach

NUMBERS = count()


@DATASETS.register_module()
class LightData(BaseDataset):
    """Points of three noisy classes."""

    METAINFO = dict(classes=('a', 'b', 'c'))

    def __init__(self, size: int, nan_at: tuple[int, ...] = ()) -> None:
        self.size, self.nan_at = size, nan_at
        # mmengine cannot serialize an empty list.
        super().__init__(serialize_data=False)

    def load_data_list(self) -> list[dict]:
        return [dict(label=index % 3) for index in range(self.size)]

    def prepare_data(self, idx: int) -> dict:
        generator = torch.Generator().manual_seed(idx)
        label = idx % 3
        point = torch.randn(4, generator=generator)
        point[label] += 2.0
        # A constant in the loss, so that its gradient stays finite.
        shift = torch.nan if idx in self.nan_at else 0.0
        sample = BaseDataElement(metainfo=dict(label=label, shift=shift))
        return dict(inputs=point, data_samples=sample)


class LightHead(nn.Module):
    """A linear classifier with the seam of a decode head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def loss_by_feat(self, logits: Any, data_samples: list) -> dict:
        labels = logits.new_tensor([s.label for s in data_samples]).long()
        shift = logits.new_tensor([s.shift for s in data_samples])
        return dict(loss_ce=F.cross_entropy(logits, labels) + shift.mean())


@MODELS.register_module()
class LightModel(BaseModel):
    """A head on the points themselves."""

    def __init__(self, weighted: bool = True) -> None:
        super().__init__()
        self.head = LightHead()
        if weighted:
            attach(self.head)

    def forward(self, inputs: Any, data_samples: Any, mode: str) -> Any:
        logits = self.head.fc(torch.stack(inputs))
        if mode == 'loss':
            return self.head.loss_by_feat(logits, data_samples)
        return data_samples


@METRICS.register_module()
class LightMetric(BaseMetric):
    """Count the samples that were validated."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list) -> dict:
        return dict(count=len(results))


def config(
    work_dir: Any,
    loop: dict,
    *,
    schedulers: list | None = None,
    samples: int = 26,
    batch_size: int = 4,
    pruned: bool = True,
    policy: dict | None = None,
    delta: float = 0.875,
    pacing: str | None = None,
    val: bool = False,
    workers: int = 0,
    **overrides: Any,
) -> Config:
    """Return a run of a train loop, stock or pruned; overrides are merged."""
    name = f'light_{next(NUMBERS)}'
    is_iter = 'max_iters' in loop
    stock = 'InfiniteSampler' if is_iter else 'DefaultSampler'
    data = dict(type='LightData', size=samples)
    policy = policy or dict(type='InfoBatchPolicy', prune_ratio=0.5)
    hook = dict(type='InfoBatchHook', policy=policy, delta=delta)
    # What most tests know: by default it would be the norm of the gradient.
    hook['score'] = 'image_mean'
    hook.update(PACING if pacing is None else dict(pacing=pacing))
    loader = dict(
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    train_loader = dict(
        sampler=dict(type='InfoBatchSampler' if pruned else stock),
        dataset=dict(type='IndexedDataset', dataset=data) if pruned else data,
        **loader,
    )
    settings = dict(
        default_scope='mmengine',
        work_dir=str(work_dir),
        experiment_name=name,
        model=dict(type='LightModel', weighted=pruned),
        train_dataloader=train_loader,
        train_cfg=loop,
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.1, momentum=0.9),
        ),
        param_scheduler=schedulers,
        custom_hooks=[hook] if pruned else [],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=10**6)
        ),
        visualizer=dict(type='Visualizer', name=name),
        log_processor=dict(by_epoch=not is_iter),
        log_level='ERROR',
        randomness=dict(seed=7),
    )
    if val:
        settings.update(
            val_dataloader=dict(
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(type='LightData', size=4),
                **loader,
            ),
            val_cfg=dict(type='ValLoop'),
            val_evaluator=dict(type='LightMetric'),
        )
    cfg = Config(settings)
    cfg.merge_from_dict(overrides)
    return cfg
