"""Masks against facebookresearch/mae and Atten4Vis/CAE, exactly, and what must hold for any mask."""

from __future__ import annotations

import random

import numpy as np
import paddle
import pytest

from plsc_mae.errors import ConfigError
from plsc_mae.masking import BlockMaskGenerator, RandomMaskGenerator, num_visible, random_masking

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


BLOCK_SETTINGS = ["seed_75", "official_98", "max40_60"]


@pytest.fixture
def cae_masks(golden):
    return golden("cae/masks")


def block_generator(case, setting: str) -> BlockMaskGenerator:
    given = case.meta["settings"][setting]
    side = given["input_size"]
    return BlockMaskGenerator(
        (side, side), given["num_masking_patches"], given["min_num_patches"], given["max_num_patches"]
    )


def recorded_masks(case, setting: str) -> np.ndarray:
    """bool [seeds, calls, 14, 14]."""
    bits = np.unpackbits(case[f"output/{setting}/masks_bits"], axis=-1)[..., :196]
    return bits.reshape(*bits.shape[:2], 14, 14).astype(bool)


@pytest.mark.parametrize("setting", BLOCK_SETTINGS)
def test_block_masks_equal_the_original(cae_masks, setting):
    generator = block_generator(cae_masks, setting)
    for seed, expected in zip(cae_masks.meta["seeds"], recorded_masks(cae_masks, setting), strict=True):
        rng = random.Random(seed)
        actual = [generator(rng) for _ in expected]
        assert {mask.dtype for mask in actual} == {np.dtype(bool)}
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("setting", ["random_0.5", "random_0.4"])
def test_random_masks_equal_the_original(cae_masks, setting):
    generator = RandomMaskGenerator((14, 14), cae_masks.meta["settings"][setting]["ratio"])
    for seed, expected in zip(cae_masks.meta["seeds"], recorded_masks(cae_masks, setting), strict=True):
        rng = np.random.RandomState(seed)
        np.testing.assert_array_equal([generator(rng) for _ in expected], expected)


@pytest.mark.parametrize(
    ("patches", "third"),
    [(98, 0x3800E0039F0E7C39F8E7E39FEE7F81FE07F81FE07E01F8), (75, 0x1F807E01F807E01F807E01F807E01F807E00001F007C01F0)],
)
def test_third_block_mask_of_a_stream(patches, third):
    generator, rng = BlockMaskGenerator((14, 14), patches), random.Random(0)
    mask = [generator(rng) for _ in range(3)][-1]
    assert int("".join(map(str, mask.ravel().astype(int))), 2) == third


@pytest.mark.once
@pytest.mark.parametrize("setting", BLOCK_SETTINGS)
def test_block_masks_are_distributed_as_the_originals(cae_masks, setting):
    generator, rng = block_generator(cae_masks, setting), random.Random(7)
    masks = np.array([generator(rng) for _ in range(2000)])
    assert set(masks.sum((1, 2))) == {generator.num_mask_patches}
    # 0.05: two means of 2000 draws differ by 0.016 at one standard deviation, and there are 196 of them
    np.testing.assert_allclose(masks.mean(0), cae_masks[f"output/{setting}/stat_mean_map"], rtol=0, atol=0.05)


@pytest.mark.once
@pytest.mark.parametrize(
    ("patches", "corner", "edge", "center"), [(98, 0.061, 0.277, 0.858), (75, 0.047, 0.192, 0.723)]
)
def test_block_masks_prefer_the_center(patches, corner, edge, center):
    generator, rng = BlockMaskGenerator((14, 14), patches), random.Random(1)
    shares = np.mean([generator(rng) for _ in range(3000)], axis=0)
    # the frequencies of the same 3000 masks of the original, to the three digits recorded
    np.testing.assert_allclose([shares[0, 0], shares[0, 7], shares[7, 7]], [corner, edge, center], rtol=0, atol=5e-4)


def test_block_masks_of_every_valid_setting_end():
    """Settings that could never be filled are refused; the rest must come out, in any shape of grid."""
    accepted = 0
    for rows, columns in ((1, 4), (2, 2), (2, 5), (4, 3)):
        for patches in range(1, rows * columns):
            for smallest in range(1, patches + 1):
                try:
                    generator = BlockMaskGenerator((rows, columns), patches, smallest)
                except ConfigError:
                    continue
                mask = generator(random.Random(0))
                assert mask.shape == (rows, columns)
                assert mask.sum() == patches
                accepted += 1
    assert accepted > 50


@pytest.mark.parametrize("rng", [np.random.default_rng(0), np.random.RandomState(0)], ids=["Generator", "RandomState"])
def test_random_masks_hide_every_patch_equally_often(rng):
    generator = RandomMaskGenerator((4, 6), 0.4)
    masks = np.array([generator(rng) for _ in range(2000)])
    assert set(masks.sum((1, 2))) == {9}  # int(0.4 * 24)
    np.testing.assert_allclose(masks.mean(0), 9 / 24, rtol=0, atol=0.05)  # 0.011 is one standard deviation


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_mask_patches": 0}, "--num_mask_patches 0 hides 0 of 14x14"),
        ({"num_mask_patches": 196}, "at most 195"),
        ({"num_mask_patches": 500}, "at most 195"),
        ({"num_mask_patches": 75, "min_mask_patches_per_block": 0}, "--min_mask_patches_per_block 0"),
        ({"num_mask_patches": 75, "max_mask_patches_per_block": 0}, "--max_mask_patches_per_block 0"),
        ({"num_mask_patches": 1, "grid": (1, 1)}, "one patch.*larger images"),
        ({"num_mask_patches": 15, "grid": (4, 4)}, "16 is too large for 4x4"),
        ({"num_mask_patches": 195, "min_mask_patches_per_block": 183}, "183 is too large for 14x14"),
        ({"num_mask_patches": 2, "min_mask_patches_per_block": 1, "grid": (1, 14)}, "1 is too large for 1x14"),
    ],
)
def test_impossible_block_masks_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        BlockMaskGenerator(**{"grid": (14, 14), **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_mask_patches": 1},
        {"num_mask_patches": 10},
        {"num_mask_patches": 75, "max_mask_patches_per_block": 5},
        {"num_mask_patches": 6, "grid": (4, 4)},
        {"num_mask_patches": 8, "grid": (4, 4)},
    ],
)
def test_areas_may_be_drawn_downwards(arguments):
    """Fewer patches to hide than the smallest block has: the original then draws areas between the two."""
    generator = BlockMaskGenerator(**{"grid": (14, 14), **arguments})
    for seed in range(20):
        assert generator(random.Random(seed)).sum() == arguments["num_mask_patches"]


@pytest.mark.parametrize("ratio", [-0.5, 0.0, 0.004, 1.0, 1.5])
def test_impossible_random_masks_are_refused(ratio):
    with pytest.raises(ConfigError, match="--ratio_mask_patches"):
        RandomMaskGenerator((14, 14), ratio)
