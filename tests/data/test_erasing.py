"""Random erasing: boxes and pixels recorded from timm 0.3.2, the draws of a worker, and erasing on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import paddle
import pytest

from plsc_mae.data.erasing import RandomErasing, erase, inside_boxes, random_erasing_box
from plsc_mae.data.seeding import sample_rng

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.fixture
def recorded(golden):
    arrays = golden("mae/img_random_erasing")
    assert len(arrays.meta["rows"]) == 5
    return arrays


def noise_rows(noise: np.ndarray, height: int, width: int) -> np.ndarray:
    """Flatten the first rows and columns of [3, H, W] to [1, 1, 3, h * w + 2]: one image, one box, and padding."""
    flat = noise[:, :height, :width].reshape(1, 1, 3, -1)
    return np.pad(flat, ((0, 0), (0, 0), (0, 0), (0, 2)), constant_values=99)


def test_boxes_are_timms(recorded):
    for row in recorded.meta["rows"]:
        height, width = recorded[f"input/x{row['case']}"].shape[1:]
        draws: Iterator[float] = iter(row["uniforms"])
        corner = [(height - row["height"] + 1, row["top"]), (width - row["width"] + 1, row["left"])]

        def below(n: int, corner: list[tuple[int, int]] = corner) -> int:
            choices, chosen = corner.pop(0)
            assert n == choices
            return chosen

        box = random_erasing_box(lambda draws=draws: next(draws), height, width, below=below)
        assert box == (row["top"], row["left"], row["height"], row["width"])
        assert list(draws) == [], "every recorded draw is used"


def test_erased_images_are_timms(recorded):
    for row in recorded.meta["rows"]:
        case, box = row["case"], [row[name] for name in ("top", "left", "height", "width")]
        images = paddle.to_tensor(recorded[f"input/x{case}"][None])
        noise = paddle.to_tensor(noise_rows(recorded[f"input/noise{case}"], *box[2:]))
        actual = erase(images, paddle.to_tensor(np.array([[box]], np.int32)), noise)
        np.testing.assert_array_equal(actual.numpy()[0], recorded[f"output/x{case}"])


def test_every_image_of_a_batch_has_its_own_boxes_and_the_last_wins():
    images = np.zeros((3, 3, 6, 8), np.float32)
    boxes = np.zeros((3, 2, 4), np.int32)
    boxes[0] = [[0, 0, 2, 3], [1, 1, 2, 2]]
    boxes[2, 0] = [5, 7, 1, 1]
    noise = np.arange(3 * 2 * 3 * 7, dtype=np.float32).reshape(3, 2, 3, 7) + 1
    expected = images.copy()
    expected[0, :, :2, :3] = noise[0, 0, :, :6].reshape(3, 2, 3)
    expected[0, :, 1:3, 1:3] = noise[0, 1, :, :4].reshape(3, 2, 2)
    expected[2, :, 5, 7] = noise[2, 0, :, 0]
    actual = erase(*(paddle.to_tensor(x) for x in (images, boxes, noise)))
    np.testing.assert_array_equal(actual.numpy(), expected)


def test_one_value_fills_the_box():
    boxes, noise = np.array([[[1, 2, 3, 1]]], np.int32), np.array([[[[0.5], [1.5], [-2.0]]]], np.float16)
    actual = erase(paddle.ones([1, 3, 5, 4]), paddle.to_tensor(boxes), paddle.to_tensor(noise)).numpy()
    expected = np.ones((1, 3, 5, 4), np.float32)
    expected[0, :, 1:4, 2] = [[0.5], [1.5], [-2.0]]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("mode", "pixels"), [("pixel", 24 * 40 // 3 + 34), ("rand", 1), ("const", 1)])
@pytest.mark.parametrize("max_count", [1, 3])
def test_samples_have_one_shape_and_belong_to_the_key(mode, pixels, max_count):
    erasing = RandomErasing(0.5, mode, max_count)
    for index in range(20):
        sample = erasing((24, 40), sample_rng(0, 0, index))
        assert {name: (x.shape, x.dtype) for name, x in sample.items()} == {
            "erase_boxes": ((max_count, 4), np.dtype(np.int32)),
            "erase_noise": ((max_count, 3, pixels), np.dtype(np.float16)),
        }
        again = erasing((24, 40), sample_rng(0, 0, index))
        assert all((sample[name] == again[name]).all() for name in sample)


@pytest.mark.parametrize("prob", [0.0, 0.25, 1.0])
def test_share_of_erased_samples(prob):
    erasing = RandomErasing(prob, "const")
    erased = sum(erasing((32, 32), sample_rng(0, 0, index))["erase_boxes"].any() for index in range(1000))
    assert abs(erased - 1000 * prob) <= 5 * math.sqrt(1000 * prob * (1 - prob))


@pytest.mark.parametrize("size", [(224, 224), (24, 40), (5, 5), (100, 3)])
def test_boxes_lie_inside_and_their_noise_has_room(size):
    height, width = size
    room = RandomErasing()(size, sample_rng(0, 0, 0))["erase_noise"].shape[-1]
    areas = []
    for index in range(2000):
        box = random_erasing_box(sample_rng(0, 0, index).random, height, width)
        if box is not None:
            assert 0 <= box.top <= box.top + box.height <= height
            assert 0 <= box.left <= box.left + box.width <= width
            assert box.height < height
            assert box.width < width
            assert box.height * box.width <= room
            areas.append(box.height * box.width)
    assert len(areas) > 500
    if size == (224, 224):
        assert 0.015 < min(areas) / 224**2 < 0.03
        assert 0.3 < max(areas) / 224**2 < 0.345


def test_no_box_after_ten_failures():
    draws: Iterator[float] = iter([0.99] * 20)
    assert random_erasing_box(lambda: next(draws), 2, 2) is None
    assert list(draws) == []


def test_noise_is_normal_and_new_for_every_pixel_and_channel():
    erasing = RandomErasing(1.0)
    values = []
    for index in range(30):
        sample = erasing((64, 64), sample_rng(0, 0, index))
        _, _, height, width = sample["erase_boxes"][0]
        values.append(sample["erase_noise"][0, :, : height * width])
        assert not sample["erase_noise"][0, :, height * width :].any()
    noise = np.concatenate(values, axis=1).astype(np.float64)
    limit = 5 / math.sqrt(noise.size)
    assert abs(noise.mean()) < limit
    assert abs((noise**2).mean() - 1) < limit * math.sqrt(2)
    assert abs((noise[0] * noise[1]).mean()) < 5 / math.sqrt(noise.shape[1])
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < limit


def test_modes_fill_with_noise_a_color_or_zeros():
    images = paddle.full([1, 3, 32, 32], 9.0)
    distinct = {}
    for mode in ("pixel", "rand", "const"):
        sample = RandomErasing(1.0, mode)((32, 32), sample_rng(3, 0, 0))
        top, left, height, width = sample["erase_boxes"][0]
        arrays = (paddle.to_tensor(sample[name][None]) for name in ("erase_boxes", "erase_noise"))
        inside = erase(images, *arrays).numpy()[0, :, top : top + height, left : left + width]
        assert (inside != 9).all()
        distinct[mode] = np.unique(inside).size, inside.size
    assert distinct["pixel"][0] > 0.8 * distinct["pixel"][1]  # a few float16 values coincide
    assert distinct["rand"][0] == 3
    assert distinct["const"][0] == 1


def test_several_boxes_share_the_area():
    erasing = RandomErasing(1.0, "const", max_count=3)
    counts = set()
    for index in range(200):
        boxes = erasing((90, 90), sample_rng(0, 0, index))["erase_boxes"]
        areas = boxes[:, 2] * boxes[:, 3]
        count = int((areas > 0).sum())
        counts.add(count)
        assert areas.max() <= 90 * 90 / 3 / count + 90 + 1
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_inside_is_the_slice(dtype):
    boxes = np.array([[0, 0, 5, 7], [1, 2, 3, 4], [4, 6, 1, 1], [2, 2, 0, 0], [2, 2, 3, 0], [3, 5, 9, 9]], dtype)
    inside = inside_boxes(paddle.to_tensor(boxes), 5, 7)
    assert inside.dtype == paddle.bool
    expected = np.zeros((6, 1, 5, 7), bool)
    for image, (top, left, height, width) in zip(expected, boxes, strict=True):
        image[0, top : top + height, left : left + width] = True
    np.testing.assert_array_equal(inside.numpy(), expected)
