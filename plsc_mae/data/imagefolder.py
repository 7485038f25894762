"""Image data sets on disk: what files there are, and the samples made of them.

`find_images` lists the files of a folder or list file, `find_validation` those that go with them, `balanced_subset`
picks some; `ImageDataset` decodes and transforms one per key.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from plsc_mae.data.decode import Backend, open_image, require_backend
from plsc_mae.data.seeding import SampleKey, sample_rng
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.data.workers import Bookmark
from plsc_mae.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_SPLIT_NAMES = {"train", "val", "valid", "validation", "test"}
_MAX_CONSECUTIVE_BAD = 100
_MAX_CLASSES = 1_000_000  # beyond it, the last number of a line in a list file is no label

logger = logging.getLogger(__name__)


class PathTable:
    """Paths packed into one bytes object: less memory than a list, and forked workers do not copy it page by page."""

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._packed = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        return os.fsdecode(self._packed[self._ends[index] : self._ends[index + 1]])


@dataclass(frozen=True)
class ImageList:
    """The files of a data set.

    Attributes:
        paths: relative to `root`.
        labels: class numbers [n], -1 where there are none.
        classes: names in the order of their numbers.
        root: folder that the paths start from.
    """

    paths: PathTable
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    root: str

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Return the full path of one file."""
        return os.path.join(self.root, self.paths[index])


def find_images(data_path: str | Path, split: str) -> ImageList:
    """List the images of a data set, in an order that depends on their names alone.

    In this order of preference `data_path` is a text file with a `path [label]` per line, paths relative to the file;
    or a folder that holds the folder `split`, else is itself such a folder: with a folder per class, else with images.
    Classes are numbered and files are chosen as by torchvision's ImageFolder, but hidden folders are not classes.

    Raises:
        DataError: there is nothing of the kind, a class folder without images, or a malformed list file.
    """
    source = Path(data_path)
    try:
        if source.is_file():
            return _read_list(source)
        if not source.is_dir():
            raise DataError(f"--data_path {source} does not exist; expected {_layouts(source, split)}")
        folder = _split_folder(source, split)
        images = _class_folders(folder) or _flat_folder(folder)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    if images is None:
        raise DataError(f"no images in {folder}; expected {_layouts(source, split)}")
    return images


def require_classes(images: ImageList, use: str) -> None:
    """Raise DataError for images without labels, naming the use they are needed for."""
    if not images.classes:
        raise DataError(
            f"the images of {images.root} have no classes; expected a folder per class, or labels in a list, for {use}"
        )


def find_validation(train: ImageList, data_path: str, eval_data_path: str = "") -> ImageList:
    """List the labeled validation images that go with labeled training images.

    Args:
        train: the training images.
        data_path: where these were found.
        eval_data_path: where the validation images are, if not in the folder val/ of `data_path`.

    Raises:
        DataError: there are none, one of the two is without labels, or their classes differ.
    """
    source = Path(data_path)
    if not eval_data_path and not ((source / "train").is_dir() and (source / "val").is_dir()):
        raise DataError(f"{source} has no folders train/ and val/; name the validation images with --eval_data_path")
    val = find_images(eval_data_path or source, "val")
    for images in (train, val):
        require_classes(images, "validation")
    if train.classes != val.classes:
        raise DataError(
            f"{train.root} and {val.root} have different classes ({len(train.classes)} and {len(val.classes)}); "
            "expected the same class folders in both"
        )
    return val


def balanced_subset(images: ImageList, limit: int) -> ImageList:
    """Choose at most `limit` labeled images: all if they are no more, else as many of each class.

    Every class gives limit // classes images, evenly spaced in the order of the list, or all it has if they are fewer.
    """
    if len(images) <= limit:
        return images
    ends = np.cumsum(np.bincount(images.labels, minlength=len(images.classes)))
    members = np.split(np.argsort(images.labels, kind="stable"), ends[:-1])
    counts = [min(len(rows), limit // len(images.classes)) for rows in members]
    spaced = [rows[np.arange(count) * len(rows) // max(count, 1)] for rows, count in zip(members, counts, strict=True)]
    chosen = np.concatenate(spaced)
    paths = PathTable(images.paths[int(row)] for row in chosen)
    return ImageList(paths, images.labels[chosen], images.classes, images.root)


class ImageDataset:
    """Samples of an ImageList: what the transform makes of an image, its "index" and its "label".

    Every sample also counts, as "skipped", the files that were passed over before one could be decoded. With
    `bad_image="skip"` the next decodable file of the list stands in, label and all, and is cropped with the draws that
    the bad one would have had.

    Args:
        images: the files.
        transform: maps a SourceImage and the sample's generator to named arrays.
        seed: of the generators, together with epoch and index.
        backend: of decoding.
        bad_image: what a file that cannot be decoded does: stop with a DataError, or be skipped with a warning.

    Attributes:
        bookmark: where the number of the file that is about to be read is noted, if anywhere.
    """

    def __init__(
        self,
        images: ImageList,
        transform: Transform,
        *,
        seed: int,
        backend: Backend = "pil",
        bad_image: Literal["error", "skip"] = "error",
    ) -> None:
        require_backend(backend)
        self.images = images
        self.transform = transform
        self.seed = seed
        self.backend = backend
        self.bad_image = bad_image
        self.bookmark: Bookmark | None = None
        self._passed_over: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample:
        for skipped in range(min(len(self), _MAX_CONSECUTIVE_BAD)):
            index = (key.index + skipped) % len(self)
            try:
                sample = self._transformed(index, sample_rng(self.seed, key.epoch, key.index))
            except DataError as error:
                if self.bad_image == "error":
                    raise DataError(f"{error}; mend or remove the file, or pass --bad_image skip") from error
                logger.warning("%s; the next image stands in", error)
                continue
            numbers = {"index": index, "label": self.images.labels[index], "skipped": skipped}
            return sample | {name: np.asarray(number, np.int64) for name, number in numbers.items()}
        raise DataError(
            f"none of {skipped + 1} files in a row can be decoded, starting with {self.images.path(key.index)}; "
            f"check the data set"
        )

    def name(self, index: int) -> str:
        """Return the path of a file."""
        return self.images.path(index)

    def pass_over(self, index: int, reason: str) -> bool:
        """Skip a file from now on, for a reason that names it, if bad images are skipped; returns whether they are."""
        if self.bad_image == "skip":
            self._passed_over[index] = reason
        return self.bad_image == "skip"

    def _transformed(self, index: int, rng: np.random.Generator) -> Sample:
        if index in self._passed_over:
            raise DataError(self._passed_over[index])
        if self.bookmark is not None:
            self.bookmark.set(index)
        return self.transform(open_image(self.images.path(index), self.backend), rng)


def _split_folder(source: Path, split: str) -> Path:
    if (source / split).is_dir():
        return source / split
    folders = _subfolders(source)
    if folders and set(folders) <= _SPLIT_NAMES:  # else these would pass for the classes
        raise DataError(
            f"{source} has no folder '{split}', only {', '.join(folders)}; add it or give another --data_path"
        )
    return source


def _class_folders(folder: Path) -> ImageList | None:
    classes = _subfolders(folder)
    files = [_images_below(folder, name) for name in classes]
    if not any(files):
        return None
    for name, found in zip(classes, files, strict=True):
        if not found:
            raise DataError(f"class folder {folder / name} holds no image ({' '.join(EXTENSIONS)}); fill or remove it")
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found in files])
    return ImageList(PathTable(path for found in files for path in found), labels, tuple(classes), str(folder))


def _flat_folder(folder: Path) -> ImageList | None:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if _is_image(entry.name) and entry.is_file())
    if not names:
        return None
    return ImageList(PathTable(names), np.full(len(names), -1, np.int64), (), str(folder))


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images_below(folder: Path, name: str) -> list[str]:
    """Return the images in `folder/name` and below it, relative to `folder`, in torchvision's order."""
    images: list[str] = []
    for at, files in sorted(_walk(str(folder / name), (_identity(folder),))):
        prefix = os.path.relpath(at, folder)
        images += [os.path.join(prefix, file) for file in sorted(files) if _is_image(file)]
    return images


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder below and its files, following links; `above` are the identities on the way down to it."""
    identity = _identity(folder)
    if identity in above:
        raise DataError(f"{folder} is a link back to a folder that holds it, so there is no end to it; remove the link")
    with os.scandir(folder) as entries:
        kinds = {entry.name: _is_folder(entry) for entry in entries}
    yield folder, [name for name, is_folder in kinds.items() if not is_folder]
    for name in sorted(name for name, is_folder in kinds.items() if is_folder):
        yield from _walk(os.path.join(folder, name), (*above, identity))


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: taken for a file, and reading it tells what is wrong
        return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _read_list(file: Path) -> ImageList:
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    paths: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        path, label = _parse_entry(line.strip())
        if label >= _MAX_CLASSES or (labels and (label < 0) != (labels[0] < 0)):
            raise DataError(
                f"{file} line {number}: expected 'path' on every line, or 'path label' on every line with labels "
                f"from 0 to {_MAX_CLASSES - 1}, got '{line.strip()}'"
            )
        paths.append(path)
        labels.append(label)
    if not paths:
        raise DataError(f"list file {file} names no image; expected 'path' or 'path label' on every line")
    if not (file.parent / paths[0]).exists():
        raise DataError(
            f"list file {file} names {paths[0]}, which is not in {file.parent}; paths start from the list file"
        )
    classes = tuple(str(label) for label in range(max(labels) + 1))
    return ImageList(PathTable(paths), np.array(labels, np.int64), classes, str(file.parent))


def _parse_entry(line: str) -> tuple[str, int]:
    labeled = re.fullmatch(r"(.*\S)\s+(\d+)", line)
    return (labeled[1], int(labeled[2])) if labeled else (line, -1)


def _layouts(source: Path, split: str) -> str:
    return (
        f"{source}/{split}/<class>/*.jpg, {source}/<class>/*.jpg, {source}/{split}/*.jpg, {source}/*.jpg "
        f"or a text file with a 'path label' or a 'path' per line"
    )
