"""Pictures of features: images with their nearest neighbors, and maps with thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.fonts import drawable_names
from plsc_mae.analysis.knn import nearest_neighbors
from plsc_mae.analysis.thumbnails import MapMethod, Neighbor, Pixels, map_picture, neighbor_picture, project
from plsc_mae.commands.pictures import save_png, spread
from plsc_mae.data.display import RGB_DISPLAY, Display
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.seeding import sample_rng
from plsc_mae.data.tiles import center_tile
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.errors import DataError
from plsc_mae.files import MARK

NEIGHBORS = 10
NEIGHBOR_SIDE, MAP_THUMBNAIL = 96, 48  # pixels
MAX_DIGITS = 6  # decimals of a cosine in float32


class ImageFeatures(NamedTuple):
    """Features of images, together with the images to draw."""

    features: npt.NDArray[Any]  # [n, D]
    images: ImageList  # list that contains the images
    numbers: npt.NDArray[np.int64]  # indices [n] of the images in the list
    pixel_format: PixelFormat = RGB
    display: Display = RGB_DISPLAY  # the channels to show

    def pixels(self, row: int, side: int) -> Pixels:
        """Return the center of the image of a row as uint8 [side, side, 3]; for the errors see `open_image`."""
        number = int(self.numbers[row])
        view = ResizeCenterCrop((side, side), side, "bicubic")
        image = center_tile(self.images.open(number, "pil", self.pixel_format), self.pixel_format.tile)
        return self.display.draw_pixels(view(image, sample_rng(0, 0, number))["image"])

    def label(self, row: int) -> int:
        """Return the class number of the image of a row; -1 if it has no class."""
        return int(self.images.labels[self.numbers[row]])

    def captions(self, rows: Sequence[int]) -> dict[int, str]:
        """Return, by row, the class name of the image, or its file name if it has no class, in drawable characters."""
        names, numbers = [], []
        for row in rows:
            label, number = self.label(row), int(self.numbers[row])
            names.append(self.images.classes[label] if label >= 0 else Path(self.images.name(number)).name)
            numbers.append(label if label >= 0 else number)
        return dict(zip(rows, drawable_names(names, numbers), strict=True))


def save_neighbors(path: Path, command: str, queries: ImageFeatures, bank: ImageFeatures, count: int) -> Path:
    """Write a picture of up to `count` queries with up to NEIGHBORS nearest neighbors in the bank; return its path.

    If `queries` is `bank`, no image is a neighbor of itself. Both must number their classes alike.

    Raises:
        DataError: an image cannot be read, the picture cannot be written, a feature is not finite, or the bank has no
            neighbors.
        ConfigError: a package that reads the images is not installed.
    """
    chosen = spread(len(queries.numbers), count)
    own = queries is bank
    k = min(NEIGHBORS, len(bank.numbers) - own)
    if k < 1:
        raise DataError("--num_pictures needs two or more images to compare")
    similarities, neighbors = nearest_neighbors(bank.features, queries.features[chosen], k + own)
    found = [
        [(i, s) for i, s in zip(*pair, strict=True) if not (own and i == query)][:k]
        for query, *pair in zip(chosen, neighbors.tolist(), similarities.tolist(), strict=True)
    ]
    digits = distinct_digits([[similarity for _, similarity in row] for row in found])
    query_captions = queries.captions(chosen)
    captions = bank.captions([index for row in found for index, _ in row])
    rows = []
    for query, row in zip(chosen, found, strict=True):
        label = queries.label(query)
        cells = [Neighbor(queries.pixels(query, NEIGHBOR_SIDE), query_captions[query])]
        for index, similarity in row:
            same = None if label < 0 else bank.label(index) == label
            caption = f"{captions[index]}\n{similarity:.{digits}f}"
            cells.append(Neighbor(bank.pixels(index, NEIGHBOR_SIDE), caption, same))
        rows.append(cells)
    return save_png(neighbor_picture(rows), path, f"{MARK} {command}")


def distinct_digits(rows: Sequence[Sequence[float]]) -> int:
    """Return the fewest decimals, 3 to MAX_DIGITS, that keep unequal cosines of a row distinct, also from 1."""
    values = [{1.0, *(round(value, MAX_DIGITS) for value in row)} for row in rows]
    for digits in range(3, MAX_DIGITS):
        if all(len({f"{value:.{digits}f}" for value in row}) == len(row) for row in values):
            return digits
    return MAX_DIGITS


def save_maps(
    path: Path, command: str, found: ImageFeatures, methods: Sequence[MapMethod], count: int, seed: int
) -> list[Path]:
    """Write a map of at most `count` images for each method, named by `map_path`, and return the paths.

    Raises:
        ConfigError: the package of a method, or one that reads the images, is not installed.
        DataError: there are fewer than three images, an image cannot be read, a feature is not finite, or a picture
            cannot be written.
    """
    chosen = spread(len(found.numbers), count)
    if len(chosen) < 3:
        raise DataError(f"--map needs three or more images, got {len(chosen)}")
    pixels = [found.pixels(row, MAP_THUMBNAIL) for row in chosen]
    labels = found.images.labels[found.numbers[chosen]]
    written = []
    for method in dict.fromkeys(methods):
        places = project(found.features[chosen], method, seed)
        picture = map_picture(places, pixels, labels, found.images.classes)
        written.append(save_png(picture, map_path(path, method), f"{MARK} {command}"))
    return written


def neighbors_path(path: Path) -> Path:
    """Return the path of the picture of neighbors for the file of features `path`, in the same folder."""
    return path.with_name(f"{path.stem}-neighbors.png")


def map_path(path: Path, method: MapMethod) -> Path:
    """Return the path of the map by `method` for the file of features `path`, in the same folder."""
    return path.with_name(f"{path.stem}-{method}.png")
