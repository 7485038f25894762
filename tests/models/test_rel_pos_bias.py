"""Tables of relative positions for another grid."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.models.rel_pos_bias import resize_relative_positions

pytestmark = pytest.mark.compat
TOKENS = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(("old", "new"), [(4, 6), (4, 3), (7, 14), (3, 12)])
def test_the_spline_is_fitpacks(golden, old, new):
    """Both are exact up to float64 rounding. From 3 to 12 patches the recipe leaves the old table and clamps."""
    case = golden("cae/relative_positions_resized")
    table = np.concatenate([case[f"input/table_{old}_{new}"], TOKENS])
    resized = resize_relative_positions(table, (old, old), (new, new))
    np.testing.assert_allclose(resized[:-3], case[f"output/table_{old}_{new}"], atol=1e-12)
    np.testing.assert_array_equal(resized[-3:], TOKENS)


def test_an_equal_grid_keeps_the_table():
    table = np.random.default_rng(0).standard_normal((5 * 7 + 3, 2), np.float32)
    np.testing.assert_array_equal(resize_relative_positions(table, (3, 4), (3, 4)), table)


def test_axes_are_resized_by_themselves():
    """A table that depends on the rows' difference alone stays so, and is linear where it was."""
    rows = np.repeat(np.arange(-3.0, 4.0), 5)[:, None]
    resized = resize_relative_positions(np.concatenate([rows, TOKENS[:, :1]]), (4, 3), (4, 5))
    np.testing.assert_allclose(resized[:-3, 0], np.repeat(np.arange(-3.0, 4.0), 9), atol=1e-12)
    assert resize_relative_positions(np.concatenate([rows, TOKENS[:, :1]]), (4, 3), (6, 3)).shape == (11 * 5 + 3, 1)
