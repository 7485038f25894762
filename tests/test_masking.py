"""Masks against facebookresearch/mae, exactly, and what must hold for any mask."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.masking import num_visible, random_masking

pytestmark = pytest.mark.compat


def test_masks_equal_the_original(golden):
    case = golden("mae/fb_masking")
    rows = case.meta["rows_L_ratio_lenkeep"]
    assert rows
    for patches, ratio, keep in rows:
        stem = f"L{patches}_r{ratio}"
        found = random_masking(paddle.to_tensor(case[f"input/{stem}/noise"]), ratio)
        np.testing.assert_array_equal(found.mask.numpy(), case[f"output/{stem}/mask"].astype(bool), stem)
        np.testing.assert_array_equal(found.ids_restore.numpy(), case[f"output/{stem}/ids_restore"], stem)
        np.testing.assert_array_equal(found.ids_keep.numpy(), case[f"output/{stem}/ids_keep"], stem)
        assert num_visible(patches, ratio) == keep


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.9])
def test_visible_and_hidden_are_a_partition(ratio):
    noise = paddle.to_tensor(np.random.default_rng(0).random((3, 50), np.float32))
    found = random_masking(noise, ratio)
    assert found.mask.dtype == paddle.bool
    everything = paddle.concat([found.ids_keep, found.ids_masked], axis=1).numpy()
    np.testing.assert_array_equal(np.sort(everything, axis=1), np.tile(np.arange(50), (3, 1)))
    for mask, hidden in zip(found.mask.numpy(), found.ids_masked.numpy(), strict=True):
        np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(hidden))
    # ids_restore puts concat(ids_keep, ids_masked) back into raster order.
    restored = np.take_along_axis(everything, found.ids_restore.numpy(), axis=1)
    np.testing.assert_array_equal(restored, np.tile(np.arange(50), (3, 1)))
