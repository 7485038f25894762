"""Sections of the report that have no test of the whole page."""

from __future__ import annotations

from pathlib import Path

import pytest

from plsc_mae.report.run_folder import RunFolder
from plsc_mae.report.sections import charts, evaluations, representation, starts
from plsc_mae.report.sections import warnings as section_of_warnings
from plsc_mae.report.verdict import judge


def folder(*epochs: dict[str, float]) -> RunFolder:
    return RunFolder(Path("run"), "", {}, (), epochs, (), {}, {})


def test_statistics_of_the_features_have_their_first_and_newest_values():
    run = folder({"step": 5}, {"step": 10, "feature_rank": 3.5}, {"step": 20, "feature_rank": 4.25})
    html = representation(run)
    assert "update 10" in html
    assert "update 20" in html
    assert 'value="3.5"' in html
    assert 'value="4.25"' in html
    assert "feature_alignment" not in html
    assert representation(folder({"step": 5})) == ""


def test_messages_keep_their_lines():
    """Control characters of names in them are escaped."""
    history = [
        {"event": "start", "step": 0},
        {"event": "warning", "step": 1, "message": "two\nlines <b>\x1b"},
        {"event": "end", "reason": "error: a\nb", "step": 2},
    ]
    run = RunFolder(Path("run"), "", {}, (), (), history, {}, {})
    assert "<td>error: a<br />b</td>" in starts(run)
    assert r"two<br />lines &lt;b&gt;\x1b" in section_of_warnings(run)


def test_the_fixed_loss_is_drawn():
    html = charts(folder({"step": 10, "fixed_loss_to_trivial": 1.2}, {"step": 20, "fixed_loss_to_trivial": 0.9}))
    assert "best trivial predictor" in html


@pytest.mark.parametrize(
    ("metric", "title", "rises"), [("test_mAP", "mAP", True), ("test_r2", "R2", True), ("test_rmse", "error", False)]
)
def test_metrics_of_several_labels_and_of_numbers(metric, title, rises):
    epochs = [
        {"epoch": i, "step": 5 * (i + 1), "train_loss": 0.5, metric: value} for i, value in enumerate((0.5, 0.25))
    ]
    run = folder(*epochs)
    html = charts(run)
    assert f">{metric}<" in html
    assert title in html
    assert ("in epoch" in evaluations(run)) == rises
    assert (f"{metric} is 0.25" in judge(run).text) == rises
