"""Both backends on well-formed, odd and broken files; parity of `pil` with torchvision is in test_transforms."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.data import decode
from plsc_mae.data.decode import Box, OpenCVImage, PilImage, open_image
from plsc_mae.data.opencv import broken, load_opencv
from plsc_mae.errors import ConfigError, DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]

BACKENDS = ["pil", "opencv"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def png_16_bit_rgb(pixels: np.ndarray) -> bytes:
    """Encode uint16 [H, W, 3], which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def whole(path: Path, backend: str) -> np.ndarray:
    image = open_image(path, backend)
    return image.crop_resize(Box(0, 0, image.height, image.width), (image.height, image.width))


def test_size_is_known_without_decoding(tmp_path, backend, picture):
    path = tmp_path / "a.jpg"
    picture(0, 40, 56).save(path)
    path.write_bytes(path.read_bytes()[:700])  # the header is whole, the pixels are not
    image = open_image(path, backend)
    assert (image.height, image.width) == (40, 56)


def test_pil_backend_is_convert_crop_resize(tmp_path, picture):
    path = tmp_path / "a.jpg"
    picture(1, 90, 70).save(path)
    expected = Image.open(path).convert("RGB").crop((5, 7, 55, 47)).resize((32, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(
        open_image(path, "pil").crop_resize(Box(7, 5, 40, 50), (24, 32), "bilinear"), np.asarray(expected)
    )


@pytest.mark.parametrize(
    ("side", "box", "size"),
    [
        (200, Box(10, 20, 150, 120), (64, 64)),  # a half
        (300, Box(0, 0, 300, 300), (35, 35)),  # an eighth
        (300, Box(201, 150, 99, 150), (24, 36)),  # a quarter, up to the corner
        (60, Box(5, 6, 40, 30), (64, 64)),  # enlarged
    ],
)
def test_opencv_is_close_to_pil(tmp_path, picture, side, box, size):
    """On smooth pictures, decoders and filters differ by rounding only; a shift by half a pixel costs ten levels."""
    path = tmp_path / "a.jpg"
    picture(2, side, side).save(path, quality=95)
    fast = open_image(path, "opencv")
    assert isinstance(fast, OpenCVImage)
    pixels = fast.crop_resize(box, size)
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - open_image(path, "pil").crop_resize(box, size))
    assert difference.mean() < 1
    assert difference.max() <= 4


@pytest.mark.parametrize(
    ("box", "size", "factor"),
    [
        (Box(0, 0, 447, 600), (224, 224), 1),
        (Box(0, 0, 448, 600), (224, 224), 2),
        (Box(0, 0, 900, 895), (224, 224), 2),
        (Box(0, 0, 1792, 1792), (224, 224), 8),
        (Box(0, 0, 10, 10), (224, 224), 1),
    ],
)
def test_reduction_leaves_the_crop_as_large_as_the_output(box, size, factor):
    assert decode._reduction(box, size) == factor


def test_a_finer_decode_serves_a_coarser_request(tmp_path, picture):
    path = tmp_path / "a.jpg"
    picture(3, 256, 256).save(path)
    image = open_image(path, "opencv")
    box = Box(0, 0, 256, 256)
    large = image.crop_resize(box, (256, 256))
    small = image.crop_resize(box, (64, 64))
    np.testing.assert_array_equal(image.crop_resize(box, (256, 256)), large)
    assert small.shape == (64, 64, 3)
    again = open_image(path, "opencv")
    again.crop_resize(box, (64, 64))
    np.testing.assert_array_equal(again.crop_resize(box, (256, 256)), large)  # a coarse decode is not reused


def test_gray_is_repeated(tmp_path, backend, picture):
    path = tmp_path / "gray.jpg"
    picture(4).convert("L").save(path)
    pixels = whole(path, backend)
    assert (pixels == pixels[..., :1]).all()
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(Image.open(path)))


def test_cmyk_is_converted_by_pillow(tmp_path, backend, picture):
    path = tmp_path / "cmyk.jpg"
    picture(5).convert("CMYK").save(path)
    np.testing.assert_array_equal(whole(path, backend), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1"])
def test_alpha_is_dropped_and_palettes_are_looked_up(tmp_path, backend, picture, mode):
    path = tmp_path / "a.png"
    image = picture(6)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.convert(mode).save(path)
    expected = np.asarray(image.convert(mode).convert("RGB"))
    np.testing.assert_array_equal(whole(path, backend), expected)
    if mode == "RGBA":
        np.testing.assert_array_equal(expected, np.asarray(picture(6)))


def test_16_bit_gray_is_divided_by_256(tmp_path, backend):
    values = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    for suffix in ("png", "tif", "pgm"):
        path = tmp_path / f"deep.{suffix}"
        Image.fromarray(values).save(path)
        np.testing.assert_array_equal(whole(path, backend), np.repeat(values[..., None] >> 8, 3, axis=2), suffix)


def test_16_bit_rgb_is_divided_by_256(tmp_path, backend):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(png_16_bit_rgb(values))
    np.testing.assert_array_equal(whole(path, backend), values >> 8)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_32_bit_pixels_are_refused(tmp_path, backend, dtype):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.ones((4, 4), dtype)).save(path)
    with pytest.raises(DataError, match=rf"{path}: it has 32-bit .*--pixel_range"):
        whole(path, backend)


def test_exif_orientation_is_ignored(tmp_path, backend, picture):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    picture(7, 40, 56).save(path, exif=exif, quality=95)
    plain = tmp_path / "plain.jpg"
    picture(7, 40, 56).save(plain, quality=95)
    assert open_image(path, backend).width == 56
    np.testing.assert_array_equal(whole(path, backend), whole(plain, backend))


def test_one_pixel(tmp_path, backend):
    path = tmp_path / "dot.jpg"
    Image.new("RGB", (1, 1), (200, 100, 50)).save(path, quality=100, subsampling=0)
    pixels = open_image(path, backend).crop_resize(Box(0, 0, 1, 1), (8, 8))
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 2  # JPEG's color transform rounds


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_truncated_jpeg_is_an_error(tmp_path, backend, picture, kept):
    path = tmp_path / "cut.jpg"
    picture(8, 200, 200).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    image = open_image(path, backend)
    with pytest.raises(DataError, match=rf"{path}: .*truncated") as caught:
        image.crop_resize(Box(0, 0, 50, 50), (8, 8))
    assert "\n" not in str(caught.value)


def test_truncated_png_is_an_error(tmp_path, backend):
    path = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"cut\.png"):
        whole(path, backend)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"<html>404</html>", "not an image of a known format"), (None, "No such file")],
)
def test_files_that_are_not_images_are_named_with_their_path(tmp_path, backend, content, reason):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}: .*{reason}") as caught:
        open_image(path, backend)
    assert "BytesIO" not in str(caught.value)


def _link(target: str):
    return lambda path: path.symlink_to(target)


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**36)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "pipe, socket or device"),  # a plain open waits for a writer
        (_link("/dev/zero"), "pipe, socket or device"),  # a plain read never ends
        (_sparse, r"68\.7 GB.*1\.4 GB"),
        (_link("bad.jpg"), "Too many levels of symbolic links"),
        (_link("nowhere"), "No such file or directory"),
        (Path.mkdir, "Is a directory"),
    ],
)
def test_files_that_could_hang_or_fill_the_memory_are_rejected_immediately(tmp_path, backend, make, reason):
    path = tmp_path / "bad.jpg"
    make(path)
    with pytest.raises(DataError, match=f"{path}: .*{reason}"):
        open_image(path, backend)


def test_a_file_that_may_not_be_read_is_named(tmp_path, picture):
    path = tmp_path / "secret.jpg"
    picture(0).save(path)
    path.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(DataError, match=f"{path}: Permission denied"):
            open_image(path)
    finally:
        os.seteuid(os.getuid())


def test_decompression_bomb_is_an_error(tmp_path, backend, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (400, 400)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70_000)  # Pillow refuses twice as many; 400 * 400 is more
    with pytest.raises(DataError, match=r"bomb\.png: .*exceeds limit"):
        open_image(path, backend)


def test_resizing_a_thin_strip_does_not_fill_the_memory(tmp_path, backend):
    path = tmp_path / "strip.png"
    Image.new("RGB", (1, 5000)).save(path)
    with pytest.raises(DataError, match=r"strip\.png of 5000x1 .*1280000x256.* 178956970 pixels"):
        open_image(path, backend).resize((256 * 5000, 256))


def test_opencv_leaves_odd_files_to_pillow(tmp_path, picture):
    picture(9).save(tmp_path / "a.png")
    picture(9).save(tmp_path / "a.webp", lossless=True)
    picture(9).convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture(9).save(tmp_path / "ends_oddly.jpg")
    with open(tmp_path / "ends_oddly.jpg", "ab") as file:
        file.write(b"trailing")
    for path in tmp_path.iterdir():
        assert isinstance(open_image(path, "opencv"), PilImage), path


def test_what_opencv_cannot_decode_pillow_does(tmp_path, picture, monkeypatch):
    import cv2

    path = tmp_path / "a.jpg"
    picture(10).save(path)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    np.testing.assert_array_equal(whole(path, "opencv"), whole(path, "pil"))


def test_opencv_runs_on_one_thread(tmp_path, picture):
    import cv2

    picture(11).save(tmp_path / "a.jpg")
    whole(tmp_path / "a.jpg", "opencv")
    assert cv2.getNumThreads() == 1


def test_missing_opencv_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)  # makes `import cv2` fail
    load_opencv.cache_clear()
    with pytest.raises(ConfigError, match=r"--image_backend opencv.*opencv-python-headless"):
        decode.require_backend("opencv")
    monkeypatch.undo()
    decode.require_backend("opencv")


def test_an_opencv_without_its_system_libraries_names_the_remedy():
    found = broken(ImportError("libGL.so.1: cannot open\nshared object file"))
    assert "libGL.so.1: cannot open shared object file" in found
    assert "pip install opencv-python-headless" in found


def test_damaged_bytes_give_pixels_or_a_data_error(tmp_path, backend, picture):
    buffer = io.BytesIO()
    picture(12, 64, 64).save(buffer, "JPEG")
    rng = np.random.default_rng(0)
    path = tmp_path / "fuzz.jpg"
    outcomes: list[object] = []
    for _ in range(60):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        data[rng.integers(2, len(data) - 2, 4)] = rng.integers(0, 256, 4)
        path.write_bytes(data.tobytes())
        try:
            outcomes.append(open_image(path, backend).crop_resize(Box(0, 0, 1, 1), (8, 8)).shape)
        except DataError as error:
            outcomes.append(str(path) in str(error))
    assert set(outcomes) == {(8, 8, 3), True}
