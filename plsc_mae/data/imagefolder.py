"""Image data sets on disk.

`find_images` lists the files of a folder or list file, `find_validation` lists the matching validation images,
`balanced_subset` selects some of the files, and `ImageDataset` decodes and transforms them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from plsc_mae.data.classes import Reference, listed, match_images
from plsc_mae.data.decode import Backend, open_image, require_backend
from plsc_mae.data.seeding import SampleKey, sample_rng
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.data.workers import CurrentRead
from plsc_mae.errors import DataError, flag, remedies

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_SPLIT_NAMES = {"train", "val", "valid", "validation", "test"}
_MAX_CONSECUTIVE_BAD = 100
_MAX_CLASSES = 1_000_000  # a larger number at the end of a line in a list file is not a label

logger = logging.getLogger(__name__)


class PathTable:
    """Sequence of paths packed into one bytes object.

    It needs less memory than a list, and forked workers share it. (Reading a list changes the reference counts of its
    strings, which makes the kernel copy every page.)
    """

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
    """Files and labels of a data set.

    Attributes:
        paths: n paths relative to `root`.
        labels: class numbers [n], -1 for unlabeled images.
        classes: class names in the order of their numbers; empty for unlabeled images.
        root: base folder of the paths.
        list_file: list file with the paths and labels; empty for a folder.
    """

    paths: PathTable
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    root: str
    list_file: str = ""

    @property
    def source(self) -> str:
        """The list file or the folder, for messages."""
        return self.list_file or self.root

    @property
    def numbered(self) -> bool:
        """True if the classes are the labels of a list file, which has no other names."""
        return bool(self.list_file)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Return the full path of one file."""
        return os.path.join(self.root, self.paths[index])


def find_images(data_path: str | Path, split: str) -> ImageList:
    """List the images of a data set, in an order that depends on their names alone.

    `data_path` may be:
    - a text file with a `path [label]` per line, with paths relative to the file;
    - a folder with a sub-folder `split`, which is then used in place of `data_path`;
    - a folder with one sub-folder of images per class;
    - a folder of unlabeled images.
    Classes are numbered and files are selected as in torchvision's ImageFolder, except that hidden folders are not
    classes.

    Raises:
        DataError: no images were found, a class folder has no images, or the list file is malformed.
    """
    source = Path(data_path)
    try:
        if source.is_file():
            return _read_list(source)
        if not source.is_dir():
            raise DataError(
                f"{flag('data_path', 'img_path')} {source} does not exist; expected {_layouts(source, split)}"
            )
        folder = _split_folder(source, split)
        images = _class_folders(folder) or _flat_folder(folder)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    if images is None:
        raise DataError(f"no images in {folder}; expected {_layouts(source, split)}")
    return images


def require_classes(images: ImageList, use: str) -> None:
    """Raise DataError if the images are unlabeled; `use` names the purpose of the labels in the message."""
    if not images.classes:
        raise DataError(
            f"the images of {images.source} have no classes, which are needed for {use}; expected a folder per class, "
            f"or a list file with labels"
        )


def find_validation(train: ImageList, data_path: str, eval_data_path: str = "") -> ImageList:
    """List the labeled validation images that belong to labeled training images, with the classes of the latter.

    Classes are matched by name, see `plsc_mae.data.classes`. Validation images may lack classes; the log names them.

    Args:
        train: the training images.
        data_path: folder or list file of the training images.
        eval_data_path: folder or list file of the validation images; by default the folder val/ of `data_path`.

    Raises:
        DataError: there are no validation images, one of the two sets is unlabeled, or a validation image has a class
            that the training images lack.
    """
    source = Path(data_path)
    if not eval_data_path and not ((source / "train").is_dir() and (source / "val").is_dir()):
        raise DataError(f"{source} has {_missing_split(source)}; set --eval_data_path to the validation images")
    val = find_images(eval_data_path or source, "val")
    for images in (train, val):
        require_classes(images, "validation")
    remedy = "name the classes of both alike, or set --eval_data_path to other validation images"
    labels, note = match_images(val, Reference(train.classes, train.source, remedy))
    if note:
        logger.info("%s", note)
    if untrained := sorted(set(labels.tolist()) - set(train.labels.tolist())):
        names = [train.classes[number] for number in untrained]
        logger.warning("%s has images of classes without training images: %s", val.source, listed(names))
    return replace(val, labels=labels, classes=train.classes)


def balanced_subset(images: ImageList, limit: int) -> ImageList:
    """Select at most `limit` labeled images with equal numbers per class.

    Returns all images if there are no more than `limit`. Otherwise each class contributes `limit // len(classes)`
    images, evenly spaced in list order, or all of its images if it has fewer.
    """
    if len(images) <= limit:
        return images
    ends = np.cumsum(np.bincount(images.labels, minlength=len(images.classes)))
    members = np.split(np.argsort(images.labels, kind="stable"), ends[:-1])
    counts = [min(len(rows), limit // len(images.classes)) for rows in members]
    spaced = [rows[np.arange(count) * len(rows) // max(count, 1)] for rows, count in zip(members, counts, strict=True)]
    chosen = np.concatenate(spaced)
    paths = PathTable(images.paths[int(row)] for row in chosen)
    return replace(images, paths=paths, labels=images.labels[chosen])


class ImageDataset:
    """Data set of transformed images.

    A sample is the transform's arrays plus "index", "label" and "skipped". With `bad_image="skip"`, a file that cannot
    be decoded is replaced by the next decodable file of the list with that file's label, transformed with the random
    numbers of the bad file. "skipped" counts the bad files before it.

    Args:
        images: files and labels.
        transform: maps a SourceImage and the sample's generator to named arrays.
        seed: seeds the generators together with epoch and index.
        backend: image decoder.
        bad_image: "error" raises DataError for a file that cannot be decoded; "skip" logs a warning and skips it.

    Attributes:
        current_read: records the number of the file that is about to be read; None records nothing.
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
        self.current_read: CurrentRead | None = None
        self._known_bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample:
        for skipped in range(min(len(self), _MAX_CONSECUTIVE_BAD)):
            index = (key.index + skipped) % len(self)
            try:
                sample = self._transformed(index, sample_rng(self.seed, key.epoch, key.index))
            except DataError as error:
                if self.bad_image == "error":
                    raise DataError(
                        f"{error}; {remedies('repair or remove the file', 'pass --bad_image skip')}"
                    ) from error
                logger.warning("%s; using the next image instead", error)
                continue
            numbers = {"index": index, "label": self.images.labels[index], "skipped": skipped}
            return sample | {name: np.asarray(number, np.int64) for name, number in numbers.items()}
        raise DataError(
            f"cannot decode any of {skipped + 1} consecutive files, starting with {self.images.path(key.index)}; "
            f"check the data set"
        )

    def name(self, index: int) -> str:
        """Return the path of a file."""
        return self.images.path(index)

    def mark_bad(self, index: int, reason: str) -> bool:
        """Skip a file from now on and return True if `bad_image` is "skip"; otherwise return False.

        Args:
            index: number of the file.
            reason: message that is logged whenever the file is skipped; it must name the file.
        """
        if self.bad_image == "skip":
            self._known_bad[index] = reason
        return self.bad_image == "skip"

    def _transformed(self, index: int, rng: np.random.Generator) -> Sample:
        if index in self._known_bad:
            raise DataError(self._known_bad[index])
        if self.current_read is not None:
            self.current_read.set(index)
        return self.transform(open_image(self.images.path(index), self.backend), rng)


def _missing_split(source: Path) -> str:
    """Describe a folder that lacks train/, val/ or both, with folders of other names that may hold the images."""
    if not (source / "train").is_dir():
        return "val/ but no train/" if (source / "val").is_dir() else "no folders train/ and val/"
    others = [f"{name}/" for name in ("validation", "valid", "test", "eval") if (source / name).is_dir()]
    return f"train/ but no val/{f' (but {others[0]})' if others else ''}"


def _split_folder(source: Path, split: str) -> Path:
    if (source / split).is_dir():
        return source / split
    folders = _subfolders(source)
    if folders and set(folders) <= _SPLIT_NAMES:  # otherwise the splits would be taken for classes
        raise DataError(
            f"{source} has no folder '{split}', only {', '.join(folders)}; add it or choose another "
            f"{flag('data_path', 'img_path')}"
        )
    return source


def _class_folders(folder: Path) -> ImageList | None:
    classes = _subfolders(folder)
    files = [_images_below(folder, name) for name in classes]
    if not any(files):
        return None
    for name, found in zip(classes, files, strict=True):
        if not found:
            raise DataError(
                f"class folder {folder / name} contains no image ({' '.join(EXTENSIONS)}); add images or remove it"
            )
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
    """Return the images in `folder/name` and its sub-folders, relative to `folder`, in torchvision's order."""
    images: list[str] = []
    for subfolder, files in sorted(_walk(str(folder / name), (_identity(folder),))):
        prefix = os.path.relpath(subfolder, folder)
        images += [os.path.join(prefix, file) for file in sorted(files) if _is_image(file)]
    return images


def _walk(folder: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, file names) for a folder and its sub-folders, following links.

    Raises:
        DataError: a link leads back to one of the `ancestors` (device and inode numbers) or to a folder below them.
    """
    identity = _identity(folder)
    if identity in ancestors:
        raise DataError(f"{folder} is a link to a parent folder, and the search would never end; remove the link")
    with os.scandir(folder) as entries:
        kinds = {entry.name: _is_folder(entry) for entry in entries}
    yield folder, [name for name, is_folder in kinds.items() if not is_folder]
    for name in sorted(name for name, is_folder in kinds.items() if is_folder):
        yield from _walk(os.path.join(folder, name), (*ancestors, identity))


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: treat it as a file, and reading it raises the error
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
            f"list file {file} names {paths[0]}, which is not in {file.parent}; write paths relative to the list file"
        )
    classes = tuple(str(label) for label in range(max(labels) + 1))
    return ImageList(PathTable(paths), np.array(labels, np.int64), classes, str(file.parent), str(file))


def _parse_entry(line: str) -> tuple[str, int]:
    labeled = re.fullmatch(r"(.*\S)\s+(\d+)", line)
    return (labeled[1], int(labeled[2])) if labeled else (line, -1)


def _layouts(source: Path, split: str) -> str:
    return (
        f"{source}/{split}/<class>/*.jpg, {source}/<class>/*.jpg, {source}/{split}/*.jpg, {source}/*.jpg "
        f"or a text file with a 'path label' or a 'path' per line"
    )
