"""Lists of the images of a data set, found in folders of several layouts or read from a list file."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plsc_mae.data.decode import Backend, SourceImage, open_image
from plsc_mae.data.folder_walk import (
    ARRAY_EXTENSIONS,
    EXTENSIONS,
    Count,
    LeftOut,
    holds_images,
    images_below,
    images_in,
    is_image,
    scan,
)
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.unreadable import UnreadableFiles
from plsc_mae.errors import DataError
from plsc_mae.errors import flag as own_flag
from plsc_mae.file_kinds import EMPTY, REMEDIES, read_head, recognize
from plsc_mae.names import escape_name

SPLIT_NAMES = frozenset({"train", "val", "valid", "validation", "test"})
_SPLIT_LIKE = re.compile(
    r"(train|training|trainval|val|valid|validation|test|testing|eval|dev)([-_]?(set|data|images|\d+))*"
)
_MAX_CLASSES = 1_000_000  # a larger number at the end of a line in a list file is not a label
_MAX_LINE = 8192  # characters; Linux limits a path to 4096 bytes
_NAMES_SHOWN = 5
_OUTER_FOLDERS = 3  # an archive often adds folders around those of the splits


class PathTable:
    """Sequence of paths packed into one array of bytes.

    It needs less memory than a list, and forked workers share it. (Reading a list changes the reference counts of its
    strings, which makes the kernel copy every page.)
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._packed = bytearray()
        ends = array("q", [0])
        for path in paths:
            self._packed += os.fsencode(path)
            ends.append(len(self._packed))
        self._ends = np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        return os.fsdecode(bytes(self._packed[self._ends[index] : self._ends[index + 1]]))


@dataclass(frozen=True)
class ImageList:
    """Files and labels of a data set.

    Attributes:
        paths: n paths relative to `root`.
        labels: class numbers [n], -1 for unlabeled images.
        classes: class names in the order of their numbers, as `plsc_mae.names.escape_name` writes them; empty for
            unlabeled images.
        root: base folder of the paths.
        list_file: list file with the paths and labels; empty for a folder.
        left_out: files of the folder that are not in the list.
        unreadable: record of the files that could not be decoded.
    """

    paths: PathTable
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    root: str
    list_file: str = ""
    left_out: LeftOut = field(default_factory=LeftOut, compare=False, kw_only=True)
    unreadable: UnreadableFiles = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unreadable", UnreadableFiles(len(self.paths)))

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

    def name(self, index: int) -> str:
        """Return the path of one file relative to `root`, as it is printed and written (`names.escape_name`)."""
        return escape_name(self.paths[index])

    def open(self, index: int, backend: Backend = "pil", pixel_format: PixelFormat = RGB) -> SourceImage:
        """Read one file, see `plsc_mae.data.decode.open_image`."""
        return open_image(self.path(index), backend, pixel_format)


def list_images(data_path: str | Path, split: str, *, flag: str = "", labeled: bool = True) -> ImageList:
    """List the images of a data set, see `plsc_mae.data.imagefolder.find_images`.

    Args:
        data_path: folder or list file.
        split: subfolder that is used in place of `data_path` if it exists.
        flag: option that `data_path` comes from, for messages; "" is --data_path or --img_path, as the command has it.
        labeled: False lists the images of class folders, and those beside them, without classes.

    Raises:
        DataError: no images were found, a class folder has no images, the folder has two readings, or the file is
            not a list.
    """
    source, flag = Path(data_path), flag or own_flag("data_path", "img_path")
    try:
        if source.is_file():
            return _read_list(source, flag)
        if not source.exists():
            raise DataError(f"{flag} {source} does not exist; expected {_layouts(source, split)}")
        if not source.is_dir():
            raise DataError(f"{flag} {source} is a pipe, socket or device; expected {_layouts(source, split)}")
        left_out = LeftOut()
        folder = _split_folder(source, split, flag, left_out)
        if labeled and folder == source:
            _refuse_inner_splits(source, split, flag)
        images = _list_folder(folder, left_out, labeled=labeled)
        if images is None and not left_out.suffixes.keys().isdisjoint(ARRAY_EXTENSIONS):
            left_out = LeftOut()
            images = _list_folder(folder, left_out, labeled=labeled, suffixes=ARRAY_EXTENSIONS)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    if images is None:
        raise DataError(f"no images in {folder}{_contents(left_out)}; expected {_layouts(source, split)}")
    return images


# --------------------------------------------------------------------------------------------------- folders


def _split_folder(source: Path, split: str, flag: str, left_out: LeftOut) -> Path:
    """Return the folder of the split, or `source` if it has no splits.

    Raises:
        DataError: the split is missing, or its folder could be a class as well.
    """
    beside = LeftOut()
    folders, _ = scan(source, beside)
    splits = [name for name in folders if name in SPLIT_NAMES]
    if (source / split).is_dir():
        if splits == [split]:
            _refuse_two_readings(source, split, split, folders, flag)
        inner, _ = scan(source / split, LeftOut())
        if {split} < SPLIT_NAMES.intersection(inner) and not _folders_with_images(source / split, inner):
            raise DataError(
                f"{source / split} has the folders {_listed(inner)}, so it contains the splits; pass {flag} "
                f"{source / split}"
            )
        left_out.hidden = beside.hidden
        return source / split
    similar = [name for name in folders if _is_like_split(name)]
    if len(similar) > 1 or (folders and similar == folders):
        example = min(similar, key=lambda name: not name.lower().startswith(split))
        raise DataError(
            f"{source} has no folder '{split}', only {_listed(folders)}; add it, or choose the folder of the images, "
            f"for example {flag} {source / example}; {_class_reading(source, split, flag)}"
        )
    if splits:
        _refuse_two_readings(source, splits[0], split, folders, flag)
    return source


def _refuse_inner_splits(source: Path, split: str, flag: str) -> None:
    """Raise DataError if a folder contains splits, as in an unpacked archive, so that it is hardly a class.

    A single folder is searched three levels deep. Of several ones only the usual names are looked up, which is fast.
    """
    for _ in range(_OUTER_FOLDERS):
        folders, _ = scan(source, LeftOut())
        for name in folders:
            inner = sorted(SPLIT_NAMES) if len(folders) > 1 else scan(source / name, LeftOut())[0]
            found = [item for item in inner if _is_like_split(item) and holds_images(source / name / item)]
            if len(found) > 1:
                raise DataError(
                    f"{flag} {source} has two readings: its folder '{name}' has {_listed(found)}; if these are splits, "
                    f"pass {flag} {source / name}; {_class_reading(source, split, flag)}"
                )
        if len(folders) != 1:
            return
        source /= folders[0]


def _refuse_two_readings(source: Path, found: str, wanted: str, folders: list[str], flag: str) -> None:
    """Raise DataError if `found`, the only folder that is named like a split, is beside other folders with images.

    A folder of class folders beside folders of loose images has a single reading: it is a split.
    """
    others = _folders_with_images(source, folders)
    if not _has_direct_images(source / found):
        others = [name for name in others if not _has_direct_images(source / name)]
    if others:
        remedy = f"pass {flag} {source / found}" if found == wanted else f"move the others to {source / wanted}"
        raise DataError(
            f"{flag} {source} has two readings: the folder '{found}' is beside {_listed(others)} with images too; if "
            f"'{found}' is a split, {remedy}; {_class_reading(source, wanted, flag)}"
        )


def _is_like_split(folder: str) -> bool:
    return _SPLIT_LIKE.fullmatch(folder.lower()) is not None


def _folders_with_images(parent: Path, folders: list[str]) -> list[str]:
    """Return the folders that hold images and are not named like a split."""
    return [name for name in folders if not _is_like_split(name) and holds_images(parent / name)]


def _has_direct_images(folder: Path) -> bool:
    return any(is_image(name) for name in scan(folder, LeftOut())[1])


def _class_reading(source: Path, split: str, flag: str) -> str:
    """Return the remedy if folders that are named like splits are classes."""
    command = f"mkdir NEW && ln -s {shlex.quote(str(source.absolute()))} NEW/{split}"
    return f"if all folders are classes, run `{command}` and pass {flag} NEW"


def _list_folder(
    folder: Path, left_out: LeftOut, *, labeled: bool, suffixes: tuple[str, ...] = EXTENSIONS
) -> ImageList | None:
    classes, files = scan(folder, left_out)
    loose = images_in(folder, files, left_out, suffixes)
    counts: list[int] = []

    def paths() -> Iterator[str]:
        """Yield the images class by class, so that the names of one class at a time are in memory."""
        for name in classes:
            found = images_below(folder, name, left_out, suffixes)
            counts.append(len(found))
            yield from found

    table = PathTable(paths())
    if len(table) and labeled:
        if 0 in counts:
            empty = folder / classes[counts.index(0)]
            content = LeftOut()
            images_below(folder, empty.name, content, suffixes)
            raise DataError(
                f"class folder {empty} contains no image ({' '.join(suffixes)}){_contents(content)}; add images or "
                "remove it"
            )
        left_out.loose = Count(len(loose), str(folder / loose[0]) if loose else "")
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
        return ImageList(table, labels, tuple(map(escape_name, classes)), str(folder), left_out=left_out)
    if loose:
        table = PathTable(itertools.chain(loose, (table[index] for index in range(len(table)))))
    return (
        ImageList(table, np.full(len(table), -1, np.int64), (), str(folder), left_out=left_out) if len(table) else None
    )


def _contents(left_out: LeftOut) -> str:
    """Return a clause about the files of a folder without images."""
    pictures = left_out.pictures()
    if pictures:
        return f", but {describe_suffixes(pictures)}: convert them to PNG or JPEG"
    for count, kind in left_out.containers():
        return f", but {count.number} other files; {count.example} is {kind.name}: {REMEDIES[kind.group]}"
    return ""


def describe_suffixes(counts: dict[str, Count]) -> str:
    """Return "12 files of other formats (10 .gif, 2 .heic; for example a/x.gif)"."""
    most = sorted(counts.items(), key=lambda item: -item[1].number)
    kinds = ", ".join(f"{count.number} {suffix or 'without a suffix'}" for suffix, count in most[:_NAMES_SHOWN])
    number = sum(count.number for count in counts.values())
    return f"{number} files of other formats ({kinds}; for example {most[0][1].example})"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _layouts(source: Path, split: str) -> str:
    return (
        f"{source}/{split}/<class>/*.jpg, {source}/<class>/*.jpg, {source}/{split}/*.jpg, {source}/*.jpg "
        f"or a text file with a 'path label' or a 'path' per line"
    )


# ------------------------------------------------------------------------------------------------ list files


def _read_list(file: Path, flag: str) -> ImageList:
    """Read a list file line by line, so that memory stays near the size of the table."""
    kind = recognize(read_head(file))
    if kind is not None and kind.name != EMPTY:
        raise DataError(f"{flag} {file} is {kind.name}; expected an image folder or a list: {REMEDIES[kind.group]}")
    labels = array("q")
    table = PathTable(_entries(file, labels))
    if not len(table):
        raise DataError(f"list file {file} names no image; expected 'path' or 'path label' on every line")
    if not os.path.lexists(file.parent / table[0]):
        raise DataError(f"list file {file} names {table[0]}, which is not in {file.parent}; {_list_remedy(table[0])}")
    classes = tuple(str(label) for label in range(max(labels) + 1))
    return ImageList(table, np.frombuffer(labels, np.int64), classes, str(file.parent), str(file))


def _entries(file: Path, labels: array[int]) -> Iterator[str]:
    """Yield the paths of a list file and append their labels to `labels`.

    Names that are not UTF-8 are read as Python reads them from a folder, so the files can be opened.
    """
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        number = 0
        while text := lines.readline(_MAX_LINE + 1):
            number += 1
            line = text.strip()
            if len(text) > _MAX_LINE or "\0" in line:
                wrong = f"is longer than {_MAX_LINE} characters" if len(text) > _MAX_LINE else "has a zero byte"
                raise DataError(f"{file} line {number} {wrong}; expected a text file with a path per line")
            if not line:
                continue
            path, label = _parse_entry(line)
            if label >= _MAX_CLASSES or (labels and (label < 0) != (labels[0] < 0)):
                before = f" after lines with{'out' if labels[0] < 0 else ''} a label" if labels else ""
                raise DataError(
                    f"{file} line {number}: expected 'path' on every line, or 'path label' on every line with labels "
                    f"from 0 to {_MAX_CLASSES - 1}, got '{line}'{before}"
                )
            labels.append(label)
            yield path


def _parse_entry(line: str) -> tuple[str, int]:
    labeled = re.fullmatch(r"(.*\S)\s+(\d+)", line)
    return (labeled[1], int(labeled[2])) if labeled else (line, -1)


def _list_remedy(entry: str) -> str:
    """Return the remedy for an entry of a list file that names no file."""
    if "://" in entry:
        return "download the images and write their paths"
    if entry[0] in "\"'":
        return "write paths without quotation marks"
    if "\\" in entry:
        return "separate folders by / and not by a backslash"
    if re.search(r"[,;]", entry):
        return "write 'path label' with a blank in between, labels as numbers from 0, and no line of headings"
    if is_image(entry.split()[0]) and not is_image(entry):
        return "write one path and at most one label per line, labels as numbers from 0"
    return "write paths relative to the list file, and no line of headings or comments"
