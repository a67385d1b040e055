"""Smaller batches in classification: LAMB, real heads, and resuming."""

import json

import pytest
import torch
from mmengine.runner import Runner

pytest.importorskip('mmpretrain')
import cls_toys

import infobatch_mm  # noqa: F401

LAMB = dict(type='Lamb', lr=0.02, weight_decay=0.1)


def train(work_dir, *, policy=None, **settings):
    """Train 24 blobs in batches of 6 with LAMB; stock without a policy."""
    cfg = cls_toys.config(
        work_dir,
        pruned=policy is not None,
        batch_size=6,
        policy=policy,
        hook=dict(pacing='smaller_batches'),
        **settings,
    )
    cfg.optim_wrapper.optimizer = LAMB
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def assert_same(ours, theirs):
    for part in (lambda r: r.model, lambda r: r.optim_wrapper.optimizer):
        torch.testing.assert_close(
            part(ours).state_dict(), part(theirs).state_dict(), rtol=0, atol=0
        )


def test_lamb_with_nothing_pruned_is_the_stock_run(tmp_path):
    nothing = dict(type='InfoBatchPolicy', prune_ratio=0.0)
    ours = train(tmp_path / 'ours', policy=nothing)
    assert_same(ours, train(tmp_path / 'stock'))


def test_a_pruned_run_makes_all_steps_and_resumes_exactly(tmp_path):
    policy = dict(type='InfoBatchPolicy', prune_ratio=0.5)
    saves = {
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.by_epoch': False,
    }
    whole = train(tmp_path / 'whole', policy=policy, **saves)
    assert whole.iter == whole.max_iters == 16
    summary = json.loads(
        (tmp_path / 'whole/infobatch_summary.json').read_text()
    )
    assert summary['iters_run'] == summary['iters_budget'] == 16
    assert summary['saved_ratio'] > 0.1
    # In the middle of the second round, which prunes.
    name = str(tmp_path / 'whole/iter_6.pth')
    resumed = train(
        tmp_path / 'again',
        policy=policy,
        resume=True,
        load_from=name,
        **saves,
    )
    assert_same(resumed, whole)
