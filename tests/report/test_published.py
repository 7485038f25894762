"""Runs of a published recipe are compared with its log, and deviations are flagged."""

from __future__ import annotations

import json

import pytest

from plsc_mae.config.recipes import recipe_path
from plsc_mae.config.resolve import load_config
from plsc_mae.config.schema import to_yaml
from plsc_mae.report.published import compare_published, published_logs
from plsc_mae.report.run_folder import read_run


@pytest.fixture
def follow(tmp_path):
    """Make a run of a published recipe, with losses that are the published ones times a factor."""

    def make(log, factor=1.0, images=4096, **changed):
        config = load_config(str(recipe_path(log.recipe)), **{"data_path": "x", "num_workers": 3, **changed})
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        values = zip(log.epochs, log.values, strict=True)
        lines = [{"epoch": e, "step": e + 1, "train_loss": v * (factor if e > 100 else 1)} for e, v in values]
        (tmp_path / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "history.jsonl").write_text(json.dumps({"event": "start", "images_per_update": images}))
        return compare_published(read_run(tmp_path))

    return make


@pytest.mark.parametrize("log", published_logs(), ids=lambda log: log.recipe)
def test_agreement_and_deviation(follow, log):
    (same,) = follow(log, 1.04)
    assert not same.deviates
    assert [row[:2] for row in same.rows] == list(zip(log.epochs, log.values, strict=True))
    (other,) = follow(log, 1.06)
    assert other.deviates
    assert f"{sum(epoch > 100 for epoch in log.epochs)} of {len(log.epochs)} epochs" in other.text


def test_other_recipes_are_not_compared(follow):
    log = published_logs()[0]
    assert follow(log, mask_ratio=0.6) == []
    assert follow(log, images=1024) == []
    assert len(follow(log, batch_size=64)) == 1
