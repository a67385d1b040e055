"""A round of InfoBatch in plain Python, by docs/design.md and not by the code.

Slow and obvious: fractions, sets, and a search through all kept counts. It
tells what a plan must be, not how to draw it.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import floor, inf, isfinite


@dataclass
class Round:
    """What a plan may look like.

    always: the samples that are kept at weight 1
    strata: the samples that are thinned out, lowest scores first
    admissible: how many of each stratum may be kept; often the only choice
    """

    always: set[int]
    strata: list[set[int]]
    admissible: list[tuple[int, ...]]

    def weights(self, kept: tuple[int, ...]) -> list[Fraction]:
        return [
            Fraction(len(stratum), m)
            for stratum, m in zip(self.strata, kept, strict=True)
        ]


def variance_ratio(
    scores: list[float], strata: list[set[int]], kept: tuple[int, ...]
) -> Fraction:
    """Return the sum of (1 - p) / p * score^2 over that of score^2."""
    squares = {
        i: Fraction(score) ** 2
        for i, score in enumerate(scores)
        if isfinite(score)
    }
    added = Fraction(0)
    for stratum, m in zip(strata, kept, strict=True):
        p = Fraction(m, len(stratum))
        for i in stratum:
            added += (1 - p) / p * squares[i]
    total = sum(squares.values())
    return added / total if total else Fraction(0)


def plan_round(
    scores: list[float | None],
    policy: str,
    settings: dict,
    *,
    multiple_of: int = 1,
    progress: Fraction = Fraction(0),
    delta: float = 0.875,
) -> Round:
    scored = {
        i: Fraction(score)
        for i, score in enumerate(scores)
        if score is not None and isfinite(score)
    }
    strata, ratios = [], []
    for stratum, setting in cut(scored, policy, settings):
        ratio = ratio_at(setting, progress, exact(delta))
        if stratum and ratio > 0:
            strata.append(stratum)
            ratios.append(ratio)
    always = set(range(len(scores))).difference(*strata)
    sizes = [len(stratum) for stratum in strata]
    kept = admissible_counts(sizes, ratios, len(always), multiple_of)
    return Round(always, strata, kept)


def cut(scored: dict[int, Fraction], policy: str, settings: dict) -> list:
    """Return pairs of a stratum and its prune ratio setting."""
    if policy == 'NoPruning' or not scored:
        return []
    if policy == 'Random':
        return [(set(scored), settings['prune_ratio'])]
    if policy == 'InfoBatch':
        mean = sum(scored.values()) / len(scored)
        below = {i for i, score in scored.items() if score < mean}
        return [(below, settings['prune_ratio'])]
    assert policy == 'Quantile'
    ranked = [*sorted(scored.values()), inf]
    edges = [floor(exact(q) * len(scored)) for q in settings['quantiles']]
    edges = [-inf] + [ranked[rank] for rank in edges]
    strata = [
        {i for i, score in scored.items() if low <= score < high}
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    return list(zip(strata, settings['prune_ratios'], strict=True))


def ratio_at(setting: float | dict, progress: Fraction, delta: Fraction):
    """Return the prune ratio: zero from delta of the budget on."""
    if progress >= delta:
        return Fraction(0)
    if not isinstance(setting, dict):
        return exact(setting)
    if setting['type'] == 'constant':
        return exact(setting['value'])
    start, end = exact(setting['start']), exact(setting['end'])
    return start + (end - start) * progress / delta


def admissible_counts(
    sizes: list[int], ratios: list[Fraction], always: int, multiple_of: int
) -> list[tuple[int, ...]]:
    """Return all kept counts that a plan may choose.

    Each is the integer nearest to (1 - r) n, and at least one. If some counts
    make the round a multiple of `multiple_of`, those nearest in total are
    taken instead, with no stratum moved further than that needs, and none to
    less than half of it.
    """
    choices = list(product(*[range(1, n + 1) for n in sizes]))
    whole = [c for c in choices if (always + sum(c)) % multiple_of == 0]
    ideal = [(1 - r) * n for n, r in zip(sizes, ratios, strict=True)]
    admissible = []
    # A tie, such as 2.5 of 5, has two nearest integers.
    for nominal in product(*map(nearest, ideal, sizes)):
        fitting = [
            c
            for c in whole
            if all(2 * m >= n for m, n in zip(c, nominal, strict=True))
        ]
        if not fitting:
            admissible.append(nominal)
            continue
        moves = [abs(sum(c) - sum(nominal)) for c in fitting]
        admissible += [
            c
            for c, move in zip(fitting, moves, strict=True)
            if move == min(moves) == distance(c, nominal)
        ]
    return admissible


def nearest(ideal: Fraction, n: int) -> list[int]:
    gap = min(abs(m - ideal) for m in range(1, n + 1))
    return [m for m in range(1, n + 1) if abs(m - ideal) == gap]


def distance(counts: tuple[int, ...], others: tuple[int, ...]) -> int:
    return sum(abs(a - b) for a, b in zip(counts, others, strict=True))


def exact(number: float) -> Fraction:
    """Read a setting as it was written: 0.07 is seven hundredths."""
    return Fraction(str(number))
