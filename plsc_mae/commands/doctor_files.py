"""The doctor's checks of image files: the headers of all files, and the pixels of some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from plsc_mae.commands.doctor_findings import Finding, error, warning
from plsc_mae.data import depth
from plsc_mae.data.check import Note, check_files, examine_file
from plsc_mae.data.decode import deep_values, open_image, read_content
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.errors import DataError
from plsc_mae.runtime import count_workers

SAMPLED_FILES = 64  # of each split
_DECODED_SIDE = 32  # pixels
_NAMED_FILES = 5
REMEDY = "train with `plsc-mae pretrain --pixel_range auto` or with two numbers"


class _Losses(NamedTuple):
    """Files of one split with a property, and a description of what is lost."""

    indices: Sequence[int]
    text: str


def examine_files(images: ImageList, pixel_format: PixelFormat) -> Iterator[str | Finding]:
    """Check the headers of all files and decode some; yield a line, and findings on bad files, depth, bands and pages.

    Files of other channels than RGB are read with their sampled range, so they lose nothing.
    """
    depth.log_nothing()  # reported here, with numbers
    notes = check_files(images, num_workers=count_workers(None), pixel_format=pixel_format)
    deep = np.flatnonzero(notes & Note.DEEP).tolist() if pixel_format.is_rgb else range(len(images))
    paths = [images.path(index) for index in deep]
    pixel_range = depth.sampled_range(paths, lambda path: deep_values(path, pixel_format))
    ranged = pixel_format._replace(range=pixel_range)
    if not pixel_format.is_rgb:
        pixel_format = ranged
    bad = np.flatnonzero(notes & Note.BAD).tolist()
    only_deep = [index for index in bad if pixel_range and not examine_file(images.path(index), ranged).reason]
    damaged = [index for index in bad if index not in only_deep]
    intact = [index for index in range(len(images)) if not notes[index] & Note.BAD]
    failures = {index: examine_file(images.path(index), pixel_format).reason or images.path(index) for index in damaged}
    sampled = _spaced(intact)
    failures |= {index: reason for index in sampled if (reason := _failure(images.path(index), pixel_format))}
    if failures:
        named = "; ".join(list(failures.values())[:_NAMED_FILES])
        more = f"; and {len(failures) - _NAMED_FILES} more" if len(failures) > _NAMED_FILES else ""
        yield error(
            f"{len(failures)} of {len(images)} images of {images.source} cannot be used: {named}{more}; repair or "
            "remove such files, or train with `plsc-mae pretrain --bad_image skip`"
        )
    else:
        yield f"  {len(sampled)} sampled images can be read, and the headers of all files are intact"
    if only_deep:
        yield error(
            f"{len(only_deep)} of {len(images)} images of {images.source} have 32-bit pixels and need a range, the "
            f"first is {images.path(only_deep[0])}: {REMEDY}"
        )
    for indices, text in _losses(images, notes.tolist(), pixel_range) if pixel_format.is_rgb else ():
        if indices:
            yield warning(
                f"{len(indices)} of {len(images)} images of {images.source} {text}; the first is "
                f"{images.path(indices[0])}"
            )


def _losses(images: ImageList, notes: Sequence[int], pixel_range: depth.PixelRange | None) -> Iterator[_Losses]:
    """Yield the files that lose depth, bands or pages by default, with a description; `indices` may be empty."""
    good = [index for index, note in enumerate(notes) if not note & Note.BAD]
    deep = [index for index in good if notes[index] & Note.DEEP]
    if deep and pixel_range is not None and pixel_range.high < depth.HALF_RANGE:
        levels = max(1, int(pixel_range.high + 1) // 256)
        yield _Losses(
            deep,
            f"have 16 bits per band and sampled values up to {pixel_range.high:g} at most: divided by 256 they fill "
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
