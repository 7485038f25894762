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
    for axis in (matrix.yaxis, matrix.xaxis, bars.yaxis):
        texts = [tick.get_text() for tick in axis.get_ticklabels()]
        assert texts == shown if shown else not texts or texts[0].isdecimal() or texts[0].startswith("\N{MINUS SIGN}")
    assert ("classes.csv" in bars.get_ylabel()) == bool(note)
