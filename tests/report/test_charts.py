"""Charts contain all values, with ticks at round numbers."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from plsc_mae.report.charts import LINE, MAX_POINTS, Curve, line_chart


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


def test_long_curves_are_thinned_by_means():
    html = line_chart([Curve("a", range(4000), [float(i % 10) for i in range(4000)])], x_label="update")
    drawn = points(html)
    assert len(drawn) <= MAX_POINTS
    assert len({y for _, y in drawn}) == 1  # every mean of ten is 4.5


def test_far_levels_are_in_the_legend_only():
    html = line_chart([Curve("loss", [0, 1], [1.0, 0.5])], x_label="update", levels={"near": 1.5, "far": 9.0})
    assert html.count('<line class="level"') == 1
    assert "far: 9" in html


def test_labels_of_near_levels_do_not_overlap():
    curve = Curve("loss", [0, 1], [1.0, 0.1])
    chart = line_chart([curve], x_label="epoch", levels={"a": 0.50, "b": 0.51, "c": 0.9})
    heights = {label: float(y) for y, label in re.findall(r'<text class="level" x="\S+" y="(\S+)">(\w)<', chart)}
    assert heights["a"] - heights["b"] >= LINE
    assert heights["b"] - heights["c"] > LINE
