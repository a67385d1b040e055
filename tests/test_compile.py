"""Runs with ``cfg.compile``, for which mmengine compiles ``train_step``."""

import pytest
import torch
import toys


# Dynamo warns where it traces, and fails if its own warnings are errors.
@pytest.mark.filterwarnings('ignore')
def test_a_compiled_step_scores_and_weighs_as_a_plain_one(tmp_path):
    """Traced by Dynamo, run by PyTorch's own kernels: equal to the bit."""
    runners = []
    for name in ('plain', 'compiled'):
        cfg = toys.config(tmp_path / name, epochs=2, delta=1.0)
        cfg.model.decode_head = toys.weighted(toys.fcn_head())
        cfg.model.auxiliary_head = None
        if name == 'compiled':
            cfg.compile = dict(backend='eager')
        runners.append(toys.train(cfg))
    plain, compiled = runners
    assert plain.model.train_step.__name__ == 'train_step'
    assert hasattr(compiled.model.train_step, '_torchdynamo_orig_callable')
    ours, theirs = (toys.hook_of(each) for each in runners)
    assert ours.samples_seen < ours.samples_budget
    torch.testing.assert_close(
        ours.board.scores, theirs.board.scores, rtol=0, atol=0
    )
    torch.testing.assert_close(
        compiled.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0
    )
