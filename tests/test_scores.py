"""ScoreBoard: the last finite loss of each sample."""

import math

import pytest
import torch

from infobatch_mm import ranks
from infobatch_mm.ranks import merge_scores
from infobatch_mm.scores import ScoreBoard

NAN, INF = math.nan, math.inf


def update(board: ScoreBoard, ids: list[int], losses: list[float]) -> None:
    board.update(torch.tensor(ids), torch.tensor(losses))


def assert_scores(board: ScoreBoard, *expected: float) -> None:
    torch.testing.assert_close(
        board.scores, torch.tensor(expected), rtol=0, atol=0, equal_nan=True
    )


def test_a_sample_never_seen_has_no_score():
    board = ScoreBoard(3)
    assert len(board) == 3
    assert board.scores.dtype == torch.float32
    assert_scores(board, NAN, NAN, NAN)


def test_a_score_is_the_last_loss():
    board = ScoreBoard(3)
    update(board, [2, 0], [1.0, 2.0])
    update(board, [2], [0.5])
    assert_scores(board, 2.0, NAN, 0.5)


def test_losses_that_are_not_finite_are_counted_and_leave_no_score():
    board = ScoreBoard(4)
    update(board, [0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    update(board, [0, 1, 2], [NAN, INF, -INF])
    assert_scores(board, NAN, NAN, NAN, 1.0)
    assert board.nonfinite == 0  # until the merge
    merge_scores(board)
    merge_scores(board)
    assert board.nonfinite == 3
    update(board, [0], [2.0])
    assert_scores(board, 2.0, NAN, NAN, 1.0)


def test_what_goes_to_the_unscored_slot_is_never_read():
    board = ScoreBoard(2)
    update(board, [board.unscored, 0, board.unscored], [5.0, 1.0, NAN])
    merge_scores(board)
    assert_scores(board, 1.0, NAN)
    assert board.nonfinite == 0


def test_half_precision_losses_are_kept_in_float32():
    board = ScoreBoard(1)
    loss = torch.tensor([1 / 3], dtype=torch.bfloat16)
    board.update(torch.tensor([0]), loss)
    assert board.scores.dtype == torch.float32
    assert board.scores.item() == loss.item()


def test_ids_beyond_what_half_precision_can_hold():
    board = ScoreBoard(70_000)
    ids = torch.tensor([2048, 2049, 65_535, 69_999])
    board.update(ids, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.half))
    assert board.scores[ids].tolist() == [1, 2, 3, 4]
    assert board.scores.isfinite().sum() == 4


def test_an_update_does_not_wait_for_the_device():
    # A tensor on `meta` has no value: reading one raises.
    board = ScoreBoard(9, device='meta')
    board.update(
        torch.zeros(4, dtype=torch.int64, device='meta'),
        torch.zeros(4, device='meta'),
    )
    assert board.scores.is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        merge_scores(board)


def test_saved_scores_are_taken_over():
    board, other = ScoreBoard(3), ScoreBoard(3)
    update(board, [1], [0.25])
    other.load(board.scores.clone())
    assert_scores(other, NAN, 0.25, NAN)
    with pytest.raises((ValueError, RuntimeError)):
        other.load(torch.zeros(4))


@pytest.mark.parametrize(
    'updates',
    [
        [([0, 2], [1.0, NAN]), ([3, 0], [4.0, 5.0])],
        # Ranks of round_up=False: one has a sample less.
        [([0, 2], [1.0, NAN]), ([3, 0, 4], [4.0, 5.0, 6.0])],
    ],
    ids=['equal', 'unequal'],
)
def test_ranks_end_with_the_same_scores(monkeypatch, updates):
    boards = [ScoreBoard(5, shared=True), ScoreBoard(5, shared=True)]
    for board, (ids, losses) in zip(boards, updates, strict=True):
        update(board, ids, losses)

    # What the ranks exchange: ids as int64 and scores as float32, each as
    # long as the longest of them.
    longest = max(len(ids) for ids, _ in updates)
    filled = [ids + [5] * (longest - len(ids)) for ids, _ in updates]
    scores = [
        losses + [0.0] * (longest - len(losses)) for _, losses in updates
    ]
    gathered = {
        torch.int64: [torch.tensor(ids) for ids in filled],
        torch.float32: [torch.tensor(losses) for losses in scores],
    }

    def all_gather(own):
        assert any(
            torch.equal(own.nan_to_num(7), each.nan_to_num(7))
            for each in gathered[own.dtype]
        )
        return gathered[own.dtype]

    def all_reduce(count, op='sum'):
        count.fill_(longest if op == 'max' else 1)

    monkeypatch.setattr(ranks, 'all_gather', all_gather)
    monkeypatch.setattr(ranks, 'all_reduce', all_reduce)
    for board in boards:
        merge_scores(board)
        last = updates[1][1][2] if longest == 3 else NAN
        assert_scores(board, 5.0, NAN, NAN, 4.0, last)
        assert board.nonfinite == 1
