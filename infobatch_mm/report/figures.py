"""The charts of the page, as SVG that takes its colours from the page.

So they are dark on a light page and light on a dark one.
"""

import base64
import hashlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..records import Line, kept_percent

# Each arm on a light page, and on a dark one.
ARM_COLORS = [
    ('#0b63a5', '#6cb6ff'),
    ('#9a5200', '#f0a35e'),
    ('#2a7a33', '#7ccf80'),
    ('#7a3fa0', '#c79bf2'),
    ('#b3215a', '#ff8fb8'),
    ('#00747a', '#5fd0d4'),
]
ARMS = [light for light, _ in ARM_COLORS]
# Colours of a chart become variables of the page.
MARK, INK, EDGE, GRID = '#d9541e', '#1c2126', '#767676', '#e3e3e3'
VARIABLES = {color: f'--arm{i}' for i, color in enumerate(ARMS)}
VARIABLES |= {MARK: '--mark', INK: '--ink', EDGE: '--edge', GRID: '--grid'}
RUN = ARMS[0]
# Arms are told apart without their colours too; of more than there are
# colours, by the markers.
MARKERS, DASHES = 'osD^vPX', ('-', '--', '-.', ':', (0, (6, 2)), (0, (1, 1)))
STYLE: dict[Any, Any] = {  # keys that matplotlib knows
    'axes.axisbelow': True,
    'axes.edgecolor': EDGE,
    'axes.facecolor': 'none',
    'axes.grid': True,
    'axes.labelcolor': INK,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'figure.facecolor': 'none',
    'font.size': 11,
    'grid.color': GRID,
    'legend.frameon': False,
    'lines.linewidth': 1.8,
    # Text stays text: it is sharp, small, and can be searched.
    'svg.fonttype': 'none',
    'text.color': INK,
    'xtick.color': EDGE,
    'xtick.labelcolor': INK,
    'ytick.color': EDGE,
    'ytick.labelcolor': INK,
}
# Small, so that its text can be read where a phone shrinks it.
SIZE = (5.2, 3.3)
POINTS = 200  # of a curve, at most


class Picture(NamedTuple):
    """A picture of the page, in words too."""

    svg: str
    alt: str
    caption: str


class Curve(NamedTuple):
    """Values of a run, at what they cost or when they were."""

    arm: int  # place among the arms, which gives its colour
    label: str
    costs: Sequence[float]
    values: Sequence[float]


def data_address(kind: str, content: bytes) -> str:
    """Return an address that holds its content, as ``image/png``."""
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


@contextmanager
def chart(xlabel: str, ylabel: str) -> Iterator[tuple[Figure, Axes]]:
    """Begin a chart in the style of the page."""
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout='constrained')
        axes = figure.subplots()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        yield figure, axes


def svg_of(figure: Figure) -> str:
    """Return a chart as an element of the page."""
    file = io.StringIO()
    # Without a date the same run gives the same page.
    with rc_context({'svg.hashsalt': 'infobatch_mm'}):
        figure.savefig(file, format='svg', dpi=150, metadata={'Date': None})
    text = file.getvalue()
    text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
    for color, name in VARIABLES.items():
        text = text.replace(color, f'var({name})')
    # The charts share a page, where an id can be given once.
    prefix = f'c{hashlib.sha1(text.encode()).hexdigest()[:8]}-'
    text = re.sub(r'( id="|href="#|url\(#)', rf'\g<1>{prefix}', text)
    return text[text.index('<svg') :]


def by_round(axes: Axes) -> None:
    """Let the ticks of the x-axis be whole rounds."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def metric_chart(
    metric: str, cost: str, curves: Sequence[Curve], caption: str
) -> Picture:
    """Draw a metric over what it cost: each run, and the mean of each arm."""
    with chart(cost, metric) as (figure, axes):
        means = [mean_curve(group) for group in by_arm(curves)]
        for mean, group in zip(means, by_arm(curves), strict=True):
            for curve in group if len(group) > 1 else ():
                axes.plot(
                    curve.costs,
                    curve.values,
                    color=ARMS[curve.arm % len(ARMS)],
                    linewidth=0.8,
                    alpha=0.5,
                )
            axes.plot(
                mean.costs,
                mean.values,
                marker=MARKERS[mean.arm % len(MARKERS)],
                markersize=4,
                **_line(mean),
            )
        _finish(axes, means)
        words = '; '.join(
            f'{curve.label} from {curve.values[0]:.4g} at '
            f'{curve.costs[0]:,.4g} to {curve.values[-1]:.4g} at '
            f'{curve.costs[-1]:,.4g}'
            for curve in means
        )
        alt = f'Line chart of {metric} over {cost}: {words}.'
        return Picture(svg_of(figure), alt, caption)


def training_chart(
    name: str, clock: str, curves: Sequence[Curve], caption: str
) -> Picture:
    """Draw what each run logged of its training."""
    with chart(clock, name) as (figure, axes):
        thin = [thinned(curve) for curve in curves]
        for group in by_arm(thin):
            for number, curve in enumerate(group):
                line = _line(curve) | dict(linewidth=1.3)
                line['label'] = curve.label if not number else None
                axes.plot(curve.costs, curve.values, **line)
        _finish(axes, [group[0] for group in by_arm(thin)])
        words = '; '.join(
            f'{group[0].label} from {group[0].values[0]:.3g} to '
            f'{group[0].values[-1]:.3g}'
            for group in by_arm(thin)
        )
        alt = f'Line chart of {name} over {clock}: {words}.'
        return Picture(svg_of(figure), alt, caption)


def by_arm(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Return the curves of each arm."""
    arms = dict.fromkeys(curve.arm for curve in curves)
    return [[c for c in curves if c.arm == arm] for arm in arms]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean over seeds, as far as all of them have come."""
    costs = zip(*(curve.costs for curve in curves), strict=False)
    values = zip(*(curve.values for curve in curves), strict=False)
    return curves[0]._replace(
        costs=[sum(at) / len(at) for at in costs],
        values=[sum(at) / len(at) for at in values],
    )


def thinned(curve: Curve) -> Curve:
    """Return the means of so many successive values that few remain."""
    size = math.ceil(len(curve.values) / POINTS)
    edges = range(0, len(curve.values), size or 1)
    return curve._replace(
        costs=[float(np.mean(curve.costs[i : i + size])) for i in edges],
        values=[float(np.mean(curve.values[i : i + size])) for i in edges],
    )


def draw_kept(axes: Axes, rounds: Sequence[Line], color: str = RUN) -> None:
    """Draw a bar for each round: the share of the samples that it kept."""
    numbers = [line['round'] for line in rounds]
    axes.bar(numbers, kept_percent(rounds), 0.85, color=color)
    axes.set_ylim(0, 100)
    by_round(axes)


def _line(curve: Curve) -> dict[str, Any]:
    return dict(
        color=ARMS[curve.arm % len(ARMS)],
        linestyle=DASHES[curve.arm % len(DASHES)],
        label=curve.label,
    )


def _finish(axes: Axes, curves: Sequence[Curve]) -> None:
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if len(curves) > 1:
        axes.legend(fontsize=9 if len(curves) > 3 else None)
