"""Line charts as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 40
COLORS = ("#2166ac", "#b35806", "#1b7837", "#762a83", "#c51b7d", "#4d4d4d", "#8c510a", "#01665e")
DASHES = ("9 4", "5 4", "2 3", "9 3 2 3")  # of the levels, the highest first
START = 0.1  # share of the horizontal axis that counts as the start of the curves
MAX_POINTS = 400  # of a curve
FEW_POINTS = 40  # a curve of up to this number of points has markers


class Curve(NamedTuple):
    """A curve of a chart."""

    label: str  # its name in the legend
    x: Sequence[float]  # updates or epochs in ascending order
    y: Sequence[float]  # values


class Level(NamedTuple):
    """A horizontal dashed line of a chart, with its label in the legend."""

    label: str
    height: float
    dashes: str


def line_chart(curves: Sequence[Curve], *, x_label: str, levels: Mapping[str, float] | None = None) -> str:
    """Return a chart with a legend as HTML.

    Curves of more than MAX_POINTS points show the means of neighboring points. A curve without points is not drawn, but
    counts for the colors, so that a run has the same color in all charts. Curves of the same points are drawn once,
    with both labels.

    With levels, values of the start that are more than twice as high as all later values and levels are cut off, which
    a text in the chart says: they would flatten the rest.

    Args:
        curves: the curves; one or more of them must have points.
        x_label: label of the horizontal axis.
        levels: heights of horizontal dashed lines by label; the labels are in the legend, because close levels have no
            room for them. If the largest value of the curves is positive, a level above twice that value is in the
            legend only.
    """
    colored = [(COLORS[i % len(COLORS)], Curve(c.label, *_thinned(c.x, c.y))) for i, c in enumerate(curves) if c.y]
    colored = _without_hidden(colored)
    highest = max(value for _, curve in colored for value in curve.y)
    sorted_levels = sorted((levels or {}).items(), key=lambda item: -item[1])
    dashed = [Level(*item, DASHES[i % len(DASHES)]) for i, item in enumerate(sorted_levels)]
    shown = [level for level in dashed if highest <= 0 or level.height <= 2 * highest]
    xs = _axis([x for _, curve in colored for x in curve.x], tight=True)
    values = [*(y for _, curve in colored for y in curve.y), *(level.height for level in shown)]
    later = [*_later_values(colored, xs), *(level.height for level in shown)]
    cut = bool(shown) and highest > 2 * max(later) > 0
    ys = _axis([value for value in values if value <= max(later)] if cut else values)
    parts = [*_frame(xs, ys, x_label), *_level_lines(shown, ys)]
    lines = [part for color, curve in colored for part in _curve_line(color, curve, xs, ys)]
    parts += [*_clipped(lines), _cut_text(highest, xs)] if cut else lines
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f'{svg}<p class="legend">{"".join(_legend(colored, dashed))}</p>'


def _without_hidden(colored: Sequence[tuple[str, Curve]]) -> list[tuple[str, Curve]]:
    """Return curves of different points; one that another would hide adds its label to it."""
    kept: list[tuple[str, Curve]] = []
    for color, curve in colored:
        for i, (first, other) in enumerate(kept):
            if len(other.x) == len(curve.x) and np.allclose((other.x, other.y), (curve.x, curve.y), rtol=1e-6, atol=0):
                kept[i] = first, other._replace(label=f"{other.label}, {curve.label}")
                break
        else:
            kept.append((color, curve))
    return kept


def _later_values(colored: Sequence[tuple[str, Curve]], xs: _Axis) -> Iterator[float]:
    """Yield the values of the curves after the start."""
    first = xs.low + START * (xs.high - xs.low)
    for _, curve in colored:
        yield from (y for x, y in zip(curve.x, curve.y, strict=True) if x >= first)


def _curve_line(color: str, curve: Curve, xs: _Axis, ys: _Axis) -> Iterator[str]:
    """Yield the line of a curve and, if it has few points, their markers."""
    points = [
        (xs.position(x, LEFT, WIDTH - RIGHT), ys.position(y, HEIGHT - BOTTOM, TOP))
        for x, y in zip(curve.x, curve.y, strict=True)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline class="curve" stroke="{color}" points="{path}" />'
    if len(points) <= FEW_POINTS:
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}" />' for x, y in points)


def _clipped(lines: Sequence[str]) -> Iterator[str]:
    """Yield curves without their parts above the frame."""
    height = HEIGHT - BOTTOM - TOP + 3  # markers on the lowest line stay whole
    yield f'<svg class="frame" y="{TOP}" width="{WIDTH}" height="{height}" viewBox="0 {TOP} {WIDTH} {height}">'
    yield from lines
    yield "</svg>"


def _cut_text(highest: float, xs: _Axis) -> str:
    """Return the text that says what `_clipped` cut off."""
    x = xs.position(xs.low + START * (xs.high - xs.low), LEFT, WIDTH - RIGHT)
    return f'<text class="cut" x="{x:.1f}" y="{TOP + 14}">↑ first values, up to {highest:.4g}, are cut off</text>'


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
    for tick, text in zip(ys.ticks, tick_texts(ys.ticks), strict=True):
        y = ys.position(tick, HEIGHT - BOTTOM, TOP)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" />'
        yield f'<text class="y" x="{LEFT - 6}" y="{y + 4:.1f}">{text}</text>'
    for tick, text in zip(xs.ticks, tick_texts(xs.ticks), strict=True):
        x = xs.position(tick, LEFT, WIDTH - RIGHT)
        yield f'<text class="x" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{text}</text>'
    yield f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x_label)}</text>'


def _level_lines(levels: Sequence[Level], ys: _Axis) -> Iterator[str]:
    for level in levels:
        y = ys.position(level.height, HEIGHT - BOTTOM, TOP)
        yield _dashed_line(level, LEFT, WIDTH - RIGHT, y)


def _dashed_line(level: Level, x1: float, x2: float, y: float) -> str:
    at = f'x1="{x1}" x2="{x2}" y1="{y:.1f}" y2="{y:.1f}"'
    return f'<line class="level" stroke-dasharray="{level.dashes}" {at} />'


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Return the labels of ticks, with four significant digits, or more if some would be equal."""
    for digits in range(4, 16):
        texts = ["0" if abs(tick) < 1e-15 else f"{tick:.{digits}g}" for tick in ticks]
        if len(set(texts)) == len(ticks):
            break
    return [text.replace("e-0", "e-").replace("e+0", "e") for text in texts]


def _legend(colored: Sequence[tuple[str, Curve]], levels: Sequence[Level]) -> Iterator[str]:
    for color, curve in colored:
        yield f'<span><i style="background:{color}"></i>{escape(curve.label)}</span>'
    for level in levels:
        sample = f'<svg class="sample" viewBox="0 0 36 6">{_dashed_line(level, 0, 36, 3)}</svg>'
        yield f"<span>{sample}{escape(level.label)}: {level.height:.4g}</span>"
