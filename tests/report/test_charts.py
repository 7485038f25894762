"""Charts contain all values, with ticks at round numbers."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from plsc_mae.report.charts import MAX_POINTS, Curve, line_chart


def points(html):
    path = ElementTree.fromstring(f"<div>{html}</div>").find(".//polyline").get("points")
    return [tuple(map(float, pair.split(","))) for pair in path.split()]


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [-3.0, 5e6], [1e-7, 2e-7, 1.5e-7], [0.1 + i / 7 for i in range(9)]]
)
def test_values_are_inside_the_frame(values):
    html = line_chart([Curve("a<b", range(len(values)), values)], x_label="update")
    assert all(62 <= x <= 604 and 14 <= y <= 260 for x, y in points(html))
    assert "a&lt;b" in html
    assert 2 <= len(re.findall('class="grid"', html)) <= 12


@pytest.mark.parametrize("values", [[1.3905, 1.3915], [1.0051, 1.0072], [123456.0, 123458.0], [-1.00001, -1.0]])
def test_the_labels_of_ticks_differ(values):
    html = line_chart([Curve("a", range(2), values)], x_label="update")
    labels = re.findall('class="y"[^>]*>([^<]+)<', html)
    assert len(labels) > 2
    assert len(set(labels)) == len(labels)
    spaces = [float(b) - float(a) for a, b in itertools.pairwise(labels)]
    assert spaces == pytest.approx([spaces[0]] * len(spaces), rel=0.01)


def test_long_curves_are_thinned_by_means():
    html = line_chart([Curve("a", range(4000), [float(i % 10) for i in range(4000)])], x_label="update")
    drawn = points(html)
    assert len(drawn) <= MAX_POINTS
    assert len({y for _, y in drawn}) == 1  # every mean of ten is 4.5


def test_far_levels_are_in_the_legend_only():
    html = line_chart([Curve("loss", [0, 1], [1.0, 0.5])], x_label="update", levels={"near": 1.5, "far": 9.0})
    assert html.partition("<p class")[0].count('<line class="level"') == 1
    assert "far: 9" in html


def test_levels_differ_by_their_dashes_and_are_named_in_the_legend_from_the_highest():
    curve = Curve("loss", [0, 1], [1.0, 0.1])
    chart = line_chart([curve], x_label="epoch", levels={"low": 0.50, "near": 0.51, "high": 0.9})
    picture, legend = chart.split("<p class")
    found = re.findall(r'stroke-dasharray="([^"]+)"', picture)
    assert len(set(found)) == 3
    assert re.findall(r'stroke-dasharray="([^"]+)"', legend) == found
    assert re.findall(r"</svg>(\w+): ([\d.]+)", legend) == [("high", "0.9"), ("near", "0.51"), ("low", "0.5")]
    assert "near" not in picture


def test_high_values_of_the_start_are_cut_off_and_said():
    """They would flatten the rest; without levels, or if a level is as high, nothing is cut off."""
    x, y = range(100), [9.0 - i for i in range(9)] + [1.0 - i / 200 for i in range(91)]
    html = line_chart([Curve("loss", x, y)], x_label="update", levels={"near": 0.8})
    assert "first values, up to 9, are cut off" in html
    drawn = points(html)
    assert drawn[0][1] < 14  # above the frame, so it is clipped
    assert max(b for _, b in drawn[10:]) - min(b for _, b in drawn[10:]) > 100
    for levels in (None, {"high": 8.0}):
        html = line_chart([Curve("loss", x, y)], x_label="update", levels=levels)
        assert "cut off" not in html
        assert min(b for _, b in points(html)) >= 14


@pytest.mark.parametrize("first", [0, 4])
def test_a_late_rise_is_never_cut_off(first):
    y = [1.0] * 50 + [20.0] * 2 + [1.0] * 48
    html = line_chart([Curve("loss", range(first, first + 100), y)], x_label="update", levels={"near": 0.8})
    assert "cut off" not in html
    assert min(b for _, b in points(html)) >= 14


def test_a_curve_that_another_would_hide_adds_its_label():
    x, y = [16, 32], [1.5, 1.0]
    curves = [Curve("loss", x, y), Curve("mean of the epoch", x, [v + 1e-9 for v in y]), Curve("lr", x, [1.5, 1.1])]
    html = line_chart(curves, x_label="update")
    assert len(re.findall("<polyline", html)) == 2
    assert "loss, mean of the epoch" in html
