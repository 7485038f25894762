"""TIFF files of any type and number of bands, read by the package tifffile, tile by tile or strip by strip.

The bands of a file are the samples of its pixels, interleaved or in planes. In a file of several pages of equal size
with one sample each, the bands are the pages. By default tifffile writes an array [H, W, C] as H pages of W x C; such a
file, recognized by more pages than columns, is read as [H, W, C]. Of a pyramid the largest level is read.
Palettes and files with several pages of several samples are rejected. Tags are named as in the TIFF 6.0 specification.
"""

from __future__ import annotations

import io
import itertools
import math
from operator import attrgetter
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from plsc_mae.errors import ConfigError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

    from plsc_mae.data.depth import Values

_WHITE_IS_ZERO, _PALETTE = 0, 3  # PhotometricInterpretation
_UNCOMPRESSED = 1  # Compression
_IN_PLANES = 2  # PlanarConfiguration
_ALPHA = (1, 2)  # ExtraSamples
_UNNAMED_PAGES = "QYX"  # axes of a three-dimensional array that tifffile wrote page by page


class TiffRaster:
    """Values of a TIFF file, see `plsc_mae.data.raster.Raster`.

    Uncompressed contiguous values are mapped into memory. Other values are decoded by the constructor if every page is
    a row of [H, W, C]; otherwise `read` decodes only the tiles or strips of a region.

    Args:
        path: the file.
        data: its content, if it is in memory.
        series: its pages that form the image.
        axes: letters of the axes of `series`: Y for rows, X for columns; any other axis longer than 1 has the bands. A
            `series` "QYX" whose pages are rows is passed as "YXS".
        size: number of bytes of the file.

    Raises:
        ValueError: the file is truncated.
        Exception: of other types: tifffile cannot decode the rows of [H, W, C].
    """

    def __init__(self, path: str, data: bytes | None, series: TiffPageSeries, axes: str, size: int) -> None:
        self.path, self.data, self.page, self.dtype = path, data, series.keyframe, series.dtype
        sizes = dict(zip(axes, series.shape, strict=True))
        axis = next((letter for letter in axes if letter not in "YX" and sizes[letter] > 1), "")
        self.shape = (sizes["Y"], sizes["X"], sizes[axis] if axis else 1)
        self.inverted = self.page.photometric == _WHITE_IS_ZERO and self.dtype.kind == "u"
        self.has_alpha = bool(self.page.extrasamples) and self.page.extrasamples[-1] in _ALPHA
        pages = [self.page] if axis in ("", "S") else list(series.pages)
        self.segments = [list(zip(page.dataoffsets, page.databytecounts, strict=True)) for page in pages]
        self._require_whole(size)
        self.decodes_whole = self.page.compression > _UNCOMPRESSED and len(self.page.dataoffsets) == 1
        self.decode, self.tables = self.page.decode, self.page.jpegtables  # read from the file on first use
        self.mapped: Values | None = None
        if series.dataoffset is not None:
            self.mapped = self._map(series, axes, axis)
        elif axes != series.axes:
            self.mapped = series.asarray()

    def _map(self, series: TiffPageSeries, axes: str, axis: str) -> Values:
        """Map uncompressed contiguous values, such as ImageJ writes, into memory; return [H, W, F]."""
        stored = np.dtype(self.page.parent.byteorder + self.dtype.char)
        values: Values
        if self.data is None:
            values = np.memmap(self.path, stored, "r", series.dataoffset, series.shape)
        else:
            count = math.prod(series.shape)
            values = np.frombuffer(self.data, stored, count, series.dataoffset).reshape(series.shape)
        order = [axes.index(letter) for letter in f"YX{axis}"]
        single = [i for i in range(values.ndim) if i not in order]
        return values.transpose(*order, *single).reshape(self.shape)

    def read(self, rows: slice, columns: slice) -> Values:
        """See `plsc_mae.data.raster.Raster.read`."""
        if self.mapped is not None:
            values: Values = np.array(self.mapped[rows, columns], dtype=self.dtype)
        else:
            parts = [self._decode(segments, rows, columns) for segments in self.segments]
            values = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        return np.iinfo(self.dtype).max - values if self.inverted else values

    def _decode(self, segments: list[tuple[int, int]], rows: slice, columns: slice) -> Values:
        """Decode a region [h, w, F] of a page; `segments` has (offset, byte count) of each of its tiles or strips."""
        page = self.page
        tiled, bands = page.is_tiled, page.samplesperpixel
        height = page.tilelength if tiled else min(page.rowsperstrip, page.imagelength)
        width = page.tilewidth if tiled else page.imagewidth
        across = math.ceil(page.imagewidth / width)
        per_plane = across * math.ceil(page.imagelength / height)
        planes = bands if page.planarconfig == _IN_PLANES else 1
        values = np.zeros((rows.stop - rows.start, columns.stop - columns.start, bands), self.dtype)
        places = itertools.product(
            range(planes),
            range(rows.start // height, math.ceil(rows.stop / height)),
            range(columns.start // width, math.ceil(columns.stop / width)),
        )
        with open_stream(self.path, self.data) as file:
            for plane, row, column in places:
                index = plane * per_plane + row * across + column
                offset, count = segments[index]
                if not count:  # tile without values in a sparse file
                    continue
                file.seek(offset)
                decoded, _, shape = self.decode(file.read(count), index, jpegtables=self.tables)
                top, left = row * height, column * width
                part = decoded[0, : shape[1], : shape[2]][
                    max(rows.start - top, 0) : rows.stop - top, max(columns.start - left, 0) : columns.stop - left
                ]
                y, x = max(top - rows.start, 0), max(left - columns.start, 0)
                own = slice(plane, plane + 1) if planes > 1 else slice(None)
                values[y : y + part.shape[0], x : x + part.shape[1], own] = part
        return values

    def _require_whole(self, size: int) -> None:
        """Raise ValueError if values lie beyond the end of the file, which has `size` bytes."""
        ends = [offset + count for segments in self.segments for offset, count in segments]
        if max(ends, default=0) > size:
            raise ValueError(f"it is truncated: its values end at byte {max(ends)}, and the file has {size} bytes")


def open_stream(path: str, data: bytes | None) -> BinaryIO:
    """Open a file, or its content if that is in memory."""
    return open(path, "rb") if data is None else io.BytesIO(data)


def open_tiff(path: str, data: bytes | None = None) -> TiffRaster:
    """Open a TIFF file, or its content if that is in memory.

    Raises:
        ConfigError: tifffile cannot be imported.
        ValueError: the file is truncated, has a palette, or has more than one axis of bands.
        Exception: of other types: tifffile cannot read the file.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ConfigError(
            f"{path}: TIFF files of other bands than RGB, and tiles, are read by tifffile, which cannot be imported "
            f"({error}); pip install 'plsc_mae[tiff]'"
        ) from None
    with open_stream(path, data) as stream, tifffile.TiffFile(stream) as file:
        series = _joined_pages(file) or file.series[0]
        if series.keyframe.photometric == _PALETTE:
            raise ValueError("its values are numbers of a palette; expected colors or measurements: convert it to RGB")
        bands = [letter for letter, n in zip(series.axes, series.shape, strict=True) if letter not in "YX" and n > 1]
        if len(bands) > 1:
            raise ValueError(
                f"it has the axes {series.axes} of {' x '.join(map(str, series.shape))}; expected rows, columns and "
                "one axis of bands: write one image per file"
            )
        in_rows = series.axes == _UNNAMED_PAGES and series.shape[0] > series.shape[2]
        return TiffRaster(path, data, series, "YXS" if in_rows else series.axes, file.filehandle.size)


def _joined_pages(file: TiffFile) -> TiffPageSeries | None:
    """Return all pages as one series if tifffile takes each for a series and all are gray and alike; else None."""
    import tifffile

    pages = [page for series in file.series for page in series.pages]
    first = file.series[0]
    if len(file.series) < 2 or len(pages) != len(file.series) or first.axes != "YX" or len(first.levels) > 1:
        return None
    forms = {(page.shape, page.dtype, page.compression, page.is_reduced) for page in map(attrgetter("keyframe"), pages)}
    return None if len(forms) > 1 else tifffile.TiffPageSeries(pages, (len(pages), *first.shape), first.dtype, "IYX")
