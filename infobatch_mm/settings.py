"""The settings of the hook that are checked before anything is built."""

from .pacing import PACINGS
from .pruning.prune_ratio import is_number

SCORES = ('image_mean', 'class_balanced', 'gradient_norm')


def check_settings(
    score: str,
    score_momentum: float,
    warmup_rounds: int,
    pacing: str,
    smallest_batch: int,
) -> None:
    """Raise a ValueError that names a setting which is out of range."""
    if score not in SCORES:
        raise ValueError(
            f'score={score!r} is not known; there are {", ".join(SCORES)}'
        )
    if not is_number(score_momentum) or not 0 <= score_momentum < 1:
        raise ValueError(
            f'score_momentum={score_momentum!r} is not in [0, 1); 0 scores a '
            'sample by its last loss'
        )
    if not is_number(warmup_rounds) or not (
        warmup_rounds >= 0 and warmup_rounds % 1 == 0
    ):
        raise ValueError(
            f'warmup_rounds={warmup_rounds!r} is not a number of rounds; 0 '
            'prunes as soon as there are scores'
        )
    if pacing not in PACINGS:
        raise ValueError(
            f'pacing={pacing!r} is not known; there are {", ".join(PACINGS)}'
        )
    if not is_number(smallest_batch) or not (
        smallest_batch >= 1 and smallest_batch % 1 == 0
    ):
        raise ValueError(
            f'smallest_batch={smallest_batch!r} is not a number of samples; '
            '2 is the fewest that batch norm on one rank can train on'
        )
