"""The doctor's checks of image files: the headers of all files, and the pixels of some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.commands.doctor_findings import Finding, error, warning
from plsc_mae.commands.doctor_sizes import SQUARE, describe_sizes
from plsc_mae.data import depth
from plsc_mae.data.band_misfit import describe_misfit, reason_among
from plsc_mae.data.check import Note, check_files, examine_file
from plsc_mae.data.decode import deep_values, open_image, open_values, read_content
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.pixels import RGB_CHANNELS, PixelFormat
from plsc_mae.data.unreadable import shortened
from plsc_mae.errors import DataError
from plsc_mae.runtime import count_workers
from plsc_mae.wording import counted

SAMPLED_FILES = 64  # of each split
_DECODED_SIDE = 32  # pixels
_NAMED_FILES = 5
REMEDY = (
    "train gray images with `plsc-mae pretrain --in_chans 1`, which keeps the depth, and others with `plsc-mae "
    "pretrain --pixel_range auto` or with two numbers"
)


class _Losses(NamedTuple):
    """Files of one split that lose something when they are read as RGB, and a description of the loss."""

    indices: Sequence[int]
    text: str


def examine_files(
    images: ImageList, pixel_format: PixelFormat, input_size: tuple[int, int] = SQUARE, patch_size: int = 0
) -> Generator[str | Finding, None, depth.Extremes | None]:
    """Check the headers of all files and decode some; yield lines about them, and findings about bad files.

    If images are read as RGB, there are also findings about losses of depth, bands and pages.

    Returns:
        The extremes of sampled values of more than 8 bits; None without such values.

    Args:
        images: the files.
        pixel_format: format in which runs will read them.
        input_size: see `describe_sizes`.
        patch_size: see `describe_sizes`.
    """
    depth.log_nothing()  # reported here, with numbers
    notes = check_files(images, num_workers=count_workers(None), pixel_format=pixel_format)
    deep = np.flatnonzero(notes & Note.DEEP).tolist() if pixel_format.is_rgb else range(len(images))
    paths = [images.path(index) for index in deep]
    extremes = depth.sampled_extremes(paths, lambda path: deep_values(path, pixel_format))
    ranged = pixel_format._replace(range=pixel_format.range or (extremes and extremes.usual_range))
    if not pixel_format.is_rgb:
        pixel_format = ranged
    bad = np.flatnonzero(notes & Note.BAD).tolist()
    only_deep = [index for index in bad if extremes and not examine_file(images.path(index), ranged).reason]
    damaged = [index for index in bad if index not in only_deep]
    intact = [index for index in range(len(images)) if not notes[index] & Note.BAD]
    reports = {index: examine_file(images.path(index), pixel_format) for index in damaged}
    if misfit := describe_misfit(images, reports, pixel_format):
        yield error(misfit)
        reports = {index: report for index, report in reports.items() if not report.bands}
    failures = {
        index: reason_among(images, index, report, pixel_format) or images.name(index)
        for index, report in reports.items()
    }
    sampled = _spaced(intact)
    failures |= {index: reason for index in sampled if (reason := _failure(images.path(index), pixel_format))}
    if failures:
        yield error(_unusable(images, [shortened(failures[i], images.path(i), images.name(i)) for i in failures]))
    elif not misfit:
        total = len(images)
        yield f"  intact headers: {_sample(total, total)}; decoded: {_sample(len(sampled), total)}"
    if others := images.left_out.loose.number + sum(count.number for count in images.left_out.suffixes.values()):
        yield f"  not opened: {counted(others, 'other file')} of {images.root}"
    yield from _examine_content(images, notes, None if misfit else pixel_format, input_size, patch_size)
    if extremes is not None:
        yield f"  beyond 8 bits: sampled values are from {extremes.low:g} to {extremes.high:g}"
    if only_deep:
        yield error(
            f"{len(only_deep)} of {len(images)} images of {images.source} have 32-bit or signed 16-bit pixels and need "
            f"a range, the first is {images.path(only_deep[0])}: {REMEDY}"
        )
    for indices, text in _losses(images, notes.tolist(), extremes, pixel_format) if pixel_format.is_rgb else ():
        if indices:
            yield warning(
                f"{len(indices)} of {len(images)} images of {images.source} {text}; the first is "
                f"{images.path(indices[0])}"
            )
    return extremes


def _unusable(images: ImageList, failures: Sequence[str]) -> str:
    """Return a sentence about the images of a list that cannot be used, for the reasons `failures`."""
    reasons = list(dict.fromkeys(failures))  # a list may repeat a file
    named = "; ".join(reasons[:_NAMED_FILES])
    more = f"; and {len(reasons) - _NAMED_FILES} more" if len(reasons) > _NAMED_FILES else ""
    remedy = "repair such files or remove their lines" if images.list_file else "repair or remove such files"
    return (
        f"{len(failures)} of {len(images)} images of {images.source} cannot be used: {named}{more}; {remedy}, or "
        "give `plsc-mae pretrain --bad_image skip` and `plsc-mae finetune --bad_image skip`"
    )


def with_sampled_range(images: ImageList, pixel_format: PixelFormat) -> PixelFormat:
    """Return a format with the range that --pixel_range auto takes from training images."""
    paths = [images.path(index) for index in range(len(images))]
    return pixel_format._replace(range=depth.sampled_range(paths, lambda path: deep_values(path, pixel_format)))


def describe_range(extremes: depth.Extremes, pixel_format: PixelFormat) -> Iterator[str | Finding]:
    """Yield a line about the range for the values of all splits, or a warning if that of `pixel_format` clips some."""
    low, high = extremes.usual_range
    if pixel_format.range is None:
        rgb = "divide 16-bit values by 256 and refuse 32-bit values"
        yield (
            f"pixel range: `plsc-mae pretrain --pixel_range {low:g} {high:g}` holds the sampled values beyond 8 bits; "
            f"without it, runs {rgb if pixel_format.is_rgb else 'use a sample of the training images'}"
        )
    elif extremes.low < pixel_format.range.low or extremes.high > pixel_format.range.high:
        yield warning(
            f"sampled values from {extremes.low:g} to {extremes.high:g} are beyond the pixel range "
            f"{pixel_format.range.low:g} to {pixel_format.range.high:g}, which clips them; `--pixel_range {low:g} "
            f"{high:g}` holds all of them"
        )


def _examine_content(
    images: ImageList,
    notes: npt.NDArray[np.int64],
    pixel_format: PixelFormat | None,
    input_size: tuple[int, int],
    patch_size: int,
) -> Iterator[str]:
    """Yield lines about formats, bits, bands and sizes of sampled files, and about options that suit them better.

    Without `pixel_format`, for files that do not fit it, the line about how they are read is left out.
    """
    sampled = _spaced(range(len(images)))
    readable = [images.path(index) for index in sampled if not notes[index] & Note.FATAL]
    contents = [content for path in readable if (content := _content(path)) is not None]
    if not contents:
        return
    yield f"  formats of {_sample(len(sampled), len(images))}: {_counted_kinds(contents, len(sampled) - len(contents))}"
    if pixel_format is not None:
        yield f"  read as {_reading({content.bands for content in contents}, pixel_format)}"
    yield from describe_sizes(
        [(content.width, content.height) for content in contents],
        fit_jpeg=all(content.dtype == np.uint8 and content.bands in (1, 3) for content in contents),
        input_size=input_size,
        patch_size=patch_size,
    )


def _reading(bands: set[int], pixel_format: PixelFormat) -> str:
    """Return how files with these numbers of bands are read, with the option for more suitable channels."""
    if not pixel_format.is_rgb:
        return counted(pixel_format.channels, "channel")
    if bands == {1}:
        return "RGB, three times the same band; `plsc-mae pretrain --in_chans 1` trains on one channel"
    if bands == {RGB_CHANNELS + 1}:
        return "RGB, the first three bands"
    wide = sorted(bands - {1, 3, 4})
    return f"RGB; `plsc-mae pretrain --in_chans {wide[-1]}` trains on all bands" if wide else "RGB"


def _sample(number: int, total: int) -> str:
    """Return the words for a sample of `number` of `total` files, see `_spaced`."""
    if number < total:
        return f"{number} of {total} files, evenly spaced in the list"
    return f"all {total} files" if total > 1 else "the only file"


def _counted_kinds(contents: Sequence[_Content], unreadable: int) -> str:
    """Return the kinds of files with their numbers, the most frequent first."""
    kinds = Counter(map(str, contents)).most_common()
    others = sum(count for _, count in kinds[_NAMED_FILES:])
    parts = [f"{count} {text}" for text, count in kinds[:_NAMED_FILES]]
    parts += [f"{others} of other kinds"] if others else []
    parts += [f"{unreadable} that this check cannot open"] if unreadable else []
    return ", ".join(parts)


class _Content(NamedTuple):
    """Format, size in pixels, bands and type of the values of a file."""

    suffix: str
    height: int
    width: int
    bands: int
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        kind = {"f": "-bit float", "b": "-bit boolean"}.get(self.dtype.kind, "-bit")
        bands = {1: "gray (1 band)", 3: "color (3 bands)"}.get(self.bands, f"{self.bands} bands")
        return f"{self.suffix} of {8 * self.dtype.itemsize}{kind} {bands}"


def _content(path: str) -> _Content | None:
    try:
        raster = open_values(path)
        dtype = raster.read(slice(0, 1), slice(0, 1)).dtype
    except Exception:  # decoders raise exceptions of many types
        return None
    suffix = Path(path).suffix[1:].upper()
    return _Content({"JPG": "JPEG", "TIF": "TIFF"}.get(suffix, suffix), *raster.shape, dtype)


def _losses(
    images: ImageList, notes: Sequence[int], extremes: depth.Extremes | None, pixel_format: PixelFormat
) -> Iterator[_Losses]:
    """Yield the files that lose depth, bands or pages as RGB, with a description; `indices` may be empty."""
    good = [index for index, note in enumerate(notes) if not note & Note.BAD]
    deep = [index for index in good if notes[index] & Note.DEEP]
    if deep and extremes and pixel_format.range is None and extremes.usual_range.high < depth.HALF_RANGE:
        levels = max(1, int(extremes.usual_range.high + 1) // 256)
        yield _Losses(
            deep,
            f"have 16 bits per band and sampled values up to {extremes.high:g}: divided by 256 they fill "
            f"{levels} of 256 levels: {REMEDY}",
        )
    bands = [index for index in good if notes[index] & Note.BANDS]
    varying = any(depth.has_varying_band(read_content(images.path(index))) for index in _spaced(bands))
    yield _Losses(bands if varying else (), "have alpha or a fourth band that is not constant, which is dropped")
    pages = [index for index in good if notes[index] & Note.PAGES]
    yield _Losses(pages, "have several pages or frames, of which only the first is used")


def _spaced(indices: Sequence[int]) -> list[int]:
    """Return up to SAMPLED_FILES of the indices, evenly spaced and with the first and the last one."""
    last = len(indices) - 1
    places = {i * last // (SAMPLED_FILES - 1) for i in range(SAMPLED_FILES)} if indices else set()
    return [indices[place] for place in sorted(places)]


def _failure(path: str, pixel_format: PixelFormat) -> str:
    try:
        image = open_image(path, pixel_format=pixel_format)
        image.resize((min(image.height, _DECODED_SIDE), min(image.width, _DECODED_SIDE)))
    except DataError as failure:
        return str(failure)
    return ""
