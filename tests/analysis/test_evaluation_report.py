"""Charts and tables of an evaluation: every class can be found from its place in the picture."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from plsc_mae.analysis.evaluation_report import NAMED_BARS, class_report

UNKNOWN = "\U000fffff"  # a private character that no font has
LONG = "a name of a class that is longer than a chart is wide"


@pytest.mark.parametrize(
    ("names", "shown", "note"),
    [
        (["cat", "dog"], ["cat", "dog"], ""),
        (["cat", UNKNOWN], ["cat", "#1"], " (#: index in classes.csv)"),
        (["cat", LONG], ["cat", "#1 a name of a class..."], " (#: index in classes.csv)"),
        ([f"c{i}" for i in range(NAMED_BARS + 1)], None, " (index in classes.csv)"),
    ],
)
def test_a_chart_says_where_its_names_are(names, shown, note):
    labels = np.arange(len(names))
    tables, charts = class_report(np.eye(len(names), dtype=np.float32), labels, names)
    head, *rows = tables["classes.csv"]
    assert head == ["class", "images", "accuracy", "precision", "f1", "index"]
    assert [(row[0], row[-1]) for row in rows] == [(name, i) for i, name in enumerate(names)]
    matrix, bars = Figure().subplots(1, 2)
    for axes, chart in zip((matrix, bars), charts, strict=False):
        chart.draw(axes)
    assert matrix.get_ylabel() == f"true class{note}"
    assert matrix.get_xlabel() == f"predicted class{note}"
    assert bars.get_ylim()[0] < bars.get_ylim()[1]
    for axis in (matrix.yaxis, matrix.xaxis, bars.yaxis):
        texts = [tick.get_text() for tick in axis.get_ticklabels()]
        texts = texts[::-1] if axis is bars.yaxis else texts  # from the top, as in the matrix
        assert texts == shown if shown else not texts or texts[0].isdecimal() or texts[0].startswith("\N{MINUS SIGN}")
    assert ("classes.csv" in bars.get_ylabel()) == bool(note)


@pytest.mark.parametrize(("names", "rotation"), [(["cat", "dog"], 0), (["short-haired cat", "long-haired dog"], 90)])
def test_names_below_a_matrix_are_level_if_they_fit(names, rotation):
    axes = Figure().subplots()
    class_report(np.eye(2, dtype=np.float32), np.arange(2), names)[1][0].draw(axes)
    assert [tick.get_rotation() for tick in axes.xaxis.get_ticklabels()] == [rotation] * 2


@pytest.mark.parametrize("number", [3, NAMED_BARS + 1])
def test_a_class_that_is_never_right_can_be_seen(number):
    """As a number beside its bar and in the bin of its confidence; many classes are counted."""
    labels = np.arange(number)
    logits = np.eye(number, dtype=np.float32)[[*labels[:-1], 0]]  # the last class is taken for the first
    _, (_, *charts) = class_report(9 * logits, labels, [f"c{i}" for i in labels])
    bars, bins = Figure().subplots(1, 2)
    for axes, chart in zip((bars, bins), charts, strict=True):
        chart.draw(axes)
    shown = ["0.0", "100.0", "100.0"] if number == 3 else []
    assert [text.get_text() for text in bars.texts] == shown  # from the bottom, where the last class is
    assert ("1 of them 0" in bars.get_ylabel()) == (not shown)
    assert bars.get_xlim()[1] > 100


def test_a_bin_without_images_differs_from_one_without_a_right_image():
    logits = np.array([[9, 0], [0, 0.1]], np.float32)
    _, charts = class_report(logits, np.array([0, 0]), ["a", "b"])
    axes = Figure().subplots()
    charts[-1].draw(axes)
    (zero,) = [text for text in axes.texts if text.get_text()]
    assert zero.get_text() == "0"
    assert zero.xy[0] == pytest.approx(52.5, abs=5)  # softmax gives the wrong class 52.5 %
