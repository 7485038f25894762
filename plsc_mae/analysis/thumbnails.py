"""Pictures that show features by thumbnails of their images: nearest neighbors, and two-dimensional maps.

Notation: n images, D width, S side of a thumbnail in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from plsc_mae.analysis.fonts import Lettering, drawable_names
from plsc_mae.analysis.knn import Features, unit_rows
from plsc_mae.analysis.pictures import GAP, LABEL_SIZE, add_legend, distinct_colors
from plsc_mae.errors import ConfigError

MapMethod = Literal["pca", "tsne", "umap"]
Pixels = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]

SAME, OTHER = (27, 120, 55), (178, 24, 43)  # frames of neighbors of the query's class and of other classes
FRAME = 3  # pixels
CAPTION = 2 * (LABEL_SIZE + 2)  # pixels below a thumbnail
MAP_SIDE = 1600
MAX_LEGEND = 40  # classes
COMPONENTS = 50  # principal components as input of t-SNE and UMAP; van der Maaten and Hinton 2008 take 30
_GRAY = (120, 120, 120)


class Neighbor(NamedTuple):
    """An image in a picture of neighbors."""

    pixels: Pixels  # uint8 [S, S, 3]
    caption: str  # at most two lines of text
    # whether the image has the query's class; None for the query itself, and if it has no class
    same_class: bool | None = None


def neighbor_picture(rows: Sequence[Sequence[Neighbor]]) -> Image.Image:
    """Draw one row per query: the query, a gap, and its neighbors from the nearest on."""
    side, lettering = len(rows[0][0].pixels), Lettering(LABEL_SIZE)
    cell, head = side + 2 * FRAME + GAP, LABEL_SIZE + GAP
    height = side + 2 * FRAME + CAPTION + GAP
    columns = max(map(len, rows))
    canvas = Image.new("RGB", (2 * GAP + columns * cell, head + len(rows) * height), "white")
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            x, y = GAP + column * cell + (GAP if column else 0), head + number * height
            if number == 0:
                lettering.draw(draw, (x, GAP // 2), str(column) if column else "query")
            if image.same_class is not None:
                draw.rectangle(
                    (x, y, x + side + 2 * FRAME - 1, y + side + 2 * FRAME - 1), SAME if image.same_class else OTHER
                )
            canvas.paste(Image.fromarray(image.pixels), (x + FRAME, y + FRAME))
            lines = [lettering.fitted(line, side + 2 * FRAME) for line in image.caption.splitlines()]
            lettering.draw(draw, (x, y + side + 2 * FRAME + 1), "\n".join(lines))
    return canvas


def project(features: Features, method: MapMethod, seed: int = 0) -> Doubles:
    """Divide features [n, D], n >= 3, by their lengths, and project them to positions [n, 2] in [0, 1].

    "pca" takes the first two principal components. "tsne" (van der Maaten and Hinton 2008; scikit-learn) and "umap"
    (McInnes et al. 2018; umap-learn) start from the first 50 components. Both axes have the same scale. If all features
    have the same direction within float32's rounding, all positions are 0.

    Raises:
        ConfigError: the package of the method is not installed.
        DataError: see `unit_rows`.
    """
    wide = unit_rows(features).astype(np.float64)
    wide -= wide.mean(axis=0)
    _, lengths, directions = np.linalg.svd(wide, full_matrices=False)
    if lengths[0] <= np.finfo(np.float32).eps * math.sqrt(len(wide)):  # t-SNE of scikit-learn crashes on equal points
        return np.zeros((len(wide), 2))
    if method == "pca":
        places = wide @ directions[:2].T
    else:
        require_package(method)
        reduced = wide @ directions[:COMPONENTS].T
        places = (_tsne if method == "tsne" else _umap)(reduced, seed)
    if places.shape[1] < 2:
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    places = places - places.min(axis=0)
    scaled: Doubles = (places / max(places.max(), 1e-12)).astype(np.float64)
    return scaled


def require_package(method: MapMethod) -> None:
    """Raise ConfigError if the package of a method is not installed."""
    if method == "pca":
        return
    package = {"tsne": "scikit-learn", "umap": "umap-learn"}[method]
    try:
        if method == "tsne":
            import sklearn.manifold  # noqa: F401
        else:
            import umap  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--map {method} needs {package} ({error}); pip install 'plsc_mae[maps]', or take --map pca"
        ) from None


def _tsne(features: Doubles, seed: int) -> Doubles:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    places: Doubles = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    return places


def _umap(features: Doubles, seed: int) -> Doubles:
    from umap import UMAP

    neighbors = min(15, len(features) - 1)
    start = "spectral" if len(features) > 3 else "random"  # the former needs four points
    places: Doubles = UMAP(n_neighbors=neighbors, init=start, random_state=seed, n_jobs=1).fit_transform(features)
    return places


def map_picture(
    places: Doubles, pixels: Sequence[Pixels], labels: npt.NDArray[np.int64], classes: Sequence[str]
) -> Image.Image:
    """Draw each image on a map as its thumbnail, or as a dot if the thumbnail would cover an earlier one.

    Args:
        places: positions [n, 2] in [0, 1]; their extent gives the picture its aspect ratio.
        pixels: n thumbnails, uint8 [S, S, 3].
        labels: class numbers [n], -1 for unlabeled images.
        classes: class names for the legend; dots and frames have the color of their class. Empty without classes.
    """
    side = len(pixels[0])
    margin, reach = side // 2 + FRAME + GAP, side + 2 * FRAME
    colors = distinct_colors(len(classes))
    centers = (margin + places * (MAP_SIDE - 2 * margin)).round().astype(int)
    canvas = Image.new("RGB", tuple((centers.max(axis=0) + margin).tolist()), "white")
    draw = ImageDraw.Draw(canvas)
    drawn: list[int] = []
    for index, (x, y) in enumerate(centers.tolist()):
        color = tuple(colors[labels[index]].tolist()) if labels[index] >= 0 else _GRAY
        if all(np.abs(centers[other] - (x, y)).max() >= reach for other in drawn):
            drawn.append(index)
            corner = (x - side // 2, y - side // 2)
            frame = (corner[0] - FRAME, corner[1] - FRAME, corner[0] + side + FRAME - 1, corner[1] + side + FRAME - 1)
            draw.rectangle(frame, fill=color)
            canvas.paste(Image.fromarray(pixels[index]), corner)
    hidden = set(range(len(centers))) - set(drawn)
    for index in sorted(hidden):
        x, y = centers[index].tolist()
        color = tuple(colors[labels[index]].tolist()) if labels[index] >= 0 else _GRAY
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color, outline="white")
    present = np.unique(labels[labels >= 0]).tolist()
    shown = drawable_names([classes[label] for label in present[:MAX_LEGEND]], present[:MAX_LEGEND])
    entries = {name: colors[label] for name, label in zip(shown, present, strict=False)}
    if len(present) > MAX_LEGEND:
        entries[f"and {len(present) - MAX_LEGEND} more classes"] = np.full(3, 255, np.uint8)
    return add_legend(canvas, entries) if entries else canvas
