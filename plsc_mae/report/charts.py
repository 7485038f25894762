"""Line charts as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 40
COLORS = ("#2166ac", "#b35806", "#1b7837", "#762a83", "#c51b7d", "#4d4d4d", "#8c510a", "#01665e")
LINE = 12  # height of a line of text
MAX_POINTS = 400  # of a curve
FEW_POINTS = 40  # a curve of up to this number of points has markers


class Curve(NamedTuple):
    """A curve of a chart.

    Attributes:
        label: its name in the legend.
        x: updates or epochs in ascending order.
        y: values.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(curves: Sequence[Curve], *, x_label: str, levels: Mapping[str, float] | None = None) -> str:
    """Return a chart with a legend as HTML.

    Curves of more than MAX_POINTS points show the means of neighboring points. A curve without points is not drawn, but
    counts for the colors, so that a run has the same color in all charts.

    Args:
        curves: the curves; one or more of them must have points.
        x_label: label of the horizontal axis.
        levels: heights of horizontal dashed lines by label. If the largest value of the curves is positive, a level
            above twice that value is in the legend only.
    """
    colored = [(COLORS[i % len(COLORS)], Curve(c.label, *_thinned(c.x, c.y))) for i, c in enumerate(curves) if c.y]
    highest = max(value for _, curve in colored for value in curve.y)
    shown = {label: level for label, level in (levels or {}).items() if highest <= 0 or level <= 2 * highest}
    xs = _axis([x for _, curve in colored for x in curve.x], tight=True)
    ys = _axis([*(y for _, curve in colored for y in curve.y), *shown.values()])
    parts = [*_frame(xs, ys, x_label)]
    parts += _level_lines(shown, ys)
    for color, curve in colored:
        points = [
            (xs.position(x, LEFT, WIDTH - RIGHT), ys.position(y, HEIGHT - BOTTOM, TOP))
            for x, y in zip(curve.x, curve.y, strict=True)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="curve" stroke="{color}" points="{path}" />')
        if len(points) <= FEW_POINTS:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}" />' for x, y in points]
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f'{svg}<p class="legend">{"".join(_legend(colored, levels or {}))}</p>'


class _Axis(NamedTuple):
    low: float
    high: float
    ticks: Sequence[float]

    def position(self, value: float, start: float, end: float) -> float:
        return start + (value - self.low) / (self.high - self.low) * (end - start)


def _axis(values: Sequence[float], *, tight: bool = False) -> _Axis:
    """Return an axis that contains all values and has ticks at round numbers; unless `tight`, both ends are ticks."""
    low, high = min(values), max(values)
    if high == low:
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 4 or factor == 1)
    if tight:
        inside = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        return _Axis(low, high, [i * step for i in inside])
    ticks = [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]
    return _Axis(ticks[0], ticks[-1], ticks)


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    size = -(-len(x) // MAX_POINTS)
    groups = range(0, len(x), size)
    return tuple([sum(v[i : i + size]) / len(v[i : i + size]) for i in groups] for v in (x, y))  # type: ignore[return-value]


def _frame(xs: _Axis, ys: _Axis, x_label: str) -> Iterator[str]:
    for tick in ys.ticks:
        y = ys.position(tick, HEIGHT - BOTTOM, TOP)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" />'
        yield f'<text class="y" x="{LEFT - 6}" y="{y + 4:.1f}">{tick_text(tick)}</text>'
    for tick in xs.ticks:
        x = xs.position(tick, LEFT, WIDTH - RIGHT)
        yield f'<text class="x" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{tick_text(tick)}</text>'
    yield f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x_label)}</text>'


def _level_lines(levels: Mapping[str, float], ys: _Axis) -> Iterator[str]:
    """Yield a line and a label per level; labels of close levels are stacked upwards."""
    baseline = math.inf
    for label, level in sorted(levels.items(), key=lambda item: item[1]):
        y = ys.position(level, HEIGHT - BOTTOM, TOP)
        baseline = min(y - 4, baseline - LINE)
        yield f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" />'
        yield f'<text class="level" x="{WIDTH - RIGHT - 4}" y="{baseline:.1f}">{escape(label)}</text>'


def tick_text(value: float) -> str:
    """Return the label of a tick, with at most four significant digits."""
    return "0" if abs(value) < 1e-15 else f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")


def _legend(colored: Sequence[tuple[str, Curve]], levels: Mapping[str, float]) -> Iterator[str]:
    for color, curve in colored:
        yield f'<span><i style="background:{color}"></i>{escape(curve.label)}</span>'
    for label, level in levels.items():
        yield f'<span><i class="level"></i>{escape(label)}: {level:.4g}</span>'
