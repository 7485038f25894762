"""Both views of CAE pre-training, against arrays recorded from Atten4Vis/CAE and against its steps written out."""

from __future__ import annotations

import random

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae.data import views
from plsc_mae.data.decode import Box, PilImage, open_image
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.seeding import sample_rng
from plsc_mae.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
    flip_horizontal,
    random_resized_crop_box,
)
from plsc_mae.data.views import TwoViewCenterCrop, TwoViewCropFlip, color_jitter

pytestmark = [pytest.mark.compat, pytest.mark.once]

TOKENIZER_MEAN, TOKENIZER_STD = (-0.125,) * 3, (1.25,) * 3  # 0.8 x + 0.1 written as a normalization
# Where the recorded 16 x 16 corners of the normalized crops were cut out.
SLICES = {"image": (slice(100, 116),) * 2, "tokenizer_image": (slice(50, 66),) * 2}
NORMALIZED = {
    "patches_imagenet_slice": ("image", IMAGENET_MEAN, IMAGENET_STD),
    "patches_inception_slice": ("image", INCEPTION_MEAN, INCEPTION_STD),
    "tokens_map_pixels_slice": ("tokenizer_image", TOKENIZER_MEAN, TOKENIZER_STD),
}


@pytest.fixture
def recorded(golden, tmp_path):
    """Return the recorded arrays and, per image, its file and the tolerance in levels of this decoder."""
    arrays = golden("cae/transforms")
    files = []
    for image in range(3):
        path = tmp_path / f"{image}.jpg"
        path.write_bytes(arrays[f"input/jpeg_{image}"].tobytes())
        decoded = whole(open_image(path))
        same = (decoded.sum((0, 1), dtype=np.int64) == arrays[f"output/{image}/decoded_sum_per_channel"]).all()
        files.append((path, 0 if same else 2))  # 0: the same libjpeg, so the same pixels
    return arrays, files


@pytest.fixture
def photograph(recorded):
    """Open one of the recorded images."""
    return open_image(recorded[1][0][0])


def whole(image) -> np.ndarray:
    return image.resize((image.height, image.width))


def flipped(image) -> PilImage:
    return PilImage(image.path, Image.fromarray(flip_horizontal(whole(image))))


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("image", [0, 1, 2])
def test_views_are_the_originals(recorded, monkeypatch, image, flip):
    arrays, files = recorded
    path, tolerance = files[image]
    box = Box(*arrays.meta["images"][image]["crop_box_top_left_height_width"])
    monkeypatch.setattr(views, "random_resized_crop_box", lambda *_: box)
    sample = TwoViewCropFlip((224, 224), (112, 112), hflip=float(flip))(open_image(path), sample_rng(0, 0, 0))
    stem = f"output/{image}/flip{flip}"
    names = {"image": f"{stem}/crop224_uint8", "tokenizer_image": f"{stem}/crop112_uint8"}
    assert names["tokenizer_image"] in arrays
    for field, name in names.items():
        assert sample[field].dtype == np.uint8
        if name in arrays:  # the large crop is recorded for one of the two flips
            np.testing.assert_allclose(sample[field].astype(int), arrays[name].astype(int), rtol=0, atol=tolerance)
    for name, (field, mean, std) in NORMALIZED.items():
        floats = Normalize(mean, std)(paddle.to_tensor(sample[field][None])).numpy()[0]
        # 1e-5: the record's tolerance for equal pixels; a level is 1 / 255 / std, at most 0.018
        atol = 1e-5 + 0.018 * tolerance
        expected = arrays[f"{stem}/{name}"]
        np.testing.assert_allclose(floats[:, SLICES[field][0], SLICES[field][1]], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("image", [0, 1, 2])
def test_crop_boxes_are_the_originals(golden, image):
    arrays = golden("cae/transforms")
    record = arrays.meta["images"][image]
    width, height = record["size_wh"]
    kinds = {"": ((0.08, 1.0), (3 / 4, 4 / 3)), "_fallback": ((0.9, 1.0), (2.5, 3.0))}
    rng = random.Random(record["random_seed"])
    for kind, (scale, ratio) in kinds.items():
        expected = arrays[f"output/{image}/get_params_stream{kind}"]
        boxes = [random_resized_crop_box(rng.random, height, width, scale, ratio, rng.randrange) for _ in expected]
        np.testing.assert_array_equal(boxes, expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("tokenizer_interpolation", ["lanczos", "bicubic", "bilinear"])
def test_flipping_comes_first(photograph, interpolation, tokenizer_interpolation):
    """Cropping the mirrored box and flipping gives exactly the pixels of the box on the flipped image."""
    mirror = flipped(photograph)
    settings = {"interpolation": interpolation, "tokenizer_interpolation": tokenizer_interpolation}
    for index in range(30):
        actual = TwoViewCropFlip((56, 64), (28, 32), hflip=1.0, **settings)(photograph, sample_rng(0, 0, index))
        expected = TwoViewCropFlip((56, 64), (28, 32), hflip=0.0, **settings)(mirror, sample_rng(0, 0, index))
        for field, pixels in actual.items():
            np.testing.assert_array_equal(pixels, expected[field])
            assert pixels.flags.c_contiguous


def test_draws_are_jitter_flip_box_interpolation(photograph):
    transform = TwoViewCropFlip((32, 48), (16, 24), scale=(0.3, 0.9), color_jitter=0.4, interpolation="random")
    mirror_seen, filters_seen = set(), set()
    for index in range(12):
        actual = transform(photograph, sample_rng(1, 0, index))
        rng = sample_rng(1, 0, index)
        jittered = color_jitter(photograph, 0.4, rng)
        flip = rng.random() < 0.5
        box = random_resized_crop_box(rng.random, photograph.height, photograph.width, (0.3, 0.9))
        interpolation = "bilinear" if rng.random() < 0.5 else "bicubic"
        source = flipped(jittered) if flip else jittered
        np.testing.assert_array_equal(actual["image"], source.crop_resize(box, (32, 48), interpolation))
        np.testing.assert_array_equal(actual["tokenizer_image"], source.crop_resize(box, (16, 24), "lanczos"))
        mirror_seen.add(flip)
        filters_seen.add(interpolation)
    assert mirror_seen == {False, True}
    assert filters_seen == {"bilinear", "bicubic"}


def test_a_sample_depends_on_its_generator_alone(photograph):
    transform = TwoViewCropFlip((32, 32), (16, 16), color_jitter=0.4, interpolation="random")
    first, again, other = (transform(photograph, sample_rng(0, 0, index)) for index in (3, 3, 4))
    for field in ("image", "tokenizer_image"):
        np.testing.assert_array_equal(first[field], again[field])
        assert (first[field] != other[field]).any()


@pytest.mark.parametrize("backend", ["pil", "opencv"])
@pytest.mark.parametrize(
    "transform", [TwoViewCropFlip((64, 64), (32, 32), color_jitter=0.2), TwoViewCenterCrop((64, 64), (32, 32))]
)
def test_both_views_show_the_same_place(tmp_path, picture, backend, transform):
    """The downscaled large view equals the small one up to filters; a shift by a pixel would cost more than a level."""
    path = tmp_path / "a.jpg"
    picture(5, 300, 400).save(path, quality=95)
    for index in range(8):
        sample = transform(open_image(path, backend), sample_rng(0, 0, index))
        smaller = Image.fromarray(sample["image"]).resize((32, 32), Image.Resampling.BICUBIC)
        assert sample["tokenizer_image"].shape == (32, 32, 3)
        difference = np.asarray(smaller).astype(int) - sample["tokenizer_image"]
        assert np.abs(difference).mean() < 0.6
        shifted = np.asarray(smaller)[:, 1:].astype(int) - sample["tokenizer_image"][:, :-1]
        assert np.abs(shifted).mean() > 1


def test_jitter_is_torchvisions(photograph):
    """Each change blends the image with black, its mean gray or its gray image, and clips to 0..255."""

    def changed(pixels: np.ndarray, choice: int, factor: float) -> np.ndarray:
        gray = (pixels @ np.array([0.299, 0.587, 0.114]))[..., None]
        degenerate = [0.0, round(gray.mean()), gray][choice]
        return np.clip(degenerate + factor * (pixels - degenerate), 0, 255)

    orders = set()
    for index in range(12):
        strength = (0.4, 1.5)[index % 2]
        actual = whole(color_jitter(photograph, strength, sample_rng(0, 0, index))).astype(float)
        rng = sample_rng(0, 0, index)
        expected = whole(photograph).astype(float)
        order, bound = rng.permutation(3), 1.0
        for choice in order:
            factor = rng.uniform(max(0, 1 - strength), 1 + strength)
            expected = changed(expected, choice, factor)
            # Pixels and grays are whole numbers: up to 1 level is lost, and blending adds at most |1 - f| for grays.
            bound = bound * (factor + abs(1 - factor)) + 1 + abs(1 - factor)
        assert np.abs(actual - expected).max() <= bound
        orders.add(tuple(order))
    assert len(orders) > 3


def test_jitter_measures_contrast_on_the_whole_image(tmp_path):
    """The image is half black and half white: its mean is 128 for any crop, so a black crop turns gray."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40:] = 255
    image = PilImage("a", Image.fromarray(pixels))
    lifted = [
        int(color_jitter(image, 1.0, sample_rng(0, 0, index)).crop_resize(Box(0, 0, 40, 20), (8, 8)).max())
        for index in range(10)
    ]
    assert max(lifted) > 30


def test_center_crop_spans_the_shorter_side(photograph):
    sample = TwoViewCenterCrop((64, 64), (32, 32))(photograph, sample_rng(0, 0, 0))
    box = Box(0, (photograph.width - photograph.height) // 2, photograph.height, photograph.height)
    assert photograph.width > photograph.height
    np.testing.assert_array_equal(sample["image"], photograph.crop_resize(box, (64, 64), "bicubic"))
    np.testing.assert_array_equal(sample["tokenizer_image"], photograph.crop_resize(box, (32, 32), "lanczos"))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (37, 53), (1000, 3)])
def test_center_crop_fits_any_image(height, width):
    image = PilImage("a", Image.new("RGB", (width, height)))
    for size in ((224, 224), (64, 96), (96, 64)):
        sample = TwoViewCenterCrop(size, (size[0] // 2, size[1] // 2))(image, sample_rng(0, 0, 0))
        assert sample["image"].shape == (*size, 3)
