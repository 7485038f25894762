"""Input images and output files of the commands that draw panels."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from plsc_mae.data.imagefolder import log_left_out
from plsc_mae.data.listing import ImageList, PathTable, list_images
from plsc_mae.errors import DataError
from plsc_mae.file_kinds import REMEDIES, UNKNOWN, read_head, recognize

SHEET_ROWS = 10  # panels in the sheet

logger = logging.getLogger(__name__)


def find_pictures(img_path: str) -> ImageList:
    """List the images of a folder, or the single image that `img_path` names, without classes.

    Of a folder with splits only val/ is used. The log counts files that are left out.

    Raises:
        DataError: there are no images, the file is no image, or the folder has two readings.
    """
    path = Path(img_path)
    if path.is_file():
        _require_picture(path)
        return ImageList(PathTable([path.name]), np.full(1, -1, np.int64), (), str(path.parent))
    if not path.is_dir():
        raise DataError(f"--img_path {path} does not exist; expected an image or a folder of images")
    images = list_images(path, "val", flag="--img_path", labeled=False)
    log_left_out(images, alternative="pass one of them as --img_path")
    return images


def _require_picture(path: Path) -> None:
    """Raise DataError if a file is surely no image; formats without a signature are left to the decoder."""
    try:
        kind = recognize(read_head(path))
    except OSError as error:
        raise DataError(f"cannot read --img_path {path}: {error.strerror}") from None
    if kind is not None and kind.group != "picture" and kind.name != UNKNOWN:
        raise DataError(
            f"--img_path {path} is {kind.name}; expected an image or a folder of images: {REMEDIES[kind.group]}"
        )


def choose_images(images: ImageList, most: int) -> list[int]:
    """Return at most `most` indices of images, evenly spaced, and log how to draw all of them if there are more."""
    if len(images) > most:
        logger.info("drawing %d of %d images, evenly spaced; --max_images %d draws all", most, len(images), len(images))
    return spread(len(images), most)


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
