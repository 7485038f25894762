"""Crop boxes, the basic transforms and normalization against arrays recorded from torchvision."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae.data.decode import Box, PilImage, open_image
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.seeding import sample_rng
from plsc_mae.data.transforms import (
    RandomCropFlip,
    ResizeCenterCrop,
    center_crop_box,
    clamped_crop_box,
    draw_interpolation,
    flip_horizontal,
    random_resized_crop_box,
    resize_shorter_side,
    resize_to_cover,
)

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.fixture
def recorded(golden, tmp_path):
    """Return the recorded arrays and, per image, its JPEG file and the tolerance in levels of this decoder."""
    arrays = golden("mae/img_transforms")
    files = []
    for image in range(3):
        path = tmp_path / f"{image}.jpg"
        path.write_bytes(arrays[f"input/jpeg{image}"].tobytes())
        source = open_image(path, "pil")
        box = Box(0, 0, source.height, source.width)
        decoded = source.crop_resize(box, (source.height, source.width))
        same = (decoded.sum((0, 1), dtype=np.int64) == arrays[f"input/decoded_sum{image}"]).all()
        files.append((path, 0 if same else 2))  # 0: the same libjpeg, so the same pixels; else what the record allows
    return arrays, files


def assert_pixels(actual: np.ndarray, expected: np.ndarray, tolerance: int) -> None:
    assert actual.dtype == np.uint8
    np.testing.assert_allclose(actual.astype(int), expected.astype(int), rtol=0, atol=tolerance)


def normalized(pixels: np.ndarray) -> np.ndarray:
    """Take every 8th row and column, as in the recording."""
    return Normalize()(paddle.to_tensor(pixels[None])).numpy()[0, :, ::8, ::8]


def test_crop_boxes_are_torchvisions(golden):
    rows = json.loads(str(golden("mae/img_rrc_params")["rows"]))
    assert len(rows) > 5
    fallbacks = 0
    for row in rows:
        expected = row["torchvision"]
        draws: Iterator[float] = iter(expected["u"])
        box = random_resized_crop_box(lambda d=draws: next(d), row["h"], row["w"], row["scale"], row["ratio"])
        assert list(box) == expected["box_top_left_h_w"], row
        assert list(draws) == [], "every recorded draw is used"
        fallbacks += len(expected["u"]) == 20 and box.top == (row["h"] - box.height) // 2
    assert fallbacks > 0


def test_crop_boxes_of_fine_tuning_and_linear_probing_are_timms_and_facebooks(golden):
    rows = json.loads(str(golden("mae/img_rrc_params")["rows"]))
    clamped = 0
    for row in rows:
        for name, draw_box in (("timm", random_resized_crop_box), ("fb_linprobe", clamped_crop_box)):
            expected = row[name]
            draws: Iterator[float] = iter(expected["u"])
            box = draw_box(lambda d=draws: next(d), row["h"], row["w"], row["scale"], row["ratio"])
            assert list(box) == expected["box_top_left_h_w"], (name, row)
            assert list(draws) == [], "every recorded draw is used"
        clamped += box.height == row["h"] or box.width == row["w"]
    assert clamped > 0


@pytest.mark.parametrize("draw_box", [random_resized_crop_box, clamped_crop_box])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 100), (100, 1), (3, 1000), (500, 375)])
def test_crop_boxes_lie_inside(height, width, draw_box):
    for index in range(200):
        box = draw_box(sample_rng(0, 0, index).random, height, width)
        assert 0 <= box.top <= box.top + box.height <= height
        assert 0 <= box.left <= box.left + box.width <= width
        assert box.height > 0
        assert box.width > 0


@pytest.mark.parametrize("draw_box", [random_resized_crop_box, clamped_crop_box])
@pytest.mark.parametrize("ratio", [(0.01, 0.02), (1.8, 2.8), (300.0, 400.0)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 100), (100, 1), (400, 900)])
def test_crop_boxes_of_any_aspect_ratio_lie_inside_and_are_not_empty(height, width, ratio, draw_box):
    for index in range(50):
        box = draw_box(sample_rng(0, 0, index).random, height, width, (0.2, 1.0), ratio)
        assert 0 <= box.top < box.top + box.height <= height
        assert 0 <= box.left < box.left + box.width <= width


def test_crops_have_the_aspect_ratios_of_the_range():
    for index in range(500):
        box = random_resized_crop_box(sample_rng(0, 0, index).random, 400, 900, (0.2, 1.0), (1.8, 2.8))
        # Each side is rounded to whole pixels; crops are at least 150 pixels high.
        assert 1.8 - 0.02 <= box.width / box.height <= 2.8 + 0.02


@pytest.mark.parametrize("draw_box", [random_resized_crop_box, clamped_crop_box])
def test_wide_crops_can_hold_nearly_the_whole_of_a_wide_picture(draw_box):
    boxes = [draw_box(sample_rng(0, 0, i).random, 400, 900, (0.6, 1.0), (1.8, 2.8)) for i in range(500)]
    assert max(box.height * box.width for box in boxes) > 0.98 * 400 * 900
    assert any(box.left == 0 for box in boxes)
    assert any(box.left + box.width == 900 for box in boxes)


def test_crops_of_the_default_range_lose_an_end_of_a_wide_picture():
    boxes = [random_resized_crop_box(sample_rng(0, 0, index).random, 400, 900) for index in range(500)]
    assert max(box.width for box in boxes) <= 534  # 4/3 of the height, rounded


def test_crops_and_flips_are_torchvisions(recorded):
    arrays, files = recorded
    crops = [case for case in arrays.meta["cases"] if "case" in case]
    assert len(crops) == 6
    for case in crops:
        path, tolerance = files[case["image"]]
        box = Box(case["top"], case["left"], case["height"], case["width"])
        pixels = open_image(path, "pil").crop_resize(box, (224, 224), "bicubic")
        pixels = flip_horizontal(pixels) if case["flip"] else pixels
        name = f"output/crop{case['image']}_{case['case']}"
        assert_pixels(pixels, arrays[f"{name}_u8"], tolerance)
        # 1e-6: the record's own tolerance, a few float32 roundings of values up to 2.6
        np.testing.assert_allclose(normalized(arrays[f"{name}_u8"]), arrays[f"{name}_norm"], rtol=0, atol=1e-6)


def test_evaluation_transform_is_torchvisions(recorded):
    arrays, files = recorded
    sizes = [case["eval_resized_size_wh"] for case in arrays.meta["cases"] if "eval_resized_size_wh" in case]
    transform = ResizeCenterCrop((224, 224), shorter_side=256)
    for image, (path, tolerance) in enumerate(files):
        source = open_image(path, "pil")
        assert resize_shorter_side(source.height, source.width, 256) == tuple(sizes[image][::-1])
        pixels = transform(source, sample_rng(0, 0, 0))["image"]
        assert_pixels(pixels, arrays[f"output/eval{image}_u8"], tolerance)
        expected = arrays[f"output/eval{image}_norm"]
        np.testing.assert_allclose(normalized(arrays[f"output/eval{image}_u8"]), expected, rtol=0, atol=1e-6)


def test_shorter_side_is_exact_and_longer_rounded_down():
    assert resize_shorter_side(375, 500, 256) == (256, 341)
    assert resize_shorter_side(500, 375, 256) == (341, 256)
    assert resize_shorter_side(7, 7, 256) == (256, 256)


def test_center_crop_rounds_half_to_even():
    assert center_crop_box(257, 259, (224, 224)) == Box(16, 18, 224, 224)
    assert center_crop_box(10, 20, (10, 20)) == Box(0, 0, 10, 20)
    with pytest.raises(ValueError, match="does not fit"):
        center_crop_box(223, 300, (224, 224))


def test_random_crop_flip_takes_crop_then_flip_from_the_generator(recorded):
    path = recorded[1][1][0]
    source = open_image(path)
    transform = RandomCropFlip((32, 48), scale=(0.5, 1.0))
    flips = 0
    for index in range(12):
        actual = transform(source, sample_rng(1, 0, index))["image"]
        rng = sample_rng(1, 0, index)
        box = random_resized_crop_box(rng.random, source.height, source.width, (0.5, 1.0))
        expected = source.crop_resize(box, (32, 48))
        flip = rng.random() < 0.5
        flips += flip
        np.testing.assert_array_equal(actual, expected[:, ::-1] if flip else expected)
        assert actual.flags.c_contiguous
    assert 0 < flips < 12


@pytest.mark.parametrize(("hflip", "flipped"), [(0.0, False), (1.0, True)])
def test_flip_probability_reaches_its_ends(recorded, hflip, flipped):
    source = open_image(recorded[1][1][0])
    for index in range(5):
        actual = RandomCropFlip((16, 16), hflip=hflip)(source, sample_rng(0, 0, index))["image"]
        box = random_resized_crop_box(sample_rng(0, 0, index).random, source.height, source.width)
        expected = source.crop_resize(box, (16, 16))
        np.testing.assert_array_equal(actual, expected[:, ::-1] if flipped else expected)


def test_only_a_random_interpolation_is_drawn():
    rng = sample_rng(0, 0, 0)
    assert draw_interpolation("lanczos", rng) == "lanczos"
    assert rng.random() == sample_rng(0, 0, 0).random()
    drawn = [draw_interpolation("random", rng) for _ in range(40)]
    assert set(drawn) == {"bilinear", "bicubic"}


def test_a_rectangle_is_covered_and_an_image_of_its_size_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    image = PilImage("", Image.fromarray(pixels))
    whole = ResizeCenterCrop((16, 40), shorter_side=40)
    np.testing.assert_array_equal(whole(image, sample_rng(0, 0, 0))["image"], pixels)
    assert resize_to_cover(16, 40, (16, 40), 1.25) == (20, 50)
    assert resize_to_cover(100, 50, (16, 40), 1.0) == (80, 40)
    assert resize_to_cover(50, 300, (16, 40), 1.0) == (16, 96)
