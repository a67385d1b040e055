"""The charts of the rounds of a pruned run, and of its scores."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.ticker import LogLocator, NullLocator

from ..records import Line, kept_percent
from .figures import MARK, RUN, Picture, by_round, chart, draw_kept, svg_of

# Readable on a light and on a dark page.
SHADE = (0.17, 0.52, 0.82)
SHADES = LinearSegmentedColormap.from_list(
    'shades', [(*SHADE, 0.15), (*SHADE, 1.0)]
)
TAIL = 0.005  # the share of the scores that may lie beyond each end
BINS = 40


def kept_chart(rounds: Sequence[Line]) -> Picture:
    """Draw the share of the samples that each round kept."""
    kept = kept_percent(rounds)
    with chart('round', 'kept samples (%)') as (figure, axes):
        draw_kept(axes, rounds)
        alt = (
            f'Bar chart of the kept share in {len(kept)} rounds, between '
            f'{min(kept):.1f} % and {max(kept):.1f} %.'
        )
        caption = (
            'Share of the samples that each round kept. A round is one pass '
            'over what it keeps; a full bar is a round without pruning.'
        )
        return Picture(svg_of(figure), alt, caption)


def weight_chart(rounds: Sequence[Line]) -> Picture:
    """Draw the mean and the largest weight of each round."""
    numbers = [line['round'] for line in rounds]
    mean = [line['mean_weight'] for line in rounds]
    largest = [line.get('max_weight', math.nan) for line in rounds]
    is_known = any(map(math.isfinite, largest))
    with chart('round', 'weight') as (figure, axes):
        if is_known:
            axes.step(
                numbers,
                largest,
                where='mid',
                color=MARK,
                linestyle='--',
                label='largest',
            )
        axes.step(numbers, mean, where='mid', color=RUN, label='mean')
        axes.set_ylim(bottom=0)
        axes.legend()
        by_round(axes)
        alt = f'Step chart of weights by round: mean up to {max(mean):.2f}'
        alt += (
            f', largest up to {np.nanmax(largest):.2f}.' if is_known else '.'
        )
        caption = (
            'Weights of the gradients. Kept samples stand in for the pruned '
            'ones of their kind, which the mean shows; the largest weight is '
            'that of a sample of the kind that was pruned most. In smaller '
            'batches all weights are multiplied by the share that is kept, '
            'so that their mean is 1.'
        )
        if not is_known:
            caption += ' This run did not record its largest weights.'
        return Picture(svg_of(figure), alt, caption)


def variance_chart(rounds: Sequence[Line]) -> Picture:
    """Draw the variance that the pruning of each round added."""
    ratios = [line['variance_ratio'] for line in rounds]
    with chart('round', 'added variance (ratio)') as (figure, axes):
        numbers = [line['round'] for line in rounds]
        axes.step(numbers, ratios, where='mid', color=RUN)
        axes.set_ylim(bottom=0)
        by_round(axes)
        alt = (
            'Step chart of the variance ratio by round, between '
            f'{min(ratios):.3g} and {max(ratios):.3g}.'
        )
        caption = (
            'Variance that pruning adds to the gradient of a round, relative '
            'to the sum of the squared scores, with the score in place of '
            'the norm of the gradient. 0 is a round without pruning.'
        )
        return Picture(svg_of(figure), alt, caption)


def score_chart(rounds: Sequence[Line], edges: Sequence[float]) -> Picture:
    """Draw the histogram of the scores after each round, as a heat map."""
    counts = np.array([line['score_histogram'] for line in rounds])
    filled = np.flatnonzero(counts.sum(0))
    low, high = (filled[0], filled[-1] + 1) if len(filled) else (0, 1)
    first = rounds[0]['round']
    sides = np.arange(first, first + len(rounds) + 1) - 0.5
    with chart('round', 'score of the sample') as (figure, axes):
        axes.grid(False)
        mesh = axes.pcolormesh(
            sides,
            edges[low : high + 1],
            np.ma.masked_equal(counts[:, low:high].T, 0),
            cmap=SHADES,
            norm=LogNorm(vmin=0.5, vmax=max(1, counts.max())),
            rasterized=True,
        )
        _log_ticks(axes, edges[low], edges[high], axis='y')
        by_round(axes)
        bar = figure.colorbar(mesh, label='samples', format='{x:,.0f}')
        bar.ax.yaxis.set_minor_locator(NullLocator())
        assert bar.solids is not None  # those of a map of colours
        bar.solids.set_rasterized(True)
        _draw_thresholds(axes, rounds)
        alt = (
            f'Heat map of the scores over {len(rounds)} rounds, between '
            f'{edges[low]:.2g} and {edges[high]:.2g}.'
        )
        caption = (
            'Scores of the samples after each round, stronger where there '
            'are more. Below the threshold of its round a sample could be '
            'pruned.'
        )
        return Picture(svg_of(figure), alt, caption)


def last_scores_chart(scores: np.ndarray, threshold: float | None) -> Picture:
    """Draw the histogram of the scores in a checkpoint.

    Args:
        scores (np.ndarray): Shape (N,); those that are not finite, and the
            extreme ones at both ends, are left out.
        threshold (float | None): That of the last round that had one.
    """
    known = np.sort(scores[np.isfinite(scores)])
    low, high = np.quantile(known, [TAIL, 1 - TAIL])
    is_wide = bool(low > 0 and high / low > 10)
    space = np.geomspace if is_wide else np.linspace
    edges = space(low, high if high > low else low + 1, BINS + 1)
    beyond = int((known < low).sum() + (known > high).sum())
    with chart('score of the sample', 'samples') as (figure, axes):
        axes.hist(known, edges.tolist(), color=RUN)
        if is_wide:
            axes.set_xscale('log')
            _log_ticks(axes, low, high, axis='x')
        for value, style, label in (
            (float(np.median(known)), ':', 'median'),
            (threshold, '--', 'last threshold'),
        ):
            if value is not None:
                axes.axvline(
                    value,
                    color=MARK,
                    linestyle=style,
                    label=f'{label} {value:.3g}',
                )
        axes.legend()
        alt = (
            f'Histogram of {len(known):,} scores, half of them below '
            f'{np.median(known):.3g}.'
        )
        caption = (
            f'Scores in the last checkpoint{", on a log axis" * is_wide}. '
            f'{beyond:,} of {len(known):,} samples lie beyond its ends, '
            f'{known[0]:.3g} to {known[-1]:.3g}.'
        )
        return Picture(svg_of(figure), alt, caption)


def _log_ticks(axes: Axes, low: float, high: float, axis: str) -> None:
    """Label a log axis with numbers that one would say."""
    (axes.set_xscale if axis == 'x' else axes.set_yscale)('log')
    target = axes.xaxis if axis == 'x' else axes.yaxis
    subs = (1,) if high / low > 1000 else (1, 2, 5)
    target.set_major_locator(LogLocator(subs=subs))
    target.set_major_formatter('{x:g}')
    target.set_minor_locator(NullLocator())


def _draw_thresholds(axes: Axes, rounds: Sequence[Line]) -> None:
    """Draw the threshold of each round, if any had one."""
    thresholds = [line['threshold'] or math.nan for line in rounds]
    if any(map(math.isfinite, thresholds)):
        numbers = [line['round'] for line in rounds]
        axes.step(
            numbers, thresholds, where='mid', color=MARK, label='threshold'
        )
        axes.legend()
