"""Drawn data sets of labeled images, so that commands can be tried without a download.

Layout: ROOT/{train,val}/<class>/<index>.jpg with ten classes; for the layout with masks see `make_demo_data`. There are
two kinds of pictures: `shapes`, on which learned features beat raw pixels and random weights, and `objects`, whose
reconstructions can be judged at a glance.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from plsc_mae.data.demo_objects import OBJECTS, cover_object, draw_object
from plsc_mae.data.demo_shapes import SHAPES, cover_shapes, draw_shapes
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.files import atomic_replacement

DRAWING_VERSION = 3  # increase it when the same parameters would draw different pictures
SPLITS = ("train", "val")
MIN_IMAGE_SIZE = 16  # smaller shapes are indistinguishable
BACKGROUND = "background"  # class 0 of the masks; the classes of the pictures follow
MASK_CLASSES = "classes.txt"
FINISHED = "demo.json"
UNFINISHED = "demo.json.partial"  # written first, so that an interrupted call can be recognized and completed


class Drawing(NamedTuple):
    """Kind of pictures: its classes, and functions of (class, image side, random generator)."""

    classes: tuple[str, ...]  # names of the classes
    draw: Callable[[str, int, np.random.Generator], Image.Image]  # returns the picture
    # returns how much of each pixel the foreground covers, [S, S] in 0..1
    cover: Callable[[str, int, np.random.Generator], NDArray[np.float64]]


KINDS = {
    "shapes": Drawing(tuple(SHAPES), draw_shapes, cover_shapes),
    "objects": Drawing(tuple(OBJECTS), draw_object, cover_object),
}
DEFAULT_KIND = "shapes"
CLASSES = KINDS[DEFAULT_KIND].classes


@dataclass(frozen=True, kw_only=True)
class DemoParameters:
    """Parameters of a demo data set; saved in its demo.json.

    Raises:
        ConfigError: a parameter is below its minimum, or the kind is unknown.
    """

    image_size: int = 64
    train_per_class: int = 400
    val_per_class: int = 80
    seed: int = 0
    drawing_version: int = DRAWING_VERSION
    masks: bool = False
    kind: str = DEFAULT_KIND

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return KINDS[self.kind].classes

    def marker(self) -> dict[str, int | str]:
        """Return the content of demo.json; "masks" and "kind" are left out at their defaults, as in older data sets."""
        defaults = {"masks": False, "kind": DEFAULT_KIND}
        return {name: value for name, value in asdict(self).items() if defaults.get(name) != value}

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind of the demo data must be one of {', '.join(KINDS)}, got {self.kind}")
        minima = {"image_size": MIN_IMAGE_SIZE, "train_per_class": 1, "val_per_class": 1, "seed": 0}
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"{name} of the demo data must be at least {minimum}, got {getattr(self, name)}")


@dataclass(frozen=True)
class DemoSummary:
    """Location and parameters of a demo data set."""

    root: Path  # folder of the data set
    parameters: DemoParameters  # parameters it was drawn with
    created: bool  # False if a complete data set was already there

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.parameters.classes) * self.parameters.train_per_class

    @property
    def num_val(self) -> int:
        """Number of validation images."""
        return len(self.parameters.classes) * self.parameters.val_per_class


def make_demo_data(
    root: str | os.PathLike[str],
    *,
    image_size: int = 64,
    train_per_class: int = 400,
    val_per_class: int = 80,
    seed: int = 0,
    masks: bool = False,
    kind: str = DEFAULT_KIND,
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
        masks: draw the masks too; the pictures are the same as without masks.
        kind: one of `KINDS`.
        progress: show a progress bar.

    Raises:
        ConfigError: a parameter is too small, or the kind is unknown.
        DataError: `root` is a file, contains other files, other demo data or a damaged demo.json, or cannot be read or
            written.
    """
    parameters = DemoParameters(
        image_size=image_size,
        train_per_class=train_per_class,
        val_per_class=val_per_class,
        seed=seed,
        masks=masks,
        kind=kind,
    )
    root = Path(root)
    try:
        created = not _is_finished(root, parameters)
        if created:
            _draw_all(root, parameters, progress)
    except OSError as error:
        raise DataError(f"cannot write the demo data to {root}: {error}; choose a writable folder") from error
    return DemoSummary(root, parameters, created)


def draw_demo_image(
    split: str, class_name: str, index: int, *, image_size: int = 64, seed: int = 0, kind: str = DEFAULT_KIND
) -> Image.Image:
    """Draw one picture of the demo data set; the pixels depend on the arguments alone.

    Args:
        split: "train" or "val".
        class_name: one of the classes of the kind.
        index: zero-based index of the picture within its split and class.
        image_size: side in pixels.
        seed: random seed of the data set.
        kind: one of `KINDS`.

    Returns:
        RGB image of `image_size` x `image_size` pixels.

    Raises:
        ValueError: unknown split or class.
        KeyError: unknown kind.
    """
    return KINDS[kind].draw(class_name, image_size, _picture_rng(split, class_name, index, seed, kind))


def draw_demo_mask(
    split: str, class_name: str, index: int, *, image_size: int = 64, seed: int = 0, kind: str = DEFAULT_KIND
) -> Image.Image:
    """Draw the mask of the picture that `draw_demo_image` draws with the same arguments.

    Returns:
        Gray image of class indices: 0 for the background, 1 + the class number for pixels of which the foreground
        covers at least half.

    Raises:
        ValueError: unknown split or class.
        KeyError: unknown kind.
    """
    covered = KINDS[kind].cover(class_name, image_size, _picture_rng(split, class_name, index, seed, kind)) >= 0.5
    return Image.fromarray(np.where(covered, 1 + KINDS[kind].classes.index(class_name), 0).astype(np.uint8))


def _picture_rng(split: str, class_name: str, index: int, seed: int, kind: str) -> np.random.Generator:
    return np.random.default_rng((SPLITS.index(split), KINDS[kind].classes.index(class_name), index, seed))


def _is_finished(root: Path, parameters: DemoParameters) -> bool:
    """Return True if `root` holds this data set, False if `root` is missing or empty or holds an unfinished part of it.

    DataError is raised for any other `root`.
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
    """Draw every missing picture and mask; each gets its final name only when it is complete."""
    images = root / "images" if parameters.masks else root
    root.mkdir(parents=True, exist_ok=True)
    (root / UNFINISHED).write_text(json.dumps(parameters.marker()))
    options: dict[str, Any] = {"image_size": parameters.image_size, "seed": parameters.seed, "kind": parameters.kind}
    for split, class_name, index in tqdm(list(_pictures(parameters)), "drawing", unit="image", disable=not progress):
        path = images / split / class_name / f"{index:05d}.jpg"
        if not path.exists():
            image = draw_demo_image(split, class_name, index, **options)
            with atomic_replacement(path) as temporary:
                image.save(temporary, format="JPEG", quality=95, subsampling=0)
        mask = root / "masks" / split / class_name / f"{index:05d}.png"
        if parameters.masks and not mask.exists():
            with atomic_replacement(mask) as temporary:
                draw_demo_mask(split, class_name, index, **options).save(temporary, format="PNG")
    if parameters.masks:
        (root / MASK_CLASSES).write_text("\n".join((BACKGROUND, *parameters.classes)) + "\n")
    (root / UNFINISHED).replace(root / FINISHED)


def _pictures(parameters: DemoParameters) -> Iterator[tuple[str, str, int]]:
    """Yield (split, class, index) of every picture."""
    for split, count in zip(SPLITS, (parameters.train_per_class, parameters.val_per_class), strict=True):
        for class_name in parameters.classes:
            for index in range(count):
                yield split, class_name, index
