"""Corruption errors against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.analysis.corruption import ALEXNET_ERRORS, corruption_errors, mean_corruption_error


def test_alexnet_is_the_unit():
    assert len(ALEXNET_ERRORS) == 15
    own = {name: [error + each for each in (-2, -1, 0, 1, 2)] for name, error in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(own) == pytest.approx(100)


def test_the_mean_is_over_relative_errors():
    """Each corruption is the ratio of two sums over the severities; the mean of the ratios is the mCE."""
    rng = np.random.default_rng(0)
    errors = {name: rng.uniform(10, 90, 5).tolist() for name in ALEXNET_ERRORS}
    ratios = [sum(errors[name]) / (5 * ALEXNET_ERRORS[name]) for name in errors]
    assert mean_corruption_error(errors) == pytest.approx(100 * sum(ratios) / 15)
    extra = {**errors, "spatter": [50.0] * 5}
    assert mean_corruption_error(extra) == mean_corruption_error(errors)
    assert "spatter" not in corruption_errors(extra)
    assert mean_corruption_error({"fog": errors["fog"]}) is None
    assert list(corruption_errors({"fog": errors["fog"]})) == ["fog"]
