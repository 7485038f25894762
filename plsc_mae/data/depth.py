"""Bit depth, bands and pages of image files: the parts that do not fit into 8-bit RGB.

By default 16-bit values are divided by 256, further bands and pages are ignored, and 32-bit values are refused. A
`PixelRange` maps the values of files with more than 8 bits per band to 0..255 instead. Each kind of loss is logged
once, with the name of the first file; processes forked later share this record.
"""

from __future__ import annotations

import io
import logging
import math
import mmap
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from plsc_mae.data.opencv import load_opencv
from plsc_mae.data.tiff import open_tiff
from plsc_mae.errors import remedies
from plsc_mae.wording import counted

Values = npt.NDArray[Any]  # [H, W] or [H, W, C], as in the file
Kind = Literal["depth", "bands", "pages"]
MAX_BANDS = 4
_RGB = 3
_WITH_ALPHA = ("LA", "PA", "La", "RGBA", "RGBa")
_KINDS = ("depth", "bands", "pages")
_SAMPLED_FILES = 64
HALF_RANGE = 1 << 15  # of 16 bits: smaller values are suspected to have fewer bits
_TIFF_MAGIC = (b"II*\0", b"MM\0*")
_WIDTH, _HEIGHT, _BITS, _BANDS = 256, 257, 258, 277  # TIFF tags

_pillow = logging.getLogger("PIL")  # its messages repeat those of the exceptions, and Paddle would print them
_pillow.addHandler(logging.NullHandler())
_pillow.propagate = False
_logged = mmap.mmap(-1, mmap.PAGESIZE)  # a byte per kind, 1 after its message; shared by forked workers
logger = logging.getLogger(__name__)


class PixelRange(NamedTuple):
    """Pixel values that become 0 and 255; values beyond are clipped."""

    low: float
    high: float


class BandError(ValueError):
    """Bands of a file that do not fit the channels, or gray values that have no range.

    Attributes:
        bands: number of bands; --in_chans with this number reads the file.
    """

    def __init__(self, text: str, bands: int) -> None:
        super().__init__(text)
        self.bands = bands


class TiffLayout(NamedTuple):
    """Size in pixels, number of bands and bits per band of a TIFF file."""

    height: int
    width: int
    bands: int
    bits: int


def range_remedy() -> str:
    """Return "; " and the remedy for a missing range, to end a message; "" if the running command has no remedy."""
    text = remedies("pass --pixel_range auto, or --pixel_range LO HI")
    return f"; {text}" if text else ""


def is_deep(header: Image.Image) -> bool:
    """Return True if an image that has not been decoded yet has more than 8 bits per band."""
    if header.mode in ("I", "F") or header.mode.startswith("I;16"):
        return True
    tiles = getattr(header, "tile", ())
    if tiles and tiles[0][0] in ("ppm", "ppm_plain"):
        return bool(tiles[0][3][1] > 255)
    deep = (re.search(r";(16|32)[A-Z]*$", layout) for layout in _layouts(header) if not layout.startswith("BGR"))
    return any(deep)  # BGR;16 has 5 or 6 bits per band


def has_default_range(header: Image.Image) -> bool:
    """Return True if an image can be read without a pixel range, which 32-bit and signed 16-bit values need."""
    # Pillow opens 16-bit PGM, and in older versions 16-bit PNG, as 32-bit "I".
    return header.mode not in ("I", "F") or (header.mode == "I" and header.format in ("PNG", "PPM"))


def has_pages(header: Image.Image) -> bool:
    """Return True if a file has further pages or frames; the previews in photographs of cameras (MPO) do not count."""
    return bool(getattr(header, "is_animated", False)) and header.format != "MPO"


def is_unmarked_band(header: Image.Image) -> bool:
    """Return True if an image that is not decoded yet is a TIFF with bands beyond RGB that are not marked as alpha."""
    return header.format == "TIFF" and any(layout.startswith(("RGBX", "RGBAX")) for layout in _layouts(header))


def has_extra_bands(header: Image.Image) -> bool:
    """Return True if an image that is not decoded yet has alpha, a transparent color, or unmarked bands beyond RGB."""
    return header.mode in _WITH_ALPHA or "transparency" in header.info or is_unmarked_band(header)


def _layouts(header: Image.Image) -> list[str]:
    """Return the pixel layout of each tile as Pillow names it, for example "RGB;16B"; [] for a decoded image."""
    arguments = [item[3] for item in getattr(header, "tile", ())]
    return [str(item[0] if isinstance(item, tuple) else item) for item in arguments]


def read_values(header: Image.Image, data: bytes, *, all_bands: bool = False) -> Values:
    """Return the values of a file with more than 8 bits per band: [H, W] gray or [H, W, 3] RGB.

    Pillow reduces RGB to 8 bits and scales PPM, so OpenCV reads these.

    Args:
        header: the image as Pillow opened it, not decoded yet.
        data: content of the file.
        all_bands: True keeps bands beyond gray and RGB, such as alpha.

    Raises:
        ValueError: OpenCV must decode the file, but cannot be imported or fails.
        Exception: of other types: Pillow cannot decode the file, or OpenCV refuses its size.
    """
    if header.format != "PPM" and (header.mode in ("I", "F") or header.mode.startswith("I;16")):
        return np.asarray(header)
    return decode_values(data, all_bands=all_bands)


def decode_values(data: bytes, *, all_bands: bool = False) -> Values:
    """Decode the content of a file with OpenCV at its own depth: [H, W] gray or [H, W, 3] RGB.

    Further bands are dropped unless `all_bands`.

    Raises:
        ValueError: OpenCV cannot be imported, or cannot decode the file.
        Exception: of other types: OpenCV refuses the size of the image.
    """
    try:
        cv2 = load_opencv()
    except ImportError as error:
        raise ValueError(f"its depth needs OpenCV; {error}") from None
    values: Values | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("OpenCV cannot decode it")
    if values.ndim == 2:
        return values
    if values.shape[2] < _RGB:
        return values if all_bands else values[..., 0]
    rgb = values[..., _RGB - 1 :: -1]  # from BGR
    return np.concatenate([rgb, values[..., _RGB:]], axis=-1) if all_bands else rgb


def _unidentified_values(path: str, data: bytes, layout: TiffLayout) -> Values:
    """Return the values of a TIFF file that Pillow cannot identify, without bands beyond RGB: [H, W] or [H, W, 3]."""
    values = decode_values(data)
    if layout.bands < _RGB or values.ndim > 2:
        return values
    # OpenCV returns the luminance of integers whose bands are not marked as RGB.
    whole = (slice(0, layout.height), slice(0, layout.width))
    return open_tiff(path, data).read(*whole)[..., :_RGB]


def to_8_bits(values: Values, pixel_range: PixelRange) -> npt.NDArray[np.uint8]:
    """Map values [H, W] or [H, W, C] linearly from `pixel_range` to 0..255, clipped and rounded; NaN becomes 0."""
    return np.rint(scale(values, pixel_range)).astype(np.uint8)


def scale(values: Values, pixel_range: PixelRange) -> npt.NDArray[Any]:
    """Map values of any shape linearly from `pixel_range` to 0..255, clipped; NaN becomes 0.

    The result is float32, or float64 for integers of more than 16 bits.
    """
    low, high = pixel_range
    wide = values.dtype.kind in "iu" and values.dtype.itemsize > 2
    exact = np.float64 if wide else np.float32
    scaled: npt.NDArray[Any] = values.astype(exact)  # changed in place: regions of many bands take much memory
    scaled -= exact(low)
    scaled *= exact(255 / (high - low))
    return np.nan_to_num(np.clip(scaled, 0, 255, out=scaled), copy=False, nan=0.0)


def tiff_layout(data: bytes) -> TiffLayout | None:
    """Return the layout of the content of a TIFF file, even one that Pillow cannot identify; None for other content.

    BigTIFF and damaged content count as other content.
    """
    if not data.startswith(_TIFF_MAGIC):
        return None
    try:
        tags = ImageFileDirectory_v2(data[:8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        bits = tags.get(_BITS, (1,))
        return TiffLayout(int(tags[_HEIGHT]), int(tags[_WIDTH]), int(tags.get(_BANDS, 1)), int(max(bits)))
    except Exception:  # a damaged directory raises exceptions of many types
        return None


def open_header(path: str, data: bytes, pixel_range: PixelRange | None) -> Image.Image:
    """Open the content of a file as a Pillow image; TIFF files that only OpenCV reads are decoded to 8 bits.

    `path` is named if such a TIFF has a fourth band, which is dropped.

    Raises:
        ValueError: the file is a TIFF that Pillow cannot identify, and has more than four bands, needs a pixel range,
            exceeds Pillow's limit of pixels, or cannot be decoded by OpenCV.
        ConfigError: the file is such a TIFF and needs tifffile, which cannot be imported.
        UnidentifiedImageError: the file is not an image of a known format.
        Exception: of other types: Pillow cannot open the file, or refuses its number of pixels.
    """
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        layout = tiff_layout(data)
        if layout is None:
            raise
        kind = f"it is a TIFF file with {counted(layout.bands, 'band')} of {counted(layout.bits, 'bit')}"
        if layout.bands > MAX_BANDS:
            remedy = remedies("choose bands with --bands", f"give --in_chans {layout.bands}")
            raise BandError(
                f"{kind}; expected 1 to {MAX_BANDS} bands: {remedy or 'write three of them as RGB'}", layout.bands
            ) from None
        if pixel_range is None:
            text = f"{kind}{range_remedy()}"
            raise ValueError(text) if layout.bands == _RGB else BandError(text, layout.bands) from None
        if layout.height * layout.width > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"it has {layout.height} x {layout.width} pixels, more than Pillow's limit") from None
        values = _unidentified_values(path, data, layout)
        if layout.bands > _RGB:
            log_dropped_bands(path)
        return Image.fromarray(to_8_bits(values, pixel_range))


# ------------------------------------------------------------------------------------------------------ losses


def log_loss(kind: Kind, path: str, text: str, *values: object) -> None:
    """Warn, once per kind of loss, that bands, pages or depth of a file are lost.

    Args:
        kind: the kind of loss.
        path: the file.
        text: continuation of a sentence that begins with the path, with placeholders for `values`.
        values: values of the placeholders.
    """
    place = _KINDS.index(kind)
    if not _logged[place]:
        _logged[place] = 1
        logger.warning(f"%s {text}; further files of this kind are not named", path, *values)


def log_dropped_bands(path: str) -> None:
    """Log that the bands of a file beyond RGB are dropped, see `log_loss`."""
    remedy = remedies(f"--in_chans {MAX_BANDS} keeps all four bands")
    remedy = f"; {remedy}" if remedy else ""
    log_loss("bands", path, f"has more than three bands; only the first three are used{remedy}")


def is_logged(kind: Kind) -> bool:
    """Return True after a message of this kind, or after `log_nothing`."""
    return bool(_logged[_KINDS.index(kind)])


def log_nothing() -> None:
    """Disable `log_loss` from now on, for a caller that reports these properties itself."""
    _logged[: len(_KINDS)] = bytes([1] * len(_KINDS))


def log_shallow(path: str, largest: int) -> None:
    """Warn once that a 16-bit file fills at most half of 256 levels, if `largest`, its largest value, is below 2^15."""
    if largest < HALF_RANGE:
        levels = max(1, (1 << int(largest).bit_length()) // 256)
        log_loss(
            "depth",
            path,
            "has 16 bits per band, but no value above %d: divided by 256, its values fill %d of 256 levels%s",
            largest,
            levels,
            range_remedy(),
        )


def _alpha_extremes(image: Image.Image) -> tuple[float, float]:
    """Return the smallest and the largest value of an image's alpha band; (255, 255) without one."""
    if image.mode in _WITH_ALPHA:
        alpha = image.getchannel(image.getbands()[-1])
    elif "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
    else:
        return 255, 255
    values = np.asarray(alpha)
    return values.min(), values.max()


def has_varying_band(data: bytes) -> bool:
    """Return True if the content of a file has an alpha band that is not constant, or an unmarked band beyond RGB.

    An unmarked band (see `is_unmarked_band`) is not read. If the file cannot be decoded, the result is False.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if is_unmarked_band(image):
            return True
        low, high = _alpha_extremes(image)
    except Exception:  # Pillow's plug-ins let exceptions of many types escape; damage is reported elsewhere
        return False
    return low != high


def log_lost_alpha(path: str, image: Image.Image) -> None:
    """Log that the alpha band of a decoded image is dropped, if it is not constant; see `log_loss`."""
    if is_logged("bands"):
        return
    low, high = _alpha_extremes(image)
    if low != high:
        log_loss(
            "bands",
            path,
            "has an alpha band with values from %d to %d, which is dropped: transparent pixels show their stored color",
            low,
            high,
        )


# ------------------------------------------------------------------------------------------------ automatic range


class Extremes(NamedTuple):
    """Smallest and largest value of sampled files with more than 8 bits per band, and whether all are integers."""

    low: float
    high: float
    integers: bool

    def joined(self, other: Extremes | None) -> Extremes:
        """Return the extremes of both samples."""
        if other is None:
            return self
        return Extremes(min(self.low, other.low), max(self.high, other.high), self.integers and other.integers)

    @property
    def usual_range(self) -> PixelRange:
        """The smallest usual range that holds the values.

        It starts at 0, or at minus a power of two if there are negative values. It ends at 2^k - 1 for integers, for
        example 4095, and at 1 or 2^k for floats.
        """
        start = 0.0 if self.low >= 0 else -float(2 ** math.ceil(math.log2(-self.low)))
        if self.integers:
            return PixelRange(start, float(2 ** int(max(self.high, 1)).bit_length() - 1))
        return PixelRange(start, 1.0 if self.high <= 1 else float(2 ** math.ceil(math.log2(self.high))))


def sampled_extremes(paths: Sequence[str], read: Callable[[str], Iterable[Values]]) -> Extremes | None:
    """Return the extremes of sampled files with more than 8 bits per band.

    Args:
        paths: the files, of which up to 64 are read, evenly spaced.
        read: returns the values of a file in parts, none for 8-bit values; see `decode.deep_values`.

    Returns:
        The extremes; None if the sampled files have no such values or cannot be read.
    """
    found: Extremes | None = None
    for path in _spaced(paths):
        for extremes in _extremes(path, read):
            found = extremes.joined(found)
    return found


def sampled_range(paths: Sequence[str], read: Callable[[str], Iterable[Values]]) -> PixelRange | None:
    """Return the `Extremes.usual_range` of sampled files; None without extremes, see `sampled_extremes`."""
    found = sampled_extremes(paths, read)
    return None if found is None else found.usual_range


def _spaced(paths: Sequence[str]) -> Iterable[str]:
    count = min(_SAMPLED_FILES, len(paths))
    return (paths[i * len(paths) // count] for i in range(count))


def _extremes(path: str, read: Callable[[str], Iterable[Values]]) -> list[Extremes]:
    """Return the extremes of the finite values of each part of a file as `read` returns it.

    Parts without a finite value are left out. The list is empty for a file that cannot be read.
    """
    found = []
    try:
        for values in read(path):
            finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
            if finite.size:
                found.append(Extremes(float(finite.min()), float(finite.max()), values.dtype.kind != "f"))
    except Exception:  # decoders raise exceptions of many types; the run reports the file when it is read
        return []
    return found


def deep_values(data: bytes) -> Values | None:
    """Return the values in the content of a file; None if Pillow reads it at 8 bits or less, or its format is unknown.

    For a TIFF file that Pillow cannot identify, the values are returned at any depth.

    Raises:
        Exception: of many types: the content cannot be decoded.
    """
    try:
        header = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        layout = tiff_layout(data)
        return None if layout is None else _unidentified_values("", data, layout)
    return read_values(header, data) if is_deep(header) else None
