"""The doctor's description of image sizes, and the options for images that differ much from the input of a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from plsc_mae.config import PretrainConfig
from plsc_mae.data.classify import evaluation_transform
from plsc_mae.data.shapes import (
    LARGE,
    describe_shrinking,
    fitting_crop_ratio,
    fitting_input_size,
    seen_shares,
    typical_shape,
)
from plsc_mae.wording import span

INPUT = PretrainConfig.input_size[0]  # side of the default input
SQUARE = (INPUT, INPUT)
SMALL = 160 / INPUT  # shorter side, divided by the input's, below which other options suit better
PATCH = 16  # side of a patch in most published networks
_RESIZED_SIDE, _TILE = 320 / INPUT, 512 / INPUT  # divided by the input's; docs/packed-data.md and docs/your-images.md
_TINY, _SMALLEST_INPUT = 48, 16
_NOT_SQUARE = (
    1.2  # longer side divided by the shorter one, from which the default evaluation loses over a quarter of it
)


def describe_sizes(
    sizes: Sequence[tuple[int, int]], *, fit_jpeg: bool, input_size: tuple[int, int] = SQUARE, patch_size: int = 0
) -> Iterator[str]:
    """Yield a line about the image sizes, and lines with options that suit unusual sizes better.

    Args:
        sizes: (width, height) of each image in pixels.
        fit_jpeg: whether JPEG can hold the images, so that `prepare-data` can resize them.
        input_size: height and width of the input that the sizes are compared with, in pixels.
        patch_size: side of a patch in pixels, for which the options are; 0 for one that suits the sizes.
    """
    side = min(input_size)
    shape = typical_shape(sizes)
    ranges = [span(min(sides), max(sides)) for sides in zip(*sizes, strict=True)]
    yield f"  pixels: {ranges[0]} wide, {ranges[1]} high" + (f"; median {shape}" if len(set(sizes)) > 1 else "")
    shorter = int(np.median(np.min(sizes, axis=1)))
    reference = f"the {'default ' if side == INPUT else ''}input of {side} pixels"
    if shorter >= LARGE * side:
        resized, tile = (round(factor * side) for factor in (_RESIZED_SIDE, _TILE))
        yield f"  much larger than {reference}, which shrinks them {describe_shrinking(shorter, side)}"
        larger = " ".join(str(2 * each) for each in dict.fromkeys(input_size))
        patches = f" --patch_size {patch_size}" if patch_size else ""
        yield f"    for small objects: `plsc-mae pretrain --input_size {larger}{patches}`, with four times the patches,"
        yield f"    or `plsc-mae pretrain --tile {tile}`, which crops from squares of that side"
        if fit_jpeg:
            yield f"    for faster reading: `plsc-mae prepare-data DIR DST --short {resized}` resizes them once"
    elif shorter < SMALL * side:
        patch = patch_size or (4 if shorter < _TINY else 8)
        smaller = max(shorter, _SMALLEST_INPUT) // patch * patch or patch
        yield (
            f"  smaller than {reference}: runs enlarge them, except with `plsc-mae pretrain "
            f"--input_size {smaller} --patch_size {patch}`"
        )
    if shape.is_far_from_square:
        yield from _options_far_from_square(shape.ratio, shorter, patch_size)
    elif max(shape.ratio, 1 / shape.ratio) >= _NOT_SQUARE and len(set(input_size)) == 1:
        yield from _options_not_square(shape.ratio, side, patch_size)


def _relation(ratio: float) -> str:
    return f"{ratio:.1f} times as wide as high" if ratio > 1 else f"{1 / ratio:.1f} times as high as wide"


def _options_not_square(ratio: float, input_size: int, patch_size: int) -> Iterator[str]:
    """Yield lines with the visible part of images of this width / height, and the options for whole images."""
    width, height = seen_shares(ratio, evaluation_transform((input_size, input_size)))
    cell = patch_size or (PATCH if input_size >= 4 * PATCH else 4)
    seen = f"{100 * width:.3g} % of the width and {100 * height:.3g} % of the height"
    yield f"  not square ({_relation(ratio)}): evaluation sees {seen}"
    lowest, highest = PretrainConfig.crop_ratio
    yield from _whole_images(ratio, input_size, cell, set_ratio=not lowest <= ratio <= highest)


def _whole_images(ratio: float, side: int, cell: int, *, set_ratio: bool) -> Iterator[str]:
    """Yield lines with the options of training that keep images of this width / height whole.

    The input has about the area of a square of this `side`, in multiples of `cell`. `set_ratio` adds a range of crops
    around the images.
    """
    height, width = fitting_input_size(ratio, max(side // cell, 1) ** 2, cell)
    low, high = fitting_crop_ratio(ratio)
    patch = f" --patch_size {cell}" if cell != PATCH else ""
    flags = f"--input_size {height} {width}{patch}" + (f" --crop_ratio {low:g} {high:g}" if set_ratio else "")
    yield f"    for whole images: `plsc-mae pretrain {flags}`, and"
    yield f"    `plsc-mae finetune {flags} --crop_pct 1`, or linprobe with the same options"


def _options_far_from_square(ratio: float, shorter: int, patch_size: int) -> Iterator[str]:
    """Yield lines with the options for images of this width / height, and of this shorter side in pixels."""
    shape = _relation(ratio)
    yield f"  far from square ({shape}): training crops pieces of 3:4 to 4:3, and evaluation sees the center only"
    yield from _whole_images(ratio, INPUT, patch_size or PATCH, set_ratio=True)
    yield f"    for squares of every part: `plsc-mae pretrain --tile {shorter}`"
