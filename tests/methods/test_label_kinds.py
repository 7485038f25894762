"""Kinds of labels as checkpoints store them."""

from __future__ import annotations

import pytest

from plsc_mae.errors import CheckpointError
from plsc_mae.methods.label_kinds import LABEL_KIND, Classes, Numbers, stored_kind


def test_statistics_of_numbers_are_stored():
    kind = stored_kind(Numbers([1.0, 2.0], [3.0, 4.0]).state(), "x.pd")
    assert isinstance(kind, Numbers)
    assert (kind.mean.tolist(), kind.std.tolist()) == ([1.0, 2.0], [3.0, 4.0])
    assert isinstance(stored_kind({}, "x.pd"), Classes)


@pytest.mark.parametrize(
    "entry",
    [
        5,
        "regression",
        {},
        {"task": ["regression"]},
        {"task": "ranking"},
        {"task": "classification", "mean": [0.0]},
        {"task": "regression", "mean": "x", "std": [1.0]},
        {"task": "regression", "mean": [0.0, 0.0], "std": [1.0]},
        {"task": "regression", "mean": 0.0, "std": 1.0},
        {"task": "regression", "mean": [0.0], "std": [0.0]},
    ],
)
def test_damaged_entries_are_refused(entry):
    with pytest.raises(CheckpointError, match=rf"x\.pd.*{LABEL_KIND}"):
        stored_kind({LABEL_KIND: entry}, "x.pd")
