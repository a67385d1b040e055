"""What the ranks of a run exchange with each other.

Every function here is a collective: all ranks must call it, at the same
point. Nothing of it may be called where only the first rank is, as in
``before_save_checkpoint``.
"""

import torch
from mmengine.dist import all_gather, all_gather_object, all_reduce

from .scores import ScoreBoard


def merge_scores(board: ScoreBoard) -> None:
    """Exchange the scores that are new since the last merge.

    Ids travel as int64 and scores as float32. Ranks may have different
    numbers of them (``round_up=False``): the shorter lists are filled up with
    the id that is no sample's.
    """
    ids, scores, nonfinite = board.take_new()
    all_reduce(nonfinite)
    board.nonfinite += int(nonfinite.item())
    if not board.shared:
        return
    longest = torch.tensor([len(ids)], device=ids.device)
    all_reduce(longest, 'max')
    missing = int(longest.item()) - len(ids)
    if missing:
        ids = torch.cat([ids, ids.new_full((missing,), board.unscored)])
        scores = torch.cat([scores, scores.new_zeros(missing)])
    # In the order of ranks, so that a padded sample that was trained on two
    # of them ends with the same score everywhere.
    for pair in zip(all_gather(ids), all_gather(scores), strict=True):
        board.put(*pair)


def merge_trained(trained: torch.Tensor) -> None:
    """Mark what any rank has trained on, bool, shape (N,), in place."""
    counts = trained.to(torch.uint8)
    all_reduce(counts, 'max')
    trained |= counts.bool()


def check_same_samples(fingerprint: str) -> None:
    """Raise a RuntimeError if the ranks list other samples, or in other order.

    Args:
        fingerprint (str): A hash of the list of this rank.
    """
    if len(set(all_gather_object(fingerprint))) > 1:
        raise RuntimeError(
            'the ranks list different samples of the train data set, or list '
            'them in different orders, so that the score which one finds for '
            'an image would go to other images on the others. Sort the list '
            'in its load_data_list(): the order of a set, or of a folder, may '
            'be another in each process'
        )


def check_same_plan(digest: str) -> None:
    """Raise a RuntimeError if the ranks have planned different rounds."""
    digests = all_gather_object(digest)
    if len(set(digests)) > 1:
        raise RuntimeError(
            'the ranks have planned different rounds, so samples would be '
            f'lost and the weights wrong: {digests}. All ranks need the same '
            'seed, data set and InfoBatch settings'
        )
