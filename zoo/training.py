"""The run of a small config, stock or pruned."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from infobatch_mm import enable
from zoo.package import Package


def train(cfg: Config, package: Package) -> Runner:
    """Train a small config, stock or pruned, in the working directory.

    Args:
        cfg (Config): The small config.
        package (Package): The package that it is of.

    Raises:
        FloatingPointError: If a loss was not finite.
    """
    cfg = deepcopy(cfg)
    cfg.experiment_name = cfg.train_cfg.get('type', 'stock')
    package.write_images(cfg.train_dataloader.dataset)
    if cfg.model.get('pretrained'):
        write_weights(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    if not np.isfinite(losses).all():
        raise FloatingPointError('the loss became NaN or infinite')
    return runner


def write_weights(cfg: Config) -> None:
    """Write the checkpoint that a model is to start from, random weights."""
    init_default_scope(cfg.default_scope)
    state = MODELS.build(deepcopy(cfg.model)).state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            is_norm = value.dim() == 1 and name.endswith('weight')
            state[name] = torch.randn(value.shape) * 0.02 + float(is_norm)
    torch.save(state, cfg.model.pretrained)


def prune(cfg: Config) -> Config:
    """Return a small config that prunes until its end."""
    policy = dict(type='InfoBatchPolicy', prune_ratio=0.75)
    return enable(cfg, policy=policy, delta=1.0)


def rounds_of(work_dir: str) -> list[int]:
    """Return how many samples each round of a run kept."""
    lines = Path(work_dir, 'infobatch.jsonl').read_text().splitlines()
    return [json.loads(line)['kept'] for line in lines]
