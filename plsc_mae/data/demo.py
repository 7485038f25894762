"""Synthetic data set of labeled images, so that every command can be tried without a download.

Layout: ROOT/{train,val}/<class>/<index>.jpg, with one class for each of ten geometric shapes. A picture shows up to
four copies of one shape at random positions, with the same size and rotation, light on dark or dark on light, behind a
mosaic of random colors. Positions and colors are independent of the class, so raw pixels and random features classify
poorly. A masked part of one copy can be predicted from the other copies, but a masked part of the mosaic cannot be
predicted at all. So a network that learns to reconstruct masked patches learns the shapes.
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
from plsc_mae.files import atomic_replacement

DRAWING_VERSION = 3  # increase it when the same parameters would draw different pictures
SPLITS = ("train", "val")
SUPERSAMPLING = 4  # shapes are drawn at 4 times the size and downscaled, for smooth edges
RADIUS_RANGE = (0.156, 0.234)  # of a shape's enclosing circle, as a fraction of the image side
MAX_COPIES = 4  # fewer are drawn if they do not fit
MAX_ATTEMPTS = 100  # random positions that are tried for the copies
SPACING = 2.05  # minimum distance between the centers of two copies, in radii
DARK_AND_LIGHT = (70.0, 190.0)  # brightness (0..255) of shape and background, in random order
TILE_SIDE = 5 / 64  # of the mosaic, as a fraction of the image side
COLOR_RANGE = 130.0  # tile colors are uniform in -130..130 of 255, before their brightness is subtracted
LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in brightness (ITU-R BT.601)
NOISE_STD = 1.5  # of 255
MIN_IMAGE_SIZE = 16  # smaller shapes are indistinguishable
BACKGROUND = "background"  # class 0 of the masks; the classes of the shapes follow
MASK_CLASSES = "classes.txt"
FINISHED = "demo.json"
UNFINISHED = "demo.json.partial"  # written first, so that an interrupted call can be recognized and completed


class Layer(NamedTuple):
    """Polygon [N, 2] within the unit disc, added to the shape or, as a hole, cut out of it."""

    points: NDArray[np.float64]
    hole: bool = False


def _disc(radius: float = 1.0, center_x: float = 0.0) -> NDArray[np.float64]:
    return np.add(_spokes([radius] * 96), (center_x, 0.0), dtype=np.float64)


def _spokes(radii: list[float]) -> NDArray[np.float64]:
    """Return one corner per radius, at equal angles around the origin, the first one at the top."""
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    corners: NDArray[np.float64] = np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.array(radii)[:, None]
    return corners


def _bar(top: float, bottom: float, half_width: float) -> NDArray[np.float64]:
    return np.array([(-half_width, top), (half_width, top), (half_width, bottom), (-half_width, bottom)])


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0.0, 2 * np.pi, 96, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 17.0  # the curve is 29 high; 2.5 centers it


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
    """Parameters that determine the pictures of a demo data set; saved in its demo.json.

    Raises:
        ConfigError: a parameter is below its minimum.
    """

    image_size: int = 64
    train_per_class: int = 400
    val_per_class: int = 80
    seed: int = 0
    drawing_version: int = DRAWING_VERSION
    masks: bool = False

    def marker(self) -> dict[str, int]:
        """Return the content of demo.json; it has "masks" only with masks, which older data sets did not have."""
        values: dict[str, int] = asdict(self)
        return values if self.masks else {name: value for name, value in values.items() if name != "masks"}

    def __post_init__(self) -> None:
        minima = {"image_size": MIN_IMAGE_SIZE, "train_per_class": 1, "val_per_class": 1, "seed": 0}
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"{name} of the demo data must be at least {minimum}, got {getattr(self, name)}")


@dataclass(frozen=True)
class DemoSummary:
    """Location and parameters of a demo data set.

    Attributes:
        root: folder of the data set.
        parameters: parameters it was drawn with.
        created: False if a complete data set was already there.
    """

    root: Path
    parameters: DemoParameters
    created: bool

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
    masks: bool = False,
    progress: bool = False,
) -> DemoSummary:
    """Draw the demo data set into a new or empty folder, or complete one after an interruption.

    ROOT/demo.json is written last. If it exists with the same parameters, the function draws nothing.

    Args:
        root: folder for train/<class>/*.jpg and val/<class>/*.jpg; with masks for images/train/<class>/*.jpg,
            masks/train/<class>/*.png, the same for val, and classes.txt.
        image_size: side of the square images in pixels, at least 16.
        train_per_class: training images per class; there are ten classes.
        val_per_class: validation images per class.
        seed: random seed of the pictures.
        masks: draw the masks of the shapes too; the pictures are the same as without masks.
        progress: show a progress bar.

    Raises:
        ConfigError: a parameter is too small.
        DataError: `root` is a file, contains other files, other demo data or a damaged demo.json, or cannot be written.
    """
    parameters = DemoParameters(
        image_size=image_size, train_per_class=train_per_class, val_per_class=val_per_class, seed=seed, masks=masks
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
    """Draw one picture of the demo data set; the pixels depend on the arguments alone.

    Args:
        split: "train" or "val".
        class_name: one of `CLASSES`.
        index: zero-based index of the picture within its split and class.
        image_size: side in pixels.
        seed: random seed of the data set.

    Returns:
        RGB image of `image_size` x `image_size` pixels.

    Raises:
        ValueError: unknown split or class.
    """
    rng = _picture_rng(split, class_name, index, seed)
    shape, background = _draw_levels(rng)
    coverage = _draw_coverage(SHAPES[class_name], image_size, rng)[..., None]  # [S, S, 1]
    pixels = coverage * shape + (1.0 - coverage) * background + _draw_mosaic(image_size, rng)  # [S, S, 3]
    pixels += rng.normal(0.0, NOISE_STD, pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def draw_demo_mask(split: str, class_name: str, index: int, *, image_size: int = 64, seed: int = 0) -> Image.Image:
    """Draw the mask of the picture that `draw_demo_image` draws with the same arguments.

    Returns:
        Gray image of class indices: 0 for the background, 1 + the class number for pixels of which the shape
        covers at least half.

    Raises:
        ValueError: unknown split or class.
    """
    rng = _picture_rng(split, class_name, index, seed)
    _draw_levels(rng)  # they come before the shape
    coverage = _draw_coverage(SHAPES[class_name], image_size, rng)
    return Image.fromarray(np.where(coverage >= 0.5, 1 + CLASSES.index(class_name), 0).astype(np.uint8))


def _picture_rng(split: str, class_name: str, index: int, seed: int) -> np.random.Generator:
    return np.random.default_rng((SPLITS.index(split), CLASSES.index(class_name), index, seed))


def _draw_levels(rng: np.random.Generator) -> tuple[float, ...]:
    """Draw the brightness of the shape and of the background."""
    return DARK_AND_LIGHT[:: rng.choice((-1, 1))]


def _is_finished(root: Path, parameters: DemoParameters) -> bool:
    """Return True if `root` holds exactly this data set, False if it is missing, empty or unfinished.

    Raises:
        DataError: `root` is a file, or contains other files, other demo data or a damaged demo.json.
    """
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file; choose a new or empty folder for the demo data")
    for marker in (root / FINISHED, root / UNFINISHED):
        if marker.is_file():
            if _read_marker(marker) != parameters.marker():
                raise DataError(
                    f"{root} contains demo data with other parameters ({marker.read_text().strip()}); "
                    "use the same parameters, remove the folder, or choose another one"
                )
            return marker.name == FINISHED
    if root.is_dir() and any(root.iterdir()):
        raise DataError(f"{root} is not empty and contains no demo data; choose a new or empty folder")
    return False


def _read_marker(marker: Path) -> object:
    try:
        return json.loads(marker.read_text())
    except ValueError as error:
        raise DataError(f"{marker} is damaged ({error}); remove its folder and draw the demo data again") from error


def _draw_all(root: Path, parameters: DemoParameters, progress: bool) -> None:
    """Draw every missing picture; a file gets its final name only when it is complete."""
    images = root / "images" if parameters.masks else root
    root.mkdir(parents=True, exist_ok=True)
    (root / UNFINISHED).write_text(json.dumps(parameters.marker()))
    size, seed = parameters.image_size, parameters.seed
    for split, class_name, index in tqdm(list(_pictures(parameters)), "drawing", unit="image", disable=not progress):
        path = images / split / class_name / f"{index:05d}.jpg"
        if not path.exists():
            image = draw_demo_image(split, class_name, index, image_size=size, seed=seed)
            with atomic_replacement(path) as temporary:
                image.save(temporary, format="JPEG", quality=95, subsampling=0)
        mask = root / "masks" / split / class_name / f"{index:05d}.png"
        if parameters.masks and not mask.exists():
            with atomic_replacement(mask) as temporary:
                draw_demo_mask(split, class_name, index, image_size=size, seed=seed).save(temporary, format="PNG")
    if parameters.masks:
        (root / MASK_CLASSES).write_text("\n".join((BACKGROUND, *CLASSES)) + "\n")
    (root / UNFINISHED).replace(root / FINISHED)


def _pictures(parameters: DemoParameters) -> Iterator[tuple[str, str, int]]:
    """Yield (split, class, index) of every picture."""
    for split, count in zip(SPLITS, (parameters.train_per_class, parameters.val_per_class), strict=True):
        for class_name in CLASSES:
            for index in range(count):
                yield split, class_name, index


def _draw_coverage(shape: tuple[Layer, ...], image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw copies of the shape with a random size, angle and positions; return each pixel's coverage [S, S] in 0..1."""
    radius = rng.uniform(*RADIUS_RANGE)
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
    """Draw up to `MAX_COPIES` centers (x, y) of copies that do not touch, as fractions of the image side, in [0, 1)."""
    centers: list[NDArray[np.float64]] = []
    for center in rng.uniform(0.0, 1.0, (MAX_ATTEMPTS, 2)):
        if len(centers) < MAX_COPIES and all(np.hypot(*(center - other)) > SPACING * radius for other in centers):
            centers.append(center)
    return centers


def _draw_mosaic(image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a mosaic [S, S, 3] of random colors with zero brightness; the offset of its grid is random."""
    tile = max(1, round(TILE_SIDE * image_size))
    tiles = rng.uniform(-COLOR_RANGE, COLOR_RANGE, (image_size // tile + 2,) * 2 + (3,))
    tiles -= (tiles @ LUMA)[..., None]
    top, left = rng.integers(0, tile, 2)
    return tiles.repeat(tile, axis=0).repeat(tile, axis=1)[top : top + image_size, left : left + image_size]
