"""Options for noisy scores: a moving average, and rounds of warm-up."""

import json
import math

import light
import pytest
import torch
from mmengine.runner import Runner

from infobatch_mm import InfoBatchHook
from infobatch_mm.ranks import merge_scores
from infobatch_mm.scores import ScoreBoard

NAN = math.nan
EPOCHS = 8
LOOP = dict(type='EpochBasedTrainLoop', max_epochs=EPOCHS)
SMOOTH = dict(score_momentum=0.8, warmup_rounds=3)


def update(board, ids, losses):
    board.update(torch.tensor(ids), torch.tensor(losses))


def test_a_score_is_the_moving_average_since_its_first_loss():
    board = ScoreBoard(3, momentum=0.75)
    losses = [4.0, 2.0, 1.0]
    expected = losses[0]
    for loss in losses:
        update(board, [1], [loss])
    for loss in losses[1:]:
        expected = 0.75 * expected + 0.25 * loss
    torch.testing.assert_close(
        board.scores, torch.tensor([NAN, expected, NAN]), equal_nan=True
    )


def test_after_a_loss_that_is_not_finite_it_begins_anew():
    board = ScoreBoard(2, momentum=0.5)
    update(board, [0, 1], [4.0, 4.0])
    update(board, [0, 1], [math.inf, NAN])
    assert board.scores.isnan().all()
    update(board, [0, 1], [1.0, 2.0])
    assert board.scores.tolist() == [1.0, 2.0]
    merge_scores(board)
    assert board.nonfinite == 2


def test_what_goes_to_the_unscored_slot_is_never_read():
    board = ScoreBoard(1, momentum=0.5)
    update(board, [board.unscored, board.unscored], [5.0, NAN])
    update(board, [0], [1.0])
    merge_scores(board)
    assert board.scores.tolist() == [1.0] and board.nonfinite == 0


def test_without_momentum_it_is_the_last_loss_bit_for_bit():
    plain, off = ScoreBoard(9), ScoreBoard(9, momentum=0.0)
    for _ in range(3):
        ids, losses = torch.randperm(9)[:5], torch.rand(5)
        plain.update(ids, losses)
        off.update(ids, losses)
    torch.testing.assert_close(
        plain.scores, off.scores, rtol=0, atol=0, equal_nan=True
    )


def test_an_update_does_not_wait_for_the_device():
    board = ScoreBoard(9, device='meta', momentum=0.5)
    board.update(
        torch.zeros(4, dtype=torch.int64, device='meta'),
        torch.zeros(4, device='meta'),
    )
    assert board.scores.is_meta


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(score_momentum=1.0), r'score_momentum=1\.0 is not in'),
        (dict(score_momentum=-0.1), r'score_momentum=-0\.1 is not in'),
        (dict(warmup_rounds=-1), 'warmup_rounds=-1 is not a number of'),
        (dict(warmup_rounds=1.5), r'warmup_rounds=1\.5 is not a number of'),
    ],
)
def test_a_setting_out_of_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        InfoBatchHook(**options)


def hook_of(runner):
    return next(h for h in runner.hooks if isinstance(h, InfoBatchHook))


def train(work_dir, options, **settings):
    cfg = light.config(work_dir, LOOP, **settings)
    cfg.custom_hooks[0].update(options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def rounds(runner):
    with open(f'{runner.work_dir}/infobatch.jsonl') as file:
        lines = [json.loads(line) for line in file]
    for line in lines:
        del line['seconds']
    return lines


@pytest.mark.parametrize(
    'policy', [dict(type='InfoBatchPolicy'), dict(type='RandomPolicy')]
)
@pytest.mark.parametrize('warmup', [0, 1, 3])
def test_rounds_of_warm_up_use_all_data(tmp_path, policy, warmup):
    policy = dict(policy, prune_ratio=0.5)
    runner = train(tmp_path, dict(warmup_rounds=warmup), policy=policy)
    kept = [line['kept'] for line in rounds(runner)]
    full, pruned = kept[: max(1, warmup)], kept[max(1, warmup) : 7]
    assert set(full) == {26} and max(pruned) < 26
    assert kept[7] == 26  # annealing


def test_off_is_the_run_without_the_options(tmp_path):
    plain = train(tmp_path / 'plain', {})
    off = dict(score_momentum=0.0, warmup_rounds=0)
    off = train(tmp_path / 'off', off)
    assert rounds(off) == rounds(plain)
    states = [hook_of(runner).state_dict() for runner in (off, plain)]
    for state in states:
        for name in [name for name in state if name.endswith('_seconds')]:
            del state[name]
    for name in ('policy', 'score'):
        assert states[0].pop(name) == states[1].pop(name)
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_smoothed_scores_plan_other_rounds(tmp_path):
    plain = train(tmp_path / 'plain', dict(warmup_rounds=3))
    smooth = train(tmp_path / 'smooth', SMOOTH)
    plans = [[r['digest'] for r in rounds(run)] for run in (smooth, plain)]
    assert plans[0][:3] == plans[1][:3]
    assert plans[0][3:] != plans[1][3:]


@pytest.mark.parametrize('epoch', [2, 5])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, epoch):
    """Within the warm-up, and within the pruned rounds."""
    whole = train(tmp_path / 'whole', SMOOTH)
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=epoch))
    settings = dict(default_hooks=hooks)
    train(tmp_path / 'first', SMOOTH, **settings)
    cfg = light.config(tmp_path / 'second', LOOP)
    cfg.custom_hooks[0].update(SMOOTH)
    cfg.resume = True
    cfg.load_from = str(tmp_path / f'first/epoch_{epoch}.pth')
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    assert rounds(resumed) == rounds(whole)[epoch:]
    ours, theirs = hook_of(resumed).board, hook_of(whole).board
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=0)
    weights = [runner.model.state_dict() for runner in (resumed, whole)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
