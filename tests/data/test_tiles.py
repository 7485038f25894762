"""Tiles: samples of large images read a part of the file."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plsc_mae.data import tiles
from plsc_mae.data.check import examine_file
from plsc_mae.data.decode import Box, ReducedJpeg, open_image
from plsc_mae.data.imagefolder import ImageDataset, find_images
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.tiles import center_tile, random_tile, repeat_by_tiles, without_repeats
from plsc_mae.data.transforms import RandomCropFlip

TILED = PixelFormat(tile=32)


@pytest.fixture
def folder(tmp_path, picture):
    picture(0, 64, 100).save(tmp_path / "a.png")
    picture(1, 20, 30).save(tmp_path / "b.png")
    return tmp_path


def test_a_file_is_listed_once_per_tile(folder):
    images = repeat_by_tiles(find_images(folder, "train"), TILED)
    assert [images.paths[i] for i in range(len(images))] == ["a.png"] * 8 + ["b.png"]
    once = without_repeats(images)
    assert [once.paths[i] for i in range(len(once))] == ["a.png", "b.png"]
    assert repeat_by_tiles(once, PixelFormat()) is once


def test_tiles_lie_inside_and_cover_the_image(folder):
    image, rng = open_image(folder / "a.png", pixel_format=TILED), np.random.default_rng(0)
    whole = image.resize((64, 100))
    seen = np.zeros((64, 100), bool)
    for _ in range(200):
        tile = random_tile(image, 32, rng)
        assert (tile.height, tile.width) == (32, 32)
        top, left = tile._box.top, tile._box.left
        np.testing.assert_array_equal(tile.resize((32, 32)), whole[top : top + 32, left : left + 32])
        seen[top : top + 32, left : left + 32] = True
    assert seen[16:48].all()
    np.testing.assert_array_equal(center_tile(image, 32).resize((32, 32)), whole[16:48, 34:66])
    small = open_image(folder / "b.png", pixel_format=TILED)
    assert random_tile(small, 32, rng).height == 20


def test_samples_depend_on_the_seed_alone(folder):
    images = repeat_by_tiles(find_images(folder, "train"), TILED)
    transform = RandomCropFlip((16, 16))
    first, second = (ImageDataset(images, transform, pixel_format=TILED)[SampleKey(1, 3)] for _ in range(2))
    np.testing.assert_array_equal(first["image"], second["image"])
    other = ImageDataset(images, transform, pixel_format=TILED)[SampleKey(1, 4)]
    assert (first["image"] != other["image"]).any()


def test_jpeg_is_decoded_at_reduced_size(tmp_path, picture):
    picture(2, 403, 501).save(tmp_path / "a.jpg", quality=95)
    image = open_image(tmp_path / "a.jpg", pixel_format=PixelFormat(tile=400))
    assert isinstance(image, ReducedJpeg)
    box = Box(1, 1, 400, 400)
    pixels = image.crop_resize(box, (50, 50)).astype(int)
    assert image._decoded[1].width < 501 / 7
    full = open_image(tmp_path / "a.jpg").crop_resize(box, (50, 50)).astype(int)
    assert abs(pixels - full).mean() < 2  # levels; the crops differ by a fraction of a reduced pixel
    sharp = image.crop_resize(box, (400, 400))
    np.testing.assert_array_equal(sharp, open_image(tmp_path / "a.jpg").crop_resize(box, (400, 400)))


def test_a_large_image_that_is_decoded_whole_is_named_with_its_memory(folder, monkeypatch, messages):
    monkeypatch.setattr(tiles, "_LARGE_BYTES", 4 * 6400)
    for channels in (3, 1):
        repeat_by_tiles(find_images(folder, "train"), TILED._replace(channels=channels))
    assert ["a.png" in message and "64 x 100" in message for message in messages] == [True, True]
    np.save(folder / "c.npy", np.zeros((99, 99, 3), np.uint8))
    (folder / "a.png").unlink()
    (folder / "b.png").unlink()
    repeat_by_tiles(find_images(folder, "train"), TILED)
    assert len(messages) == 2


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_more_pixels_than_pillow_allows(tmp_path, picture, monkeypatch, channels):
    picture(3, 60, 60).convert("RGBA" if channels == 4 else "RGB").save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    form = TILED._replace(channels=channels)
    shape = open_image(tmp_path / "a.png", pixel_format=form).crop_resize(Box(0, 0, 8, 8), (8, 8)).shape
    assert shape == (8, 8, channels)
    assert Image.MAX_IMAGE_PIXELS == 1000
    assert not examine_file(str(tmp_path / "a.png"), form).reason
