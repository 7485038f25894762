"""Image lists of Python sequences: what is an image, what is a label, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae.data.decode import Box, open_image
from plsc_mae.data.depth import PixelRange
from plsc_mae.data.imagefolder import balanced_subset
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.data.sequence import sequence_images
from plsc_mae.errors import DataError

COLOR = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
GRAY = COLOR[..., 0]


def pixels(images, index=0, **options) -> np.ndarray:
    return images.open(index, **options).crop_resize(Box(0, 0, 6, 5), (6, 5))


class Lazy:
    """A data set of another library."""

    classes = ("ant", "bee")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        return Image.fromarray(COLOR), index % 2


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (COLOR, COLOR),
        (GRAY, np.stack([GRAY] * 3, -1)),
        (GRAY[..., None], np.stack([GRAY] * 3, -1)),
        (COLOR[:, ::-1], COLOR[:, ::-1]),
        (Image.fromarray(COLOR), COLOR),
        (Image.fromarray(GRAY), np.stack([GRAY] * 3, -1)),
        (Image.fromarray(COLOR).convert("RGBA"), COLOR),
        (np.concatenate([COLOR, COLOR[..., :1]], axis=2), COLOR),
        (GRAY.astype(np.uint16) * 256, np.stack([GRAY] * 3, -1)),
        (paddle.to_tensor(COLOR), COLOR),
    ],
)
def test_images_in_memory(item, expected):
    np.testing.assert_array_equal(pixels(sequence_images([item], "data", labeled=False)), expected)


def test_paths_arrays_and_ranges(tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    images = sequence_images([tmp_path / "a.png", str(tmp_path / "a.png"), COLOR], "data", labeled=False)
    for index in range(3):
        np.testing.assert_array_equal(pixels(images, index), COLOR)
    deep = sequence_images([GRAY.astype(np.float32) / 255], "data", labeled=False)
    np.testing.assert_array_equal(pixels(deep, pixel_format=PixelFormat(range=PixelRange(0, 1)))[..., 0], GRAY)
    stacked = sequence_images(np.stack([COLOR] * 4), "data", labeled=False)
    assert len(stacked) == 4
    jpeg = tmp_path / "a.jpg"
    Image.fromarray(COLOR).save(jpeg)
    with Image.open(jpeg) as opened:
        opened_pixels = pixels(sequence_images([opened], "data", labeled=False), backend="opencv")
    np.testing.assert_array_equal(opened_pixels, open_image(jpeg).crop_resize(Box(0, 0, 6, 5), (6, 5)))


def test_labels_and_names():
    names = sequence_images([(COLOR, "b"), (COLOR, "a"), (COLOR, "b")], "data", labeled=True)
    assert names.classes == ("a", "b")
    assert names.labels.tolist() == [1, 0, 1]
    assert not names.numbered
    numbers = sequence_images([[COLOR, 2], [COLOR, np.int64(0)], (COLOR, np.array(1))], "data", labeled=True)
    assert numbers.classes == ("0", "1", "2")
    assert numbers.labels.tolist() == [2, 0, 1]
    assert numbers.numbered
    lazy = sequence_images(Lazy(), "data", labeled=True)
    assert lazy.classes == ("ant", "bee")
    assert lazy.labels.tolist() == [0, 1, 0, 1]
    assert not lazy.numbered
    assert sequence_images(Lazy(), "data", labeled=False).labels.tolist() == [-1] * 4


def test_a_subset_keeps_its_items():
    items = [(np.full((6, 5), i, np.uint8), i % 2) for i in range(12)]
    subset = balanced_subset(sequence_images(items, "data", labeled=True), 4)
    assert [int(pixels(subset, i)[0, 0, 0]) for i in range(4)] == [0, 6, 1, 7]
    assert subset.path(1) == subset.name(1) == "data[6]"


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([], ["data", "empty"]),
        (iter([COLOR]), ["iterator", "list(...)"]),
        (Image.fromarray(COLOR), ["Image", "sequence"]),
        ({"image": COLOR}, ["dict"]),
        (7, ["int"]),
        (COLOR, ["[6, 5, 3]", "[n, H, W, 3]"]),
        (GRAY, ["[6, 5]", "[n, H, W, 3]"]),
        ([COLOR.astype(np.float32)], ["data[0]", "float32 [6, 5, 3]", "uint8"]),
        ([COLOR.transpose(2, 0, 1)], ["data[0]", "[3, 6, 5]", "transpose"]),
        ([{"image": COLOR}], ["data[0]", "dict", "pairs"]),
        ([(COLOR, 0, 1)], ["data[0]", "tuple"]),
        ([np.zeros((0, 5, 3), np.uint8)], ["data[0]", "[0, 5, 3]"]),
        ([Path("no/such.png")], ["no/such.png"]),
    ],
)
def test_other_data_are_refused(items, named):
    with pytest.raises(DataError) as error:
        sequence_images(items, "data", labeled=False)
    assert all(text in str(error.value) for text in named)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_truncated_pillow_image_is_named(tmp_path, channels):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:5000])
    pixel_format = PixelFormat(channels)
    with Image.open(tmp_path / "a.png") as image, pytest.raises(DataError, match=r"data\[0\]"):
        sequence_images([image], "data", labeled=False, pixel_format=pixel_format).open(0).resize((8, 8))


@pytest.mark.parametrize(
    ("second", "named"),
    [
        ((COLOR, -1), ["data[1]", "-1"]),
        ((COLOR, 0.5), ["data[1]", "0.5"]),
        ((COLOR, None), ["data[1]", "None"]),
        (COLOR, ["data[1]", "pair"]),
        ((COLOR, "cat"), ["cat", "numbers"]),
    ],
)
def test_other_labels_are_refused(second, named):
    with pytest.raises(DataError) as error:
        sequence_images([(COLOR, 0), second], "data", labeled=True)
    assert all(text in str(error.value) for text in named)
