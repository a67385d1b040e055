"""The arms of a page, how far they are apart, and what that proves.

An arm is runs that differ by their seed alone: what belongs to two of them is
never averaged.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..compare.statistics import Paired, paired
from ..host.packages import MissingExtraError
from .results import Metric, Run

ONE_SEED = 'one seed: no verdict'
NO_PAIRS = 'no seed in common: no verdict'
NO_SCIPY = 'no interval without scipy: pip install "infobatch_mm[compare]"'
# Runs of our own suites that shared a core differed by at most 5 % in the
# seconds of an iteration, pruned or not; beside other work it was up to 78 %.
# A tenth lies well above the first, and below what pruning saves.
PACE_LIMIT = 0.1


class Cell(NamedTuple):
    """What a run of an arm reached and cost."""

    seed: int | None
    value: float
    samples: float  # trained on; in a comparison the share of all
    seconds: float  # of training
    run: Run | None  # None where the work directory is gone


class Arm(NamedTuple):
    """Runs that differ by their seed alone."""

    name: str
    cells: list[Cell]
    at_cost_of: str | None = None

    @property
    def runs(self) -> list[Run]:
        """list[Run]: Those with a validation, for the curves."""
        return [c.run for c in self.cells if c.run and c.run.values]

    @property
    def prunes(self) -> bool:
        """bool: Whether its runs leave samples out round by round."""
        return any(cell.run and cell.run.prunes for cell in self.cells)


class Comparison(NamedTuple):
    """All that a page shows of its arms."""

    config: str
    policy: str | None  # of the subject
    metric: Metric | None  # None before the first validation
    arms: list[Arm]
    subject: Arm  # the page is about it
    reference: Arm | None  # what all others are compared with
    gaps: dict[tuple[str, str], Paired]  # one arm less another
    verdict: str | None = None  # in the words of `infobatch compare`
    notes: Sequence[str] = ()
    shares: bool = False  # whether samples are shares

    def gap(self, arm: Arm, other: Arm | None) -> Paired | None:
        """Return how far an arm lies above another, None if unknown."""
        return self.gaps.get((arm.name, other.name)) if other else None


def pair(
    arm: Arm, other: Arm, value: Callable[[Cell], float]
) -> Paired | None:
    """Return how far an arm lies above another, by the seeds of both.

    Returns:
        Paired | None: None if no seed is common to the two. Without scipy
        there is no interval.
    """
    ours, theirs = (
        {c.seed: found for c in each.cells if math.isfinite(found := value(c))}
        for each in (arm, other)
    )
    common = [seed for seed in ours if seed in theirs and seed is not None]
    pairs = [(ours[seed], theirs[seed]) for seed in common]
    if not pairs and len(ours) == len(theirs) == 1:
        pairs = list(zip(ours.values(), theirs.values(), strict=True))
    if not pairs:
        return None
    differences = [a - b for a, b in pairs]
    try:
        return paired(differences)
    except MissingExtraError:
        mean = sum(differences) / len(differences)
        return Paired(len(pairs), mean, math.nan, -math.inf, math.inf)


def gaps_between(
    arms: Sequence[Arm], subject: Arm, reference: Arm | None
) -> dict[tuple[str, str], Paired]:
    """Compare all arms with the reference, and the subject with all arms."""
    if reference is None:
        return {}
    pairs = [(arm, reference) for arm in arms if arm is not reference]
    pairs += [(subject, arm) for arm, _ in pairs if arm is not subject]
    found = ((a, b, pair(a, b, lambda cell: cell.value)) for a, b in pairs)
    return {(a.name, b.name): gap for a, b, gap in found if gap}


def verdict(gap: Paired | None, metric: Metric) -> str:
    """Say what a difference over seeds proves, or why nothing."""
    if gap is None:
        return NO_PAIRS
    if gap.seeds < 2:
        return ONE_SEED
    if not math.isfinite(gap.low):
        return NO_SCIPY
    ends = sorted((metric.sign * gap.low, metric.sign * gap.high))
    if ends[0] > 0:
        return 'better'
    return 'worse' if ends[1] < 0 else 'indistinguishable'


def pace_warning(arms: Sequence[Arm]) -> str | None:
    """Say so if iterations of like runs took different times.

    Runs are alike if their batches are.
    """
    by_batch: dict[tuple[int, bool], list[tuple[float, str]]] = {}
    for arm in arms:
        for run in arm.runs:
            if math.isfinite(run.pace):
                seed = '' if run.seed is None else f', seed {run.seed}'
                name = f'{arm.name}{seed}'
                by_batch.setdefault(run.batch, []).append((run.pace, name))
    ends = [(min(paces), max(paces)) for paces in by_batch.values()]
    ends = [(low, high) for low, high in ends if low[0] > 0]
    if not ends:
        return None
    low, high = max(ends, key=lambda end: end[1][0] / end[0][0])
    above = high[0] / low[0] - 1
    if above <= PACE_LIMIT:
        return None
    return (
        f'Iterations of equal batches took different times: {low[0]:.3g} s '
        f'({low[1]}) to {high[0]:.3g} s ({high[1]}), {above:.0%} more. If '
        'the runs had other work beside them, or other machines, do not take '
        'the difference in training time for what pruning saves: samples and '
        'iterations tell that.'
    )
