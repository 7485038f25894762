"""Transforms of fine-tuning, probing and evaluation: their draws, the order of these draws, and their output sizes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plsc_mae.data.classify import FinetuneAugment, evaluation_transform, linear_probe_augment, padded_crop
from plsc_mae.data.decode import PilImage, open_image
from plsc_mae.data.erasing import RandomErasing
from plsc_mae.data.randaugment import RandAugment
from plsc_mae.data.seeding import sample_rng
from plsc_mae.data.transforms import RandomCropFlip, clamped_crop_box, flip_horizontal, random_resized_crop_box
from plsc_mae.data.views import color_jitter
from plsc_mae.errors import DataError

pytestmark = pytest.mark.compat


@pytest.fixture
def source(picture, tmp_path):
    picture(0, 90, 70).save(tmp_path / "0.png")
    return open_image(tmp_path / "0.png")


def cropped_and_flipped(source, rng: np.random.Generator) -> np.ndarray:
    box = random_resized_crop_box(rng.random, source.height, source.width, (0.08, 1.0))
    pixels = source.crop_resize(box, (48, 40), "bicubic")
    return flip_horizontal(pixels) if rng.random() < 0.5 else pixels


def test_fine_tuning_crops_flips_augments_and_erases_in_this_order(source):
    augment, erasing = RandAugment.parse("rand-m9-mstd0.5-inc1"), RandomErasing(0.5)
    transform = FinetuneAugment((48, 40), rand_augment=augment, erasing=erasing)
    erased = 0
    for index in range(12):
        rng = sample_rng(0, 0, index)
        expected = np.asarray(augment(Image.fromarray(cropped_and_flipped(source, rng)), rng))
        boxes = erasing((48, 40), rng)
        sample = transform(source, sample_rng(0, 0, index))
        assert list(sample) == ["image", "erase_boxes", "erase_noise"]
        assert sample["image"].dtype == np.uint8
        np.testing.assert_array_equal(sample["image"], expected)
        for name, array in boxes.items():
            np.testing.assert_array_equal(sample[name], array)
        erased += boxes["erase_boxes"].any()
    assert 0 < erased < 12


def test_color_jitter_stands_in_for_rand_augment(source):
    augment = RandAugment.parse("rand-m9-inc1")
    rng = sample_rng(0, 0, 5)
    crop = PilImage("", Image.fromarray(cropped_and_flipped(source, rng)))
    expected = color_jitter(crop, 0.4, rng).resize((48, 40))
    sample = FinetuneAugment((48, 40), color_jitter=0.4)(source, sample_rng(0, 0, 5))
    assert list(sample) == ["image"]
    np.testing.assert_array_equal(sample["image"], expected)
    with_both = FinetuneAugment((48, 40), color_jitter=0.4, rand_augment=augment)
    with_one = FinetuneAugment((48, 40), rand_augment=augment)
    for index in range(4):
        samples = [transform(source, sample_rng(0, 0, index))["image"] for transform in (with_both, with_one)]
        np.testing.assert_array_equal(*samples)


def test_attentive_probing_is_a_plain_crop_and_flip(source):
    for index in range(4):
        samples = [
            transform(source, sample_rng(0, 0, index))["image"]
            for transform in (FinetuneAugment((48, 40)), RandomCropFlip((48, 40), scale=(0.08, 1.0)))
        ]
        np.testing.assert_array_equal(*samples)


def test_random_interpolation_is_one_of_two(source):
    seen = set()
    for index in range(12):
        image = FinetuneAugment((48, 40), interpolation="random")(source, sample_rng(0, 0, index))["image"]
        rng = sample_rng(0, 0, index)
        box = random_resized_crop_box(rng.random, source.height, source.width, (0.08, 1.0))
        for name in ("bilinear", "bicubic"):
            crop = source.crop_resize(box, (48, 40), name)
            if np.array_equal(image, crop) or np.array_equal(image, crop[:, ::-1]):
                seen.add(name)
                break
        else:
            pytest.fail("neither bilinear nor bicubic")
    assert seen == {"bilinear", "bicubic"}


def test_linear_probing_crops_once_and_flips(source):
    transform = linear_probe_augment((32, 48))
    for index in range(8):
        rng = sample_rng(0, 0, index)
        box = clamped_crop_box(rng.random, source.height, source.width, (0.08, 1.0))
        expected = source.crop_resize(box, (32, 48), "bicubic")
        expected = flip_horizontal(expected) if rng.random() < 0.5 else expected
        np.testing.assert_array_equal(transform(source, sample_rng(0, 0, index))["image"], expected)


@pytest.mark.parametrize(
    ("size", "crop_pct", "shorter_side"),
    [
        ((224, 224), None, 256),
        ((192, 192), None, 219),
        ((384, 384), None, 384),
        ((32, 32), None, 32),
        ((224, 224), 1.0, 224),
        ((384, 384), 0.875, 438),
        ((96, 160), None, 182),
    ],
)
def test_evaluation_resizes_by_crop_pct(size, crop_pct, shorter_side):
    transform = evaluation_transform(size, crop_pct)
    assert (transform.size, transform.shorter_side, transform.interpolation) == (size, shorter_side, "bicubic")


def test_evaluation_leaves_tiny_images_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sample = evaluation_transform((32, 32))(PilImage("", Image.fromarray(pixels)), sample_rng(0, 0, 0))
    np.testing.assert_array_equal(sample["image"], pixels)


def test_evaluation_with_bilinear_differs(source):
    images = [
        evaluation_transform((48, 40), interpolation=name)(source, sample_rng(0, 0, 0))["image"]
        for name in ("bilinear", "bicubic")
    ]
    assert images[0].shape == images[1].shape == (48, 40, 3)
    assert (images[0] != images[1]).any()


def test_tiny_images_are_padded_and_cropped_anywhere():
    pixels = np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    source = PilImage("", Image.fromarray(pixels))
    padded = np.zeros((40, 40, 3), np.uint8)
    padded[4:36, 4:36] = pixels
    places = set()
    for index in range(400):
        crop = padded_crop(source, (32, 32), sample_rng(0, 0, index))
        found = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if np.array_equal(crop, padded[top : top + 32, left : left + 32])
        ]
        assert len(found) == 1
        places.add(found[0])
    assert {top for top, _ in places} == {left for _, left in places} == set(range(9))
    sample = FinetuneAugment((32, 32), hflip=0.0)(source, sample_rng(0, 0, 3))
    np.testing.assert_array_equal(sample["image"], padded_crop(source, (32, 32), sample_rng(0, 0, 3)))


def test_an_image_too_small_for_its_crop_is_named():
    source = PilImage("small.png", Image.new("RGB", (40, 20)))
    with pytest.raises(DataError, match=r"small\.png of 20x40 pixels is too small for --input_size 32x32"):
        padded_crop(source, (32, 32), sample_rng(0, 0, 0))
