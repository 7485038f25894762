"""Synthetic data set of labeled images, so that every command can be tried without a download.

Layout: ROOT/{train,val}/<class>/<index>.jpg, one class for each of ten kinds of objects; `demo_pictures` draws them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from plsc_mae.data.demo_pictures import CLASSES, SPLITS, draw_demo_image, draw_demo_mask
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.files import atomic_replacement

DRAWING_VERSION = 4  # increase it when the same parameters would draw different pictures
MIN_IMAGE_SIZE = 16  # smaller objects are indistinguishable
BACKGROUND = "background"  # class 0 of the masks; the classes of the objects follow
MASK_CLASSES = "classes.txt"
FINISHED = "demo.json"
UNFINISHED = "demo.json.partial"  # written first, so that an interrupted call can be recognized and completed


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
        masks: draw the masks of the objects too; the pictures are the same as without masks.
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
