"""Input images and output files of the commands that draw panels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from plsc_mae.data.imagefolder import ImageList, PathTable, find_images
from plsc_mae.errors import DataError

SHEET_ROWS = 10  # panels in the sheet


def find_pictures(img_path: str) -> ImageList:
    """List the images of a folder, or the single image that `img_path` names.

    Raises:
        DataError: there are no images.
    """
    path = Path(img_path)
    if path.is_file():
        return ImageList(PathTable([path.name]), np.full(1, -1, np.int64), (), str(path.parent))
    if not path.is_dir():
        raise DataError(f"--img_path {path} does not exist; expected an image or a folder of images")
    return find_images(path, "val")


def spread(length: int, most: int) -> list[int]:
    """Return at most `most` indices, spaced evenly over [0, length)."""
    count = min(most, length)
    return [i * length // count for i in range(count)]


def panel_name(images: ImageList, index: int) -> str:
    """Return the file name of an image's panel: the image's path in the list, with "_" for "/", ending in .png."""
    return str(Path(images.paths[index]).with_suffix(".png")).replace("/", "_")


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture and return its path.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
    return path
