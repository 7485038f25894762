"""Pictures of features: images with their nearest neighbors, and maps with thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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


class ImageFeatures(NamedTuple):
    """Features of images that can be drawn.

    Attributes:
        features: [n, D].
        images: list that has the images.
        numbers: indices [n] of the images in the list.
        pixel_format: format of the pixels.
        display: the channels to show.
    """

    features: npt.NDArray[Any]
    images: ImageList
    numbers: npt.NDArray[np.int64]
    pixel_format: PixelFormat = RGB
    display: Display = RGB_DISPLAY

    def pixels(self, row: int, side: int) -> Pixels:
        """Return the center of the image of a row as uint8 [side, side, 3].

        Raises:
            DataError: the image cannot be read.
        """
        number = int(self.numbers[row])
        view = ResizeCenterCrop((side, side), side, "bicubic")
        image = center_tile(self.images.open(number, "pil", self.pixel_format), self.pixel_format.tile)
        return self.display.draw_pixels(view(image, sample_rng(0, 0, number))["image"])

    def label(self, row: int) -> int:
        """Return the class number of a row, -1 without one."""
        return int(self.images.labels[self.numbers[row]])

    def caption(self, row: int) -> str:
        """Return the class of a row or, without classes, the name of its image."""
        label = self.label(row)
        return self.images.classes[label] if label >= 0 else Path(self.images.name(int(self.numbers[row]))).name


def save_neighbors(path: Path, command: str, queries: ImageFeatures, bank: ImageFeatures, count: int) -> Path:
    """Write a picture of `count` queries, evenly spaced, with their ten nearest neighbors in the bank.

    If both are the same object, no image is a neighbor of itself. The classes of both are numbered alike.

    Raises:
        DataError: a picture cannot be read or written, or the bank has no neighbors.
    """
    chosen = spread(len(queries.numbers), count)
    own = queries is bank
    k = min(NEIGHBORS, len(bank.numbers) - own)
    if k < 1:
        raise DataError("--num_pictures needs two or more images to compare")
    similarities, neighbors = nearest_neighbors(bank.features, queries.features[chosen], k + own)
    rows = []
    for row, query in enumerate(chosen):
        label = queries.label(query)
        cells = [Neighbor(queries.pixels(query, NEIGHBOR_SIDE), queries.caption(query))]
        found = [(i, s) for i, s in zip(neighbors[row].tolist(), similarities[row].tolist(), strict=True)]
        for index, similarity in [(i, s) for i, s in found if not (own and i == query)][:k]:
            same = None if label < 0 else bank.label(index) == label
            caption = f"{bank.caption(index)}\n{similarity:.3f}"
            cells.append(Neighbor(bank.pixels(index, NEIGHBOR_SIDE), caption, same))
        rows.append(cells)
    return save_png(neighbor_picture(rows), path, f"{MARK} {command}")


def save_maps(
    path: Path, command: str, found: ImageFeatures, methods: Sequence[MapMethod], count: int, seed: int
) -> list[Path]:
    """Write a map of at most `count` images, evenly spaced, for each method, to `path` with the method's name in it.

    Raises:
        ConfigError: the package of a method is not installed.
        DataError: there are fewer than three images, or a picture cannot be read or written.
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
    """Return the name of the picture of neighbors beside a file of features."""
    return path.with_name(f"{path.stem}-neighbors.png")


def map_path(path: Path, method: MapMethod) -> Path:
    """Return the name of a map beside a file of features."""
    return path.with_name(f"{path.stem}-{method}.png")
