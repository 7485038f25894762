"""A small labeled image folder drawn by the program, so that everything can be tried without a download.

ROOT/{train,val}/<class>/<index>.jpg, ten geometric shapes. A picture shows up to four copies of one shape, all of one
size and turned alike, at any places, light on dark or dark on light, behind a mosaic of random colors. Places and
colors say nothing about the class, so raw pixels and random features say little. What is hidden of one copy can be
told from the others, and what is hidden of the mosaic from nothing: a network that learns to redraw hidden patches
learns the shapes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from plsc_mae.errors import ConfigError, DataError

DRAWING_VERSION = 3  # raise it when the same parameters would draw other pictures
SPLITS = ("train", "val")
SUPERSAMPLING = 4  # shapes are drawn this many times larger and shrunk: smooth edges
RADIUS = (0.156, 0.234)  # of a shape's enclosing circle, as a fraction of the image side
COPIES = 4  # at most; fewer where there is no room
PLACES = 100  # places that are tried for them
SPACING = 2.05  # least distance of two copies' centers, in radii
DARK_AND_LIGHT = (70.0, 190.0)  # brightness of shape and ground, of 255
TILE = 5 / 64  # side of the mosaic's tiles, as a fraction of the image side
COLOR = 130.0  # half range of a tile's red, green and blue before their brightness is taken off, of 255
LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in brightness (ITU-R BT.601)
NOISE_STD = 1.5  # grain, of 255
MIN_IMAGE_SIZE = 16  # smaller shapes cannot be told apart
FINISHED, UNFINISHED = "demo.json", "demo.json.partial"  # the second marks a folder as ours from the start


class Layer(NamedTuple):
    """A polygon [N, 2] within the unit disc; it is added to the shape or, as a hole, cut out of it."""

    points: NDArray[np.float64]
    hole: bool = False


def _disc(radius: float = 1.0, center_x: float = 0.0) -> NDArray[np.float64]:
    return np.add(_spokes([radius] * 96), (center_x, 0.0), dtype=np.float64)


def _spokes(radii: list[float]) -> NDArray[np.float64]:
    """Place one corner per radius at equal angles around the origin, the first one up."""
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    corners: NDArray[np.float64] = np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.array(radii)[:, None]
    return corners


def _bar(top: float, bottom: float, half_width: float) -> NDArray[np.float64]:
    return np.array([(-half_width, top), (half_width, top), (half_width, bottom), (-half_width, bottom)])


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0.0, 2 * np.pi, 96, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 17.0  # 2.5: centers its 29 units of height


_ARROW = np.array([(0, -1), (0.75, -0.1), (0.28, -0.1), (0.28, 0.95), (-0.28, 0.95), (-0.28, -0.1), (-0.75, -0.1)])

SHAPES: dict[str, tuple[Layer, ...]] = {
    "arrow": (Layer(_ARROW),),
    "circle": (Layer(_disc()),),
    "crescent": (Layer(_disc()), Layer(_disc(0.8, center_x=0.45), hole=True)),
    "cross": (Layer(_bar(-0.95, 0.95, 0.28)), Layer(_bar(-0.28, 0.28, 0.95))),
    "heart": (Layer(_heart()),),
    "ring": (Layer(_disc()), Layer(_disc(0.58), hole=True)),
    "square": (Layer(_spokes([1.0] * 4)),),
    "star": (Layer(_spokes([1.0, 0.42] * 5)),),
    "stripes": tuple(Layer(_bar(y - 0.16, y + 0.16, 0.75)) for y in (-0.6, 0.0, 0.6)),
    "triangle": (Layer(_spokes([1.0] * 3)),),
}
CLASSES = tuple(SHAPES)


@dataclass(frozen=True, kw_only=True)
class DemoParameters:
    """All that decides which pictures a demo data set holds; kept in its demo.json."""

    image_size: int = 64
    train_per_class: int = 400
    val_per_class: int = 80
    seed: int = 0
    drawing_version: int = DRAWING_VERSION

    def __post_init__(self) -> None:
        lowest = {"image_size": MIN_IMAGE_SIZE, "train_per_class": 1, "val_per_class": 1, "seed": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} of the demo data must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class DemoSummary:
    """What `make_demo_data` left on the disk."""

    root: Path
    parameters: DemoParameters
    created: bool  # False: it was already there

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(CLASSES) * self.parameters.train_per_class

    @property
    def num_val(self) -> int:
        """Number of validation images."""
        return len(CLASSES) * self.parameters.val_per_class


def make_demo_data(
    root: str | os.PathLike[str],
    *,
    image_size: int = 64,
    train_per_class: int = 400,
    val_per_class: int = 80,
    seed: int = 0,
    progress: bool = False,
) -> DemoSummary:
    """Draw the demo data set into a new or empty folder; finish it if a former run was interrupted.

    ROOT/demo.json is written last. Where it is already present with the same parameters, nothing is done.

    Args:
        root: folder to hold train/<class>/*.jpg and val/<class>/*.jpg.
        image_size: side of the square images in pixels, at least 16.
        train_per_class: images per class below train/; there are ten classes.
        val_per_class: images per class below val/.
        seed: another seed draws other images.
        progress: show a progress bar.

    Returns:
        Where the data set lies, its parameters, and whether this call drew it.

    Raises:
        ConfigError: a parameter is too small.
        DataError: the folder holds something else, or cannot be written.
    """
    parameters = DemoParameters(
        image_size=image_size, train_per_class=train_per_class, val_per_class=val_per_class, seed=seed
    )
    root = Path(root)
    try:
        created = not _is_finished(root, parameters)
        if created:
            _draw_all(root, parameters, progress)
    except OSError as error:
        raise DataError(f"cannot write the demo data to {root}: {error}; choose a writable folder") from error
    return DemoSummary(root, parameters, created)


def draw_demo_image(split: str, class_name: str, index: int, *, image_size: int = 64, seed: int = 0) -> Image.Image:
    """Draw one picture of the demo data set; the same arguments always give the same pixels.

    Args:
        split: "train" or "val".
        class_name: one of `CLASSES`.
        index: number of the picture within its split and class, from 0.
        image_size: side in pixels.
        seed: seed of the data set.

    Returns:
        An RGB image of that side.

    Raises:
        ValueError: unknown split or class.
    """
    rng = np.random.default_rng((SPLITS.index(split), CLASSES.index(class_name), index, seed))
    shape, ground = DARK_AND_LIGHT[:: rng.choice((-1, 1))]
    coverage = _draw_coverage(SHAPES[class_name], image_size, rng)[..., None]  # [S, S, 1]
    pixels = coverage * shape + (1.0 - coverage) * ground + _draw_mosaic(image_size, rng)  # [S, S, 3]
    pixels += rng.normal(0.0, NOISE_STD, pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _is_finished(root: Path, parameters: DemoParameters) -> bool:
    """Tell whether `root` already holds exactly this data set; refuse a folder that holds anything else."""
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file; name a new or empty folder for the demo data")
    for marker in (root / FINISHED, root / UNFINISHED):
        if marker.is_file():
            if _read_marker(marker) != asdict(parameters):
                raise DataError(
                    f"{root} holds demo data made with other parameters ({marker.read_text().strip()}); "
                    "repeat those, remove the folder, or choose another one"
                )
            return marker.name == FINISHED
    if root.is_dir() and any(root.iterdir()):
        raise DataError(f"{root} is not empty and holds no demo data; name a new or empty folder")
    return False


def _read_marker(marker: Path) -> object:
    try:
        return json.loads(marker.read_text())
    except ValueError as error:
        raise DataError(f"{marker} is damaged ({error}); remove the folder and draw the demo data again") from error


def _draw_all(root: Path, parameters: DemoParameters, progress: bool) -> None:
    """Draw every picture that is not there yet; a picture appears under its name only when it is complete."""
    for split in SPLITS:
        for class_name in CLASSES:
            (root / split / class_name).mkdir(parents=True, exist_ok=True)
    (root / UNFINISHED).write_text(json.dumps(asdict(parameters)))
    for split, class_name, index in tqdm(list(_pictures(parameters)), "drawing", unit="image", disable=not progress):
        path = root / split / class_name / f"{index:05d}.jpg"
        if not path.exists():
            image = draw_demo_image(split, class_name, index, image_size=parameters.image_size, seed=parameters.seed)
            partial = path.with_suffix(".partial")
            image.save(partial, format="JPEG", quality=95, subsampling=0)
            partial.replace(path)
    (root / UNFINISHED).replace(root / FINISHED)


def _pictures(parameters: DemoParameters) -> Iterator[tuple[str, str, int]]:
    """List (split, class, index) of all pictures."""
    for split, count in zip(SPLITS, (parameters.train_per_class, parameters.val_per_class), strict=True):
        for class_name in CLASSES:
            for index in range(count):
                yield split, class_name, index


def _draw_coverage(shape: tuple[Layer, ...], image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw copies of the shape, random in size, places and angle; return what they cover of each pixel [S, S], 0..1."""
    radius = rng.uniform(*RADIUS)
    angle = rng.uniform(0.0, 2 * np.pi)
    rotation = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    canvas = Image.new("L", (image_size * SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    for center in _draw_centers(radius, rng):
        for points, hole in shape:
            corners = (center + radius * points @ rotation) * canvas.width
            pen.polygon([tuple(corner) for corner in corners.tolist()], fill=0 if hole else 255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float64) / 255.0


def _draw_centers(radius: float, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Draw places for copies that do not touch, anywhere in the picture [0, 1] x [0, 1]; the borders may cut them."""
    centers: list[NDArray[np.float64]] = []
    for place in rng.uniform(0.0, 1.0, (PLACES, 2)):
        if len(centers) < COPIES and all(np.hypot(*(place - other)) > SPACING * radius for other in centers):
            centers.append(place)
    return centers


def _draw_mosaic(image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw tiles of random colors without brightness [S, S, 3]; the grid of tiles begins anywhere."""
    tile = max(1, round(TILE * image_size))
    tiles = rng.uniform(-COLOR, COLOR, (image_size // tile + 2,) * 2 + (3,))
    tiles -= (tiles @ LUMA)[..., None]
    top, left = rng.integers(0, tile, 2)
    return tiles.repeat(tile, axis=0).repeat(tile, axis=1)[top : top + image_size, left : left + image_size]
