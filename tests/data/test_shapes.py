"""Typical shapes of images, and the input and crops that suit them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plsc_mae.data import shapes
from plsc_mae.data.classify import evaluation_transform
from plsc_mae.data.decode import PilImage
from plsc_mae.data.listing import list_images
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.shapes import fitting_crop_ratio, fitting_input_size, sampled_sizes, seen_shares, typical_shape

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.fixture
def pictures(tmp_path):
    """A folder of 40 wide pictures, two of which are damaged."""
    folder = tmp_path / "pictures" / "train" / "a"
    folder.mkdir(parents=True)
    for i in range(40):
        Image.new("RGB", (90 + i, 40)).save(folder / f"{i:02}.jpg")
    (folder / "05.jpg").write_bytes(b"no image")
    (folder / "10.jpg").write_bytes(b"")
    return folder.parent.parent


@pytest.fixture
def source(request, pictures, tmp_path, archives):
    """The same pictures as a folder, a list file or tar archives."""
    if request.param == "folder":
        return pictures
    if request.param == "archives":
        archives.write_shards(pictures / "train", tmp_path / "packed" / "train", 2)
        return tmp_path / "packed"
    file = tmp_path / "list.txt"
    file.write_text("".join(f"{path} 0\n" for path in sorted(pictures.rglob("*.jpg"))))
    return file


@pytest.mark.parametrize("source", ["folder", "list", "archives"], indirect=True)
def test_readable_files_evenly_spaced_in_the_list_are_sampled(source):
    sizes = sampled_sizes(list_images(source, "train"), RGB)
    assert 28 <= len(sizes) <= 32  # without one or two damaged files
    assert {height for _, height in sizes} == {40}
    assert min(sizes)[0] < 95
    assert max(sizes)[0] > 123


def test_only_headers_of_usual_formats_are_read(pictures, monkeypatch):
    monkeypatch.setattr(shapes, "_SAMPLED_FILES", 3)
    images = list_images(pictures, "train")
    monkeypatch.setattr(type(images), "open", lambda *_, **__: pytest.fail("the whole file is read"))
    assert [width for width, _ in sampled_sizes(images, RGB)] == [90, 103, 116]


def test_arrays_have_a_shape_too(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.zeros((20, 50, 7), np.uint16))
    sizes = sampled_sizes(list_images(tmp_path, "train"), PixelFormat(7))
    assert sizes == [(50, 20)] * 3


def test_a_list_of_damaged_files_has_no_sizes(tmp_path):
    (tmp_path / "0.png").write_bytes(b"no image")
    assert sampled_sizes(list_images(tmp_path, "train"), RGB) == []


def test_the_typical_shape_is_the_median():
    shape = typical_shape([(900, 400), (900, 300), (100, 100)])
    assert shape == (900, 300, 2.25)
    assert str(shape) == "900 x 300 (width x height)"
    assert shape.is_far_from_square
    assert typical_shape([(400, 900)]).is_far_from_square
    assert not typical_shape([(500, 375)]).is_far_from_square


@pytest.mark.parametrize("ratio", [2.0, 2.25, 3.0, 7.5, 40.0, 1000.0])
@pytest.mark.parametrize(("cells", "side"), [(196, 16), (256, 14), (49, 32), (64, 8)])
def test_a_fitting_input_has_the_shape_and_about_the_number_of_cells(ratio, cells, side):
    height, width = fitting_input_size(ratio, cells, side)
    assert fitting_input_size(1 / ratio, cells, side) == (width, height)
    assert (height % side, width % side) == (0, 0)
    if ratio < cells / 2:  # longer images become a single row of cells
        assert 0.6 * cells <= height * width / side**2 <= 1.5 * cells
        assert width / height == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("ratio", [0.004, 0.31, 0.5, 2.0, 2.25, 3.14159, 9.99, 123.456])
def test_fitting_crops_include_the_shape_of_the_images(ratio):
    low, high = fitting_crop_ratio(ratio)
    assert 0.7 * ratio < low < ratio < high < 1.4 * ratio
    assert len(f"{low:g}".replace(".", "").strip("0")) <= 2


@pytest.mark.parametrize("size", [(224, 224), (24, 24), (96, 160), (160, 96)])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (300, 900), (500, 500)])
def test_the_part_of_an_image_that_the_network_sees(size, width, height):
    """The crop of a picture whose colors are the coordinates shows these shares; the filter blurs the ends."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    picture = Image.fromarray(np.stack([columns, rows, rows], axis=-1).round().astype(np.uint8))
    view = evaluation_transform(size)
    crop = view(PilImage("", picture), np.random.default_rng(0))["image"].astype(float)
    seen = [np.ptp(crop[..., channel]) / 255 for channel in (0, 1)]
    assert seen_shares(width / height, view) == pytest.approx(seen, abs=1.5 / min(size))
