"""The report in Markdown and JSON, with finite and infinite differences."""

from __future__ import annotations

import json

import numpy as np
import pytest

from plsc_mae.errors import DataError
from plsc_mae.parity.compare import Comparison, Row, Section
from plsc_mae.parity.report import WORST, Report


@pytest.fixture
def report() -> Report:
    layers = [Row("embed", 1e-6, 1e-7, 2.0, 1e-5), Row("blocks.0", np.inf, np.inf, 1.0, 1e-5)]
    gradients = [Row(f"weight{i}", i * 1e-7, 0.0, 1.0, 1e-5) for i in range(20)]
    sections = [Section("forward", "Of two images.", layers, in_order=True), Section("gradients", "Slopes.", gradients)]
    compared = Comparison("net", "code", sections, versions="PyTorch 2.13")
    left_out = Comparison("other", "code", remark="not compared: code has no such network")
    return Report({"command": "`x`", "seed": "0"}, [compared, left_out], ["facebookresearch/mae"])


def test_page(report):
    page = report.markdown()
    assert page.startswith("# Parity\n")
    assert "| command | `x` |" in page
    assert "| net | code | forward | 2 | blocks.0 | inf | 1e-05 | **failed** |" in page
    assert "| net | code | gradients | 20 | weight19 | 1.9e-06 | 1e-05 | ok |" in page
    assert "| embed | 1.0e-06 | 1.0e-07 | 2.0e+00 | 5.0e-07 | 1.0e-05 | ok |" in page
    assert "PyTorch 2.13" in page
    assert "ot compared: code has no such network" in page  # the remark, capitalized
    assert "facebookresearch/mae" in page[page.index("## This report") :]


def test_sections_without_order_show_the_worst_rows(report):
    page = report.markdown()
    shown = [line for line in page.splitlines() if line.startswith("| weight")]
    assert [line.split()[1] for line in shown] == [f"weight{i}" for i in range(19, 19 - WORST, -1)]
    assert "| 15 more" in page


def test_json_has_every_row_and_no_infinity(report):
    stored = json.loads(report.json(), parse_constant=pytest.fail)
    assert stored["ok"] is False
    forward, gradients = stored["comparisons"][0]["sections"]
    assert forward["rows"][1] == {
        **{"name": "blocks.0", "largest": "inf", "mean": "inf", "scale": 1.0, "relative": "inf"},
        **{"tolerance": 1e-5, "ok": False},
    }
    assert len(gradients["rows"]) == 20
    assert stored["comparisons"][1]["remark"].startswith("not compared")


def test_saved_files(report, tmp_path):
    assert report.save(tmp_path / "deep/page.md") == [tmp_path / "deep/page.md"]
    assert {path.name for path in report.save(tmp_path / "folder")} == {"parity.json", "parity.md"}
    assert (tmp_path / "folder/parity.md").read_text() == (tmp_path / "deep/page.md").read_text() == report.markdown()
    with pytest.raises(DataError, match=r"page\.md/x\.json.*--save_path"):
        report.save(tmp_path / "deep/page.md/x.json")
