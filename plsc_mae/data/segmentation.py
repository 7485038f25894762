"""Images with segmentation masks: lists the pairs, and reads masks of class indices.

Layout: DIR/images/train, DIR/images/val and DIR/masks/train, DIR/masks/val, with subfolders as needed. The mask of
`images/train/a/b.jpg` is `masks/train/a/b.png`. ADE20K's names annotations/, training/ and validation/ are accepted.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from plsc_mae.data.decode import Interpolation, SourceImage, as_data_error, open_image, read_content
from plsc_mae.data.listing import ImageList, PathTable, list_images
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.transforms import Sample
from plsc_mae.errors import DataError
from plsc_mae.names import escape_name
from plsc_mae.wording import counted, span

IMAGES, MASKS = "images", ("masks", "annotations")
SPLITS = {"train": ("train", "training"), "val": ("val", "validation")}
UNLABELED = -1
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B")  # Pillow's modes of one band, without transparency
_GRAY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow stretches gray PNGs of 2 and 4 bits to 0..255


@dataclass(frozen=True)
class MaskedImages:
    """Images and their masks."""

    images: ImageList  # the images, without classes
    masks: tuple[str, ...]  # paths of the masks, in the same order

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, numbers: npt.NDArray[np.int64]) -> MaskedImages:
        """Return the pairs at indices `numbers`, in this order."""
        paths = PathTable(self.images.paths[number] for number in numbers.tolist())
        images = replace(self.images, paths=paths, labels=self.images.labels[numbers])
        return MaskedImages(images, tuple(self.masks[number] for number in numbers.tolist()))


@dataclass(frozen=True)
class ResizeWhole:
    """Transform that resizes the whole image to `size` = (h, w) without cropping; the aspect ratio may change.

    A call returns {"image": pixels [h, w, C]}.
    """

    size: tuple[int, int]
    interpolation: Interpolation

    def __call__(self, image: SourceImage, _rng: np.random.Generator) -> Sample:
        """Resize an image; the generator is unused."""
        return {"image": image.resize(self.size, self.interpolation)}


def find_masked_images(data_path: str, split: str) -> MaskedImages:
    """List the images of `split`, "train" or "val", and their masks.

    Raises:
        DataError: the images cannot be listed, or a folder or a mask is missing.
        ConfigError: see `list_images`.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise DataError(f"--data_path {root} is not a folder; expected one with {_layout(split)}")
    folder = _subfolder(root, (IMAGES,), split)
    masks = _subfolder(root, MASKS, split)
    images = list_images(folder, split, flag="--data_path", labeled=False)
    paths = [_mask_path(masks, os.path.relpath(images.path(i), folder)) for i in range(len(images))]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        others = f" and {counted(len(missing) - 1, 'other mask')}" if missing[1:] else ""
        raise DataError(
            f"{missing[0]}{others} missing: every image of {folder} needs a PNG of class indices with its own "
            f"stem{_beside(missing[0])}; add the masks or remove the images"
        )
    return MaskedImages(images, tuple(paths))


def read_mask(path: str, ignored: Collection[int]) -> npt.NDArray[np.int64]:
    """Read a PNG of class indices [H, W]; a palette's colors are irrelevant. Indices in `ignored` become `UNLABELED`.

    Raises:
        DataError: the file cannot be read, is not a PNG, or has colors or transparency in place of indices.
    """
    with as_data_error(path):
        picture = Image.open(io.BytesIO(read_content(path)))
    if picture.format != "PNG" or picture.mode not in _INDEX_MODES:
        kind = f"a {picture.format} file" if picture.format != "PNG" else f"of mode {picture.mode}, so it has colors"
        raise DataError(
            f"mask {path} is {kind}; expected a PNG whose pixels are class indices (mode L or P); "
            "replace each color by its index"
        )
    step = _GRAY_STEPS.get(str(picture.tile[0][3]), 1)
    with as_data_error(path):
        indices = np.asarray(picture).astype(np.int64) // step
    indices[np.isin(indices, list(ignored))] = UNLABELED
    return indices


def count_pixels(
    data: MaskedImages, ignored: Collection[int], num_classes: int | None, pixel_format: PixelFormat = RGB
) -> npt.NDArray[np.int64]:
    """Check all masks and return the pixel count of each class, int64 [C].

    C is `num_classes`; if that is None, it is the largest counted index + 1, or 1 if no pixel is counted.

    Args:
        data: images and masks.
        ignored: indices that are not counted.
        num_classes: number of classes; None takes it from the masks.
        pixel_format: format in which the images are read.

    Raises:
        DataError: a mask cannot be read, differs in size from its image, or has an index that is not below
            `num_classes`.
        ConfigError: the package that reads an image's format cannot be imported.
    """
    counts = np.zeros(num_classes or 1, np.int64)
    for number, path in enumerate(data.masks):
        mask = read_mask(path, ignored)
        _require_size(mask, path, data.images.path(number), pixel_format)
        found = np.bincount(mask[mask >= 0])
        if num_classes is not None and len(found) > num_classes:
            raise DataError(
                f"mask {path} has the index {len(found) - 1}, but there are {counted(num_classes, 'class')}, "
                f"{span(0, num_classes - 1)}; name all classes in the file of --classes, or add the index to "
                "--ignore_index"
            )
        longer = max(len(found), len(counts))
        counts = np.pad(counts, (0, longer - len(counts))) + np.pad(found, (0, longer - len(found)))
    return counts


def _require_size(mask: npt.NDArray[Any], path: str, image_path: str, pixel_format: PixelFormat) -> None:
    """Raise DataError if mask and image differ in size; an unreadable image passes and is reported when it is used."""
    try:
        image = open_image(image_path, pixel_format=pixel_format)
    except DataError:
        return
    if mask.shape != (image.height, image.width):
        raise DataError(
            f"mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels, but its image {image_path} has {image.width} x "
            f"{image.height}; resize the mask to the image without interpolation"
        )


def _subfolder(root: Path, names: Collection[str], split: str) -> Path:
    """Return the folder of the split in the first folder of `names` that has one; raise DataError if none has."""
    for name in names:
        for folder in SPLITS[split]:
            if (root / name / folder).is_dir():
                return root / name / folder
    raise DataError(f"--data_path {root} has no folder {' or '.join(names)} with {split}; expected {_layout(split)}")


def _layout(split: str) -> str:
    return f"{IMAGES}/{split} and {MASKS[0]}/{split} with files of equal stems"


def _mask_path(folder: Path, image: str) -> str:
    """Return the path of a mask in `folder`; `image` is the image's path relative to the folder of the images.

    The suffix is .PNG if only that file exists, else .png.
    """
    stem = os.path.splitext(folder / image)[0]
    return f"{stem}.PNG" if os.path.isfile(f"{stem}.PNG") and not os.path.isfile(f"{stem}.png") else f"{stem}.png"


def _beside(mask: str) -> str:
    """Return " " with a remark on a file that has the stem of a missing mask and another suffix; "" without one."""
    path = Path(mask)
    others = sorted(path.parent.glob(f"{_literal(path.stem)}.*")) if path.parent.is_dir() else []
    return f" ({escape_name(others[0].name)} is no PNG)" if others else ""


def _literal(stem: str) -> str:
    """Return a pattern for `glob` that matches this stem only."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in stem)
