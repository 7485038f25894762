"""Images that do not fit into 8-bit RGB: values, ranges, and one message for each kind of loss."""

from __future__ import annotations

import logging
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from plsc_mae.data import depth
from plsc_mae.data.decode import deep_values, open_image
from plsc_mae.data.depth import PixelRange, sampled_range, to_8_bits
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.errors import DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]
TWELVE = PixelRange(0, 4095)


def tiff(path, values: np.ndarray, photometric: int, extra: list[int] = (), sample_format: int = 1) -> None:
    """Write an uncompressed TIFF of [H, W, C] with any number of bands, which Pillow cannot."""
    height, width, bands = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    shorts = {258: [8 * values.itemsize] * bands, 259: [1], 262: [photometric], 277: [bands], 284: [1]}
    shorts |= {338: list(extra)} if extra else {}
    shorts[339] = [sample_format] * bands
    longs = {256: [width], 257: [height], 273: [8], 278: [height], 279: [len(data)]}
    tags = sorted([(tag, 3, v) for tag, v in shorts.items()] + [(tag, 4, v) for tag, v in longs.items()])
    directory, beyond = struct.pack("<H", len(tags)), b""
    place = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, kind, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            packed, beyond = struct.pack("<I", place + len(beyond)), beyond + packed + b"\0" * (len(packed) % 2)
        directory += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + b"\0\0\0\0" + beyond)


def ramp(top: int, dtype: str = "uint16") -> np.ndarray:
    """Values 0..top, [64, 64]."""
    return np.linspace(0, top, 64 * 64).reshape(64, 64).astype(dtype)


def pixels(path, pixel_range: PixelRange | None = None) -> np.ndarray:
    image = open_image(path, pixel_format=PixelFormat(range=pixel_range))
    return image.resize((image.height, image.width))


def test_values_are_mapped_and_clipped():
    values = np.array([[-1.0, 0.0, 1.0], [2.0, np.nan, np.inf]], np.float32)
    assert to_8_bits(values, PixelRange(0, 1)).tolist() == [[0, 0, 255], [255, 0, 255]]
    assert to_8_bits(np.arange(256, dtype=np.uint16), PixelRange(0, 255)).tolist() == list(range(256))
    large = 2_000_000_000 + np.arange(256, dtype=np.int32)  # float32 would round them to multiples of 128
    assert to_8_bits(large, PixelRange(2e9, 2e9 + 255)).tolist() == list(range(256))


@pytest.mark.parametrize(("top", "levels"), [(4095, 16), (1023, 4), (16383, 64), (255, 1)])
def test_few_bits_in_16_are_named_once_and_a_range_keeps_them(tmp_path, messages, top, levels):
    for name in "ab":
        Image.fromarray(ramp(top)).save(tmp_path / f"{name}.png")
        assert len(np.unique(pixels(tmp_path / f"{name}.png"))) == levels
    (text,) = messages
    assert f"{tmp_path}/a.png" in text
    assert f"{levels} of 256" in text
    assert "--pixel_range auto" in text
    found = pixels(tmp_path / "a.png", PixelRange(0, top))
    np.testing.assert_array_equal(found[..., 0], np.rint(ramp(top).astype(np.float32) * np.float32(255 / top)))


def test_all_16_bits_need_no_message(tmp_path, messages):
    Image.fromarray(ramp(65535)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png")[..., 0], ramp(65535) >> 8)
    assert not messages


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
def test_16_bit_color(tmp_path, messages, suffix):
    values = np.random.default_rng(0).integers(0, 4096, (16, 16, 3)).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), values[..., ::-1])
    if suffix != "ppm":  # there the header has the largest value
        np.testing.assert_array_equal(pixels(path), values >> 8)
        assert "16 of 256" in messages[0]
    np.testing.assert_array_equal(pixels(path, TWELVE), np.rint(values * (255 / 4095)))


def test_8_bits_are_the_same_with_a_range(tmp_path, picture):
    for name in ("a.png", "a.jpg", "a.bmp"):
        picture(1).save(tmp_path / name)
        np.testing.assert_array_equal(pixels(tmp_path / name), pixels(tmp_path / name, TWELVE))


@pytest.mark.parametrize(
    ("values", "pixel_range"),
    [
        (ramp(1, "float32"), PixelRange(0, 1)),
        (ramp(4095, "int32"), TWELVE),
        (ramp(4095, "int32") - 1024, PixelRange(-1024, 3071)),
    ],
)
def test_32_bits_need_a_range(tmp_path, values, pixel_range):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: it has 32-bit .*--pixel_range LO HI"):
        pixels(tmp_path / "a.tif")
    found = pixels(tmp_path / "a.tif", pixel_range)
    assert (found.min(), found.max(), len(np.unique(found))) == (0, 255, 256)


def test_float_color_is_read_with_a_range_and_more_bands_never(tmp_path):
    values = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    tiff(tmp_path / "a.tif", values, 2, sample_format=3)
    with pytest.raises(DataError, match=r"3 bands of 32 bits; pass --pixel_range auto"):
        pixels(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif", PixelRange(0, 1)), np.rint(values * np.float32(255)))
    for bands, dtype in ((5, "uint8"), (13, "uint16")):
        tiff(tmp_path / "b.tif", np.zeros((8, 8, bands), dtype), 1, [0] * (bands - 1))
        with pytest.raises(DataError, match=rf"b\.tif: it is a TIFF file with {bands} bands of .* 1 to 4"):
            pixels(tmp_path / "b.tif", PixelRange(0, 1))


@pytest.mark.parametrize("kind", ["near infrared", "alpha", "gray and alpha", "palette"])
def test_a_dropped_band_is_named_once(tmp_path, messages, picture, kind):
    image = picture(0).resize((16, 16))
    if kind == "near infrared":
        tiff(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8), 2, [0])
    elif kind == "palette":
        image.quantize(8).save(tmp_path / "a.png", transparency=0)
    else:
        image = image.convert("L") if kind == "gray and alpha" else image
        image.putalpha(Image.linear_gradient("L").resize((16, 16)))
        image.save(tmp_path / "a.png")
    (path,) = tmp_path.iterdir()
    for _ in range(2):
        pixels(path)
    (text,) = messages
    assert str(path) in text
    assert "band" in text


def test_constant_alpha_needs_no_message(tmp_path, messages, picture):
    picture(0).convert("RGBA").save(tmp_path / "a.png")
    pixels(tmp_path / "a.png")
    assert not messages


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_further_pages_are_named_once(tmp_path, messages, name):
    first, *others = (Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue"))
    first.save(tmp_path / name, save_all=True, append_images=others)
    for _ in range(2):
        assert pixels(tmp_path / name)[0, 0, 0] > 200
    (text,) = messages
    assert f"{tmp_path}/{name}" in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([ramp(4000), ramp(300)], (0, 4095)),
        ([ramp(65535)], (0, 65535)),
        ([ramp(1000)], (0, 1023)),
        ([ramp(1, "float32") * 0.7], (0, 1)),
        ([ramp(100, "float32")], (0, 128)),
        ([ramp(2000, "int32") - 1000], (-1024, 1023)),
        ([ramp(255, "uint8")], None),
    ],
)
def test_the_automatic_range(tmp_path, values, expected):
    paths = []
    for number, array in enumerate(values):
        paths.append(str(tmp_path / f"{number}.tif"))
        Image.fromarray(array).save(paths[-1])
    (tmp_path / "bad.tif").write_bytes(b"II*\0")
    paths.append(str(tmp_path / "bad.tif"))
    assert sampled_range(paths, deep_values) == expected


def test_messages_of_workers_are_not_repeated(tmp_path, messages):
    """The memory of what was logged is shared with processes forked later; here it is set as a worker would."""
    depth._logged[1] = 1
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)).save(tmp_path / "a.png")
    pixels(tmp_path / "a.png")
    assert not messages


def test_messages_of_pillow_reach_no_other_handler():
    """Paddle installs a handler at the root that would print one for every file of many bands."""
    logger = logging.getLogger("PIL.TiffImagePlugin")
    while logger.propagate and logger.parent is not None:
        logger = logger.parent
    assert logger.name == "PIL"


def test_the_fourth_band_of_a_deep_tiff_is_named_once(tmp_path, messages):
    """Pillow cannot identify such a file; one that it identifies has the last band marked as unspecified."""
    pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 4096, (16, 16, 4)).astype(np.uint16)
    for name in ("a.tif", "b.tif"):
        tiff(tmp_path / name, values, 1, [0, 0, 0])
        np.testing.assert_array_equal(pixels(tmp_path / name, TWELVE), to_8_bits(values[..., :3], TWELVE))
    (text,) = messages
    assert str(tmp_path / "a.tif") in text
    assert "--in_chans 4" in text


def test_the_log_of_opencv_is_silent(tmp_path, capfd):
    """The error names the file; OpenCV's lines do not."""
    tiff(tmp_path / "a.tif", np.zeros((64, 64, 4), np.uint16), 1, [0, 0, 0])
    data = bytearray((tmp_path / "a.tif").read_bytes())
    place = data.rindex(struct.pack("<HHI", 273, 4, 1)) + 8
    data[place : place + 4] = struct.pack("<I", len(data) - 8)  # the values begin 8 bytes before the end
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tif: OpenCV cannot decode it"):
        pixels(tmp_path / "a.tif", TWELVE)
    assert capfd.readouterr().err == ""
