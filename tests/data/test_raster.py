"""Files of any bands and any type: every format gives the same pixels, and a region those of the whole image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from plsc_mae.data.decode import Box, open_content, open_image
from plsc_mae.data.depth import PixelRange
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.errors import ConfigError, DataError

tifffile = pytest.importorskip("tifffile")

HEIGHT, WIDTH = 70, 90
RANGE = PixelRange(0, 4095)


def values_of(dtype: str, bands: int = 13) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH, bands)).astype(dtype)


def whole(image) -> np.ndarray:
    return image.resize((image.height, image.width))


def expected(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) * np.float32(255 / 4095)


TIFFS = {
    "interleaved": {"photometric": "minisblack", "planarconfig": "contig"},
    "planes": {"photometric": "minisblack", "planarconfig": "separate"},
    "tiles": {"photometric": "minisblack", "planarconfig": "contig", "tile": (32, 48)},
    "tiles of planes": {"photometric": "minisblack", "planarconfig": "separate", "tile": (16, 16)},
    "compressed strips": {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"},
    "predictor": {"photometric": "minisblack", "compression": "zlib", "predictor": True, "tile": (32, 32)},
    "big-endian": {"photometric": "minisblack", "planarconfig": "contig", "byteorder": ">"},
}


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("kind", TIFFS)
def test_every_layout_of_tiff(kind, dtype, tmp_path):
    options = dict(TIFFS[kind])
    if options.get("predictor") and dtype.startswith("float"):
        pytest.skip("tifffile needs imagecodecs for a predictor of floats")
    values = values_of(dtype)
    stored = np.moveaxis(values, -1, 0) if options.get("planarconfig") == "separate" else values
    if kind == "predictor":
        options["planarconfig"] = "contig"
    path, byteorder = tmp_path / "a.tif", options.pop("byteorder", "<")
    tifffile.imwrite(path, stored, byteorder=byteorder, **options)
    for image in (open_image(path, pixel_format=PixelFormat(13, range=RANGE)), content(path)):
        assert (image.height, image.width) == (HEIGHT, WIDTH)
        np.testing.assert_allclose(whole(image), expected(values), atol=1e-4)
        box = Box(15, 30, 40, 33)
        region = image.crop_resize(box, (40, 33))
        np.testing.assert_array_equal(region, whole(image)[15:55, 30:63])


def content(path):
    return open_content(str(path), path.read_bytes(), pixel_format=PixelFormat(13, range=RANGE))


def test_pages_are_bands(tmp_path):
    values = values_of("uint16", 4)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for band in range(4):
            file.write(values[..., band], compression="zlib", metadata=None)
    image = open_image(tmp_path / "a.tif", pixel_format=PixelFormat(4, range=RANGE))
    np.testing.assert_allclose(whole(image), expected(values), atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (32, 32)}])
def test_pages_without_metadata_that_joins_them_are_bands(options, tmp_path):
    values = values_of("uint16", 4)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for band in range(4):
            file.write(values[..., band], contiguous=False, **options)
    image = open_image(tmp_path / "a.tif", pixel_format=PixelFormat(4, range=RANGE))
    np.testing.assert_allclose(whole(image), expected(values), atol=1e-4)


def test_jpeg_in_tiles_as_in_slides(tmp_path):
    pytest.importorskip("imagecodecs")
    values = values_of("uint16", 3).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression="jpeg", tile=(32, 32))
    image = open_image(tmp_path / "a.tif", pixel_format=PixelFormat(tile=64))
    np.testing.assert_array_equal(whole(image), tifffile.imread(tmp_path / "a.tif"))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_an_array_that_was_written_row_by_row(compression, tmp_path):
    """As tifffile writes [H, W, C] by default."""
    values = values_of("uint16")
    tifffile.imwrite(tmp_path / "a.tif", values, compression=compression)
    for image in (
        open_image(tmp_path / "a.tif", pixel_format=PixelFormat(13, range=RANGE)),
        content(tmp_path / "a.tif"),
    ):
        np.testing.assert_allclose(whole(image), expected(values), atol=1e-4)


def test_a_pyramid_has_the_size_of_its_largest_level(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values_of("uint16", 2), subifds=1, tile=(16, 16), photometric="minisblack", planarconfig="contig")
        file.write(values_of("uint16", 2)[::2, ::2], subfiletype=1, photometric="minisblack", planarconfig="contig")
    assert open_image(tmp_path / "a.tif", pixel_format=PixelFormat(2, range=RANGE)).height == HEIGHT


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("first", [False, True])
def test_arrays(name, first, tmp_path):
    values = values_of("float32")
    stored = np.moveaxis(values, -1, 0) if first else values
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, stored)
    image = open_image(tmp_path / name, pixel_format=PixelFormat(13, range=RANGE))
    np.testing.assert_allclose(whole(image), expected(values), atol=1e-4)
    chosen = open_image(tmp_path / name, pixel_format=PixelFormat(3, (4, 3, 2), RANGE))
    np.testing.assert_array_equal(whole(chosen), whole(image)[..., [3, 2, 1]])


def test_gray_of_8_and_16_bits(tmp_path):
    deep, shallow = values_of("uint16", 1)[..., 0], np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(shallow).save(tmp_path / "shallow.png")
    gray = PixelFormat(1, range=RANGE)
    np.testing.assert_allclose(
        whole(open_image(tmp_path / "deep.png", pixel_format=gray))[..., 0], expected(deep), atol=1e-4
    )
    np.testing.assert_array_equal(whole(open_image(tmp_path / "shallow.png", pixel_format=gray))[..., 0], shallow)
    without = whole(open_image(tmp_path / "deep.png", pixel_format=PixelFormat(1)))
    assert without.dtype == np.uint8
    np.testing.assert_array_equal(without[..., 0], deep >> 8)


def test_gray_of_a_photograph(picture, tmp_path):
    picture(0).save(tmp_path / "a.jpg")
    pixels = whole(open_image(tmp_path / "a.jpg", pixel_format=PixelFormat(1)))
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(Image.open(tmp_path / "a.jpg").convert("L")))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_bands_of_png(mode, tmp_path):
    count = len(mode)
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, count), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(whole(open_image(tmp_path / "a.png", pixel_format=PixelFormat(count))), values)


def test_16_bit_rgb_at_full_depth(tmp_path):
    import cv2

    values = values_of("uint16", 3)
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", values[..., ::-1])[1].tobytes())
    image = open_image(tmp_path / "a.png", pixel_format=PixelFormat(3, (1, 2, 3), RANGE))
    np.testing.assert_allclose(whole(image), expected(values), atol=1e-4)


def test_resizing_channels_is_resizing_bands(picture):
    """The uint8 resize of three channels one by one has the bits of Pillow's RGB resize."""
    rgb = picture(1)
    stream = io.BytesIO()
    np.save(stream, np.asarray(rgb))
    image = open_content("a.npy", stream.getvalue())
    box = Box(3, 5, 30, 41)
    ours = image.crop_resize(box, (17, 23))
    theirs = rgb.crop((5, 3, 46, 33)).resize((23, 17), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (PixelFormat(3), ("13 bands", "expected 3", "--bands", "--in_chans 13")),
        (PixelFormat(4, range=RANGE), ("13 bands", "expected 4")),
        (PixelFormat(1, (14,), RANGE), ("13 bands", "band 14")),
    ],
)
def test_bands_that_do_not_fit(form, words, tmp_path):
    np.save(tmp_path / "a.npy", values_of("uint16"))
    with pytest.raises(DataError) as caught:
        open_image(tmp_path / "a.npy", pixel_format=form)
    assert all(word in str(caught.value) for word in (*words, "a.npy"))


def test_types_without_a_range(tmp_path):
    np.save(tmp_path / "a.npy", values_of("float32", 2))
    with pytest.raises(DataError, match=r"float32.*--pixel_range"):
        whole(open_image(tmp_path / "a.npy", pixel_format=PixelFormat(2)))
    np.save(tmp_path / "b.npy", values_of("complex64", 2))
    with pytest.raises(DataError, match="complex64"):
        whole(open_image(tmp_path / "b.npy", pixel_format=PixelFormat(2, range=RANGE)))


def test_truncated_and_other_files(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values_of("uint16", 2), photometric="minisblack", planarconfig="contig")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "b.npy").write_bytes(b"no array")
    np.savez(tmp_path / "c.npz", x=np.zeros((4, 4)), y=np.zeros((4, 4)))
    tifffile.imwrite(tmp_path / "d.tif", np.zeros((2, 8, 8, 3), np.uint8), photometric="rgb")
    for name, reason in (("a.tif", "truncated"), ("b.npy", ""), ("c.npz", "arrays x, y"), ("d.tif", "axes")):
        with pytest.raises(DataError, match=f"{name}.*{reason}"):
            open_image(tmp_path / name, pixel_format=PixelFormat(2, range=RANGE))


def test_tiff_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    with pytest.raises(ConfigError, match=r"a\.tif.*tifffile.*plsc_mae\[tiff\]"):
        open_image(tmp_path / "a.tif", pixel_format=PixelFormat(2))


def test_a_dropped_fourth_band_is_named_unless_it_is_alpha(tmp_path, messages):
    """For tiles, RGB is read from TIFF by its bands."""
    tifffile = pytest.importorskip("tifffile")
    values = np.arange(64 * 64 * 4, dtype=np.uint16).reshape(64, 64, 4)
    for number, extra in enumerate(("unassalpha", "unspecified", "unspecified")):
        path = tmp_path / f"{number}.tif"
        tifffile.imwrite(path, values, photometric="rgb", extrasamples=[extra], planarconfig="contig")
        open_image(path, pixel_format=PixelFormat(tile=64))
    (text,) = messages
    assert str(tmp_path / "1.tif") in text
