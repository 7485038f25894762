"""Position tables and their resizing against facebookresearch/mae."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.models.pos_embed import resize_pos_embed, sincos_2d, sinusoid_1d
from plsc_mae.parity.oracle.layers import position_table

pytestmark = pytest.mark.compat


@pytest.mark.parametrize(("dim", "side"), [(48, 8), (32, 5), (4, 3)])
def test_whole_tables(golden, dim, side):
    case = golden("mae/fb_pos_embed")
    for suffix, class_token in (("", False), ("_cls", True)):
        table = sincos_2d(dim, (side, side), class_token=class_token)
        np.testing.assert_allclose(table, case[f"output/fb_{dim}_{side}{suffix}"], atol=1e-12)


def test_the_published_sizes(golden):
    case = golden("mae/fb_pos_embed")
    base = sincos_2d(768, (14, 14), class_token=True)
    np.testing.assert_allclose(base[:, ::24], case["output/fb_768_14_cls_cols"], atol=1e-6)
    np.testing.assert_allclose(base[[0, 1, 2, 15, 16, 97, 196]], case["output/fb_768_14_cls_rows"], atol=1e-6)
    huge_decoder = sincos_2d(512, (16, 16), class_token=True)
    np.testing.assert_allclose(huge_decoder[[0, 1, 2, 17, 100, 256]], case["output/fb_512_16_cls_rows"], atol=1e-6)


def test_column_first_on_a_rectangle():
    table = sincos_2d(8, (2, 3))
    rows, columns = np.divmod(np.arange(6), 3)
    np.testing.assert_allclose(table[:, 0], np.sin(columns))
    np.testing.assert_allclose(table[:, 4], np.sin(rows))


@pytest.mark.parametrize(("grid", "dim"), [((8, 8), 48), ((14, 14), 64), ((4, 6), 16)])
def test_row_first_is_mae_privs(golden, grid, dim):
    """Its tables are computed in float32; 2e-6 as recorded."""
    expected = golden("mae/priv_pos_embed")[f"output/priv2d_{grid[0]}x{grid[1]}_{dim}"]
    np.testing.assert_allclose(sincos_2d(dim, grid, row_first=True), expected, atol=2e-6)
    np.testing.assert_allclose(position_table("row first", dim, grid), expected, atol=2e-6)


def test_row_first_on_a_rectangle_is_the_table_of_the_transposed_grid():
    table = sincos_2d(8, (3, 7), row_first=True)
    first, second = np.divmod(np.arange(21), 3)
    np.testing.assert_allclose(table[:, 0], np.sin(first))
    np.testing.assert_allclose(table[:, 4], np.sin(second))
    np.testing.assert_array_equal(table, sincos_2d(8, (7, 3))[:, [4, 5, 6, 7, 0, 1, 2, 3]])


def test_the_sinusoid_is_mae_pytorchs(golden):
    """Recorded in float32."""
    case = golden("mae/priv_pos_embed")
    for count, dim in ((64, 48), (17, 10)):
        np.testing.assert_allclose(sinusoid_1d(dim, count), case[f"output/sinusoid1d_{count}_{dim}"], atol=1e-6)
    base = sinusoid_1d(768, 196)
    np.testing.assert_allclose(base[:, ::23], case["output/sinusoid1d_196_768_cols"], atol=1e-6)
    with_token = sinusoid_1d(10, 17, class_token=True)
    np.testing.assert_array_equal(with_token, np.concatenate([np.zeros((1, 10)), sinusoid_1d(10, 17)]))


def test_width_must_divide_by_four():
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sincos_2d(6, (2, 2))


@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 16), (14, 7), (14, 14)])
def test_resizing(golden, old, new):
    case = golden("mae/fb_pos_embed")
    table = case[f"input/interp_{old}_{new}"]
    resized = resize_pos_embed(table, (old, old), (new, new))
    np.testing.assert_allclose(resized, case[f"output/interp_{old}_{new}"], atol=1e-5, rtol=1e-5)
