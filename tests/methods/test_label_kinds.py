"""Kinds of labels as checkpoints store them."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.errors import CheckpointError
from plsc_mae.methods.label_kinds import LABEL_KIND, Classes, Numbers, stored_kind


def test_statistics_of_numbers_are_stored():
    kind = stored_kind(Numbers([1.0, 2.0], [3.0, 4.0]).state(), "x.pd")
    assert isinstance(kind, Numbers)
    assert (kind.mean.tolist(), kind.std.tolist()) == ([1.0, 2.0], [3.0, 4.0])
    assert isinstance(stored_kind({}, "x.pd"), Classes)


def test_classes_that_are_never_predicted_are_named():
    """Classes with fewer than three images are not named, and neither are other labels."""
    labels, outputs = np.repeat(np.arange(4), [5, 3, 2, 4]), np.zeros((14, 4), np.float32)
    outputs[:, 0] = 1
    (warning,) = Classes().warnings(outputs, labels, ["fine", "scratch", "hole", "dent"])
    assert "'scratch' (3 images), 'dent' (4 images)" in warning
    assert not any(name in warning for name in ("fine", "hole"))
    outputs[[5, 10], [1, 3]] = 2
    assert list(Classes().warnings(outputs, labels, ["fine", "scratch", "hole", "dent"])) == []
    (warning,) = Classes().warnings(np.eye(1, 9, dtype=np.float32).repeat(27, 0), np.arange(27) % 9, [*"abcdefghi"])
    assert warning.endswith("'f' (3 images) and 3 more")
    assert list(Numbers().warnings(outputs, outputs, [*"abcd"])) == []


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
