"""The charts of the page about a run, as pictures that it can hold."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from ..records import Line, kept_percent

RUN, BASELINE, MARK = '#0b63a5', '#8a5a00', '#d9541e'
STYLE: dict[Any, Any] = {  # keys that matplotlib knows
    'axes.axisbelow': True,
    'axes.edgecolor': '#767676',
    'axes.grid': True,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'font.size': 11,
    'grid.color': '#e3e3e3',
    'legend.frameon': False,
    'lines.linewidth': 1.8,
    # Text stays text: it is sharp, small, and can be searched.
    'svg.fonttype': 'none',
}
# Small, so that its text can be read where a phone shrinks it.
SIZE = (5.2, 3.3)


class Picture(NamedTuple):
    """A picture of the page, in words too."""

    source: str  # a data: address
    alt: str
    caption: str


class Curve(NamedTuple):
    """A metric at the validations of a run."""

    label: str
    costs: Sequence[float]  # what had been spent before each
    values: Sequence[float]


def data_address(kind: str, content: bytes) -> str:
    """Return an address that holds its content, as ``image/png``."""
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


@contextmanager
def _chart(xlabel: str, ylabel: str) -> Iterator[tuple[Figure, Axes]]:
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout='constrained')
        axes = figure.subplots()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        yield figure, axes


def _address(figure: Figure) -> str:
    file = io.BytesIO()
    # Without a date the same run gives the same page.
    with rc_context({'svg.hashsalt': 'infobatch_mm'}):
        figure.savefig(file, format='svg', dpi=150, metadata={'Date': None})
    return data_address('image/svg+xml', file.getvalue())


def _by_round(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def metric_chart(
    metric: str, cost: str, curves: Sequence[Curve], caption: str
) -> Picture:
    """Draw a metric over what it cost, for a run and its baseline."""
    with _chart(cost, metric) as (figure, axes):
        for curve, color, marker in zip(
            curves, (RUN, BASELINE), 'os', strict=False
        ):
            axes.plot(
                curve.costs,
                curve.values,
                color=color,
                marker=marker,
                markersize=4,
                label=curve.label,
            )
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        if len(curves) > 1:
            axes.legend()
        words = '; '.join(
            f'{curve.label} from {curve.values[0]:.2f} at '
            f'{curve.costs[0]:,.4g} to {curve.values[-1]:.2f} at '
            f'{curve.costs[-1]:,.4g}'
            for curve in curves
        )
        alt = f'Line chart of {metric} over {cost}: {words}.'
        return Picture(_address(figure), alt, caption)


def draw_kept(axes: Axes, rounds: Sequence[Line], color: str = RUN) -> None:
    """Draw a bar for each round: the share of the samples that it kept."""
    numbers = [line['round'] for line in rounds]
    axes.bar(numbers, kept_percent(rounds), 0.85, color=color)
    axes.set_ylim(0, 100)
    _by_round(axes)


def kept_chart(rounds: Sequence[Line]) -> Picture:
    """Draw the share of the samples that each round kept."""
    kept = kept_percent(rounds)
    with _chart('round', 'kept samples (%)') as (figure, axes):
        draw_kept(axes, rounds)
        alt = (
            f'Bar chart of the kept share in {len(kept)} rounds, between '
            f'{min(kept):.1f} % and {max(kept):.1f} %.'
        )
        caption = (
            'Share of the samples that each round kept. A round is one pass '
            'over what it keeps; a full bar is a round without pruning.'
        )
        return Picture(_address(figure), alt, caption)


def weight_chart(rounds: Sequence[Line]) -> Picture:
    """Draw the mean and the largest weight of each round."""
    numbers = [line['round'] for line in rounds]
    mean = [line['mean_weight'] for line in rounds]
    largest = [line.get('max_weight', math.nan) for line in rounds]
    is_known = any(map(math.isfinite, largest))
    with _chart('round', 'weight') as (figure, axes):
        if is_known:
            axes.step(
                numbers, largest, where='mid', color=MARK, label='largest'
            )
        axes.step(numbers, mean, where='mid', color=RUN, label='mean')
        axes.set_ylim(bottom=0)
        axes.legend()
        _by_round(axes)
        alt = f'Step chart of weights by round: mean up to {max(mean):.2f}'
        alt += (
            f', largest up to {np.nanmax(largest):.2f}.' if is_known else '.'
        )
        caption = (
            'Weights of the gradients. Kept samples stand in for the pruned '
            'ones of their kind, which the mean shows; the largest weight is '
            'that of a sample of the kind that was pruned most.'
        )
        if not is_known:
            caption += ' This run did not record its largest weights.'
        return Picture(_address(figure), alt, caption)


def variance_chart(rounds: Sequence[Line]) -> Picture:
    """Draw the variance that the pruning of each round added."""
    ratios = [line['variance_ratio'] for line in rounds]
    with _chart('round', 'added variance (ratio)') as (figure, axes):
        numbers = [line['round'] for line in rounds]
        axes.step(numbers, ratios, where='mid', color=RUN)
        axes.set_ylim(bottom=0)
        _by_round(axes)
        alt = (
            'Step chart of the variance ratio by round, between '
            f'{min(ratios):.3g} and {max(ratios):.3g}.'
        )
        caption = (
            'Variance that pruning adds to the gradient of a round, relative '
            'to the sum of the squared scores, with the score in place of '
            'the norm of the gradient. 0 is a round without pruning.'
        )
        return Picture(_address(figure), alt, caption)


def _draw_thresholds(axes: Axes, rounds: Sequence[Line]) -> None:
    """Draw the threshold of each round, if any had one."""
    thresholds = [line['threshold'] or math.nan for line in rounds]
    if any(map(math.isfinite, thresholds)):
        numbers = [line['round'] for line in rounds]
        axes.step(
            numbers, thresholds, where='mid', color=MARK, label='threshold'
        )
        axes.legend()


def score_chart(rounds: Sequence[Line], edges: Sequence[float]) -> Picture:
    """Draw the histogram of the scores after each round, as a heat map."""
    counts = np.array([line['score_histogram'] for line in rounds])
    filled = np.flatnonzero(counts.sum(0))
    low, high = (filled[0], filled[-1] + 1) if len(filled) else (0, 1)
    first = rounds[0]['round']
    sides = np.arange(first, first + len(rounds) + 1) - 0.5
    with _chart('round', 'score (loss of the sample)') as (figure, axes):
        axes.grid(False)
        mesh = axes.pcolormesh(
            sides,
            edges[low : high + 1],
            np.ma.masked_equal(counts[:, low:high].T, 0),
            cmap='Blues',
            norm=LogNorm(vmin=0.5, vmax=max(1, counts.max())),
            rasterized=True,
        )
        axes.set_yscale('log')
        axes.yaxis.set_major_formatter('{x:g}')
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter('{x:g}')
        _by_round(axes)
        figure.colorbar(mesh, label='samples')
        _draw_thresholds(axes, rounds)
        alt = (
            f'Heat map of the scores over {len(rounds)} rounds, between '
            f'{edges[low]:.2g} and {edges[high]:.2g}.'
        )
        caption = (
            'Scores of the samples after each round, darker where there are '
            'more. Below the threshold of its round a sample could be pruned.'
        )
        return Picture(_address(figure), alt, caption)
