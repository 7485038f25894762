"""Members of all archives of a data set: their paths, labels and classes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.data.folder_walk import Count, LeftOut
from plsc_mae.data.packed.archive import Archive
from plsc_mae.data.packed.binaries import BinaryArchive
from plsc_mae.data.packed.folder import MemberTree, PackedFolder
from plsc_mae.data.packed.indexed import IndexedArchive
from plsc_mae.data.packed.members import open_archive
from plsc_mae.data.packed.rows import RowArchive
from plsc_mae.errors import DataError

_READERS = 8  # threads that read archive indexes
_MAX_CLASSES = 1_000_000
_MAX_DIGITS = 18  # of a label; Python refuses to convert thousands of digits


class MemberTable(NamedTuple):
    """Members of archives."""

    root: str  # folder that the paths are relative to
    names: Sequence[str]  # paths of the archives below `root`
    archives: Sequence[Archive]
    # paths of the images in order, for archives of rows or records; None for archives with folders
    paths: Sequence[str] | None
    # labels as text by path; an image without a label has "" or no entry. None if only
    # folders give classes, or a label is not a class number.
    labels: Mapping[str, str] | None
    # names of the classes in the order of the labels; () if the labels are the names or plain numbers
    classes: tuple[str, ...]
    sorts_by_class: bool  # whether images are to be sorted by class
    label_note: str = ""  # sentence for the log about the column of labels; "" without one

    def folder(self, source: str) -> PackedFolder:
        """Return the top folder of archives with folders; `source` names them in messages."""
        members = [archive.index.names if isinstance(archive, IndexedArchive) else () for archive in self.archives]
        return PackedFolder(MemberTree(self.names, members), source)

    @property
    def labels_are_numbers(self) -> bool:
        """True if the labels are numbers without names; one number among them is enough."""
        return not self.classes and any(label.isdecimal() for label in (self.labels or {}).values())

    def classes_of(self, paths: Sequence[str], source: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """Return the class number of each image and the class names; if no image has a label, all -1 and no names.

        Raises:
            DataError: some images have a label and others have none, or a label is not a class number.
        """
        labels = [(self.labels or {}).get(path, "") for path in paths]
        if not any(labels):
            return np.full(len(paths), -1, np.int64), ()
        if "" in labels:
            raise DataError(
                f"{source}: {paths[labels.index('')]} has no label, but {len(labels) - labels.count('')} other images "
                "have one; give every image a label, or none"
            )
        if not self.classes and not self.labels_are_numbers:
            names = tuple(sorted(set(labels)))
            numbers = {name: number for number, name in enumerate(names)}
            return np.array([numbers[label] for label in labels], np.int64), names
        limit = len(self.classes) or _MAX_CLASSES
        wrong = next((i for i, label in enumerate(labels) if not _is_number_below(limit, label)), None)
        if wrong is not None:
            raise DataError(
                f"{source}: {paths[wrong]} has the label {labels[wrong]}; expected a number from 0 to {limit - 1}"
            )
        found = np.array(labels, np.int64)
        return found, self.classes or tuple(map(str, range(int(found.max()) + 1)))


def _is_number_below(limit: int, label: str) -> bool:
    return label.isdecimal() and len(label) <= _MAX_DIGITS and int(label) < limit


def member_table(files: Sequence[str]) -> MemberTable:
    """Open archives of one kind and return the table of their members.

    Raises:
        DataError: an archive cannot be used, see `open_archive`, or the archives differ in kind or classes.
        ConfigError: the package for a kind cannot be imported.
        OSError: a file cannot be read.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        archives = list(pool.map(open_archive, files))
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    if not os.path.isabs(files[0]):
        root = os.path.relpath(root)
    names = [os.path.relpath(file, root) for file in files]
    if all(isinstance(archive, IndexedArchive) for archive in archives):
        labels = dict(_own_labels(names, archives))
        return MemberTable(root, names, archives, None, labels or None, (), sorts_by_class=True)
    tables = [archive for archive in archives if isinstance(archive, RowArchive)]
    if len(tables) == len(archives):
        return _rows(root, names, tables)
    if all(isinstance(archive, BinaryArchive) for archive in archives):
        return _records(root, names, archives)
    kinds = {type(archive): file for file, archive in zip(files, archives, strict=True)}
    raise DataError(f"{' and '.join(kinds.values())} are of different kinds; pass archives of one kind")


def _own_labels(names: Sequence[str], archives: Sequence[Archive]) -> Iterator[tuple[str, str]]:
    """Yield (path, label) of the members of tar and zip archives that have a label."""
    for name, archive in zip(names, archives, strict=True):
        if isinstance(archive, IndexedArchive) and archive.index.labels is not None:
            pairs = zip(archive.index.names, archive.index.labels, strict=True)
            yield from ((f"{name}/{member}", label) for member, label in pairs if label)


def _rows(root: str, names: Sequence[str], archives: Sequence[RowArchive]) -> MemberTable:
    """Return the table of Parquet or Arrow files of the same classes, with rows sorted by the names of their images."""
    rows: list[tuple[str, str, int, int, str]] = []  # sorted as a folder is: by folder, name, file and row
    classes: tuple[str, ...] | None = None
    for number, archive in enumerate(archives):
        if classes not in (None, archive.columns.classes):
            raise DataError(f"{archives[0].path} and {archive.path} have different classes; write them with the same")
        classes = archive.columns.classes
        for row, (name, label) in enumerate(zip(archive.names, archive.labels, strict=True)):
            folder, _, base = name.rpartition("/")
            rows.append((folder, base, number, row, label))
    rows.sort()
    paths = [f"{names[number]}/{row}{f'/{base}' if base else ''}" for _, base, number, row, _ in rows]
    labels = {path: row[-1] for path, row in zip(paths, rows, strict=True)}
    note, has_labels = _conversion_note(archives, labels.values())
    used = labels if has_labels else None
    return MemberTable(root, names, archives, paths, used, classes or (), sorts_by_class=True, label_note=note)


def _conversion_note(archives: Sequence[RowArchive], labels: Collection[str]) -> tuple[str, bool]:
    """Return (sentence about labels that are booleans or floats, "" for others; whether all labels can be used)."""
    columns = next((archive.columns for archive in archives if archive.columns.has_numbers), None)
    if columns is None or not any(labels):
        return "", True
    column = f"column {columns.label} of {columns.label_type} values"
    for label in labels:
        if label and not label.lstrip("-").isdecimal():
            return f"the {column} has {label}, which is not a class number, so the images have no labels", False
    booleans = "; False is 0 and True is 1" if columns.label_type == "bool" else ""
    return f"the class numbers are the {column}{booleans}", True


def _records(root: str, names: Sequence[str], archives: Sequence[Archive]) -> MemberTable:
    """Return the table of binary files of the same classes, with records in their order."""
    labels: dict[str, str] = {}
    classes: tuple[str, ...] = ()
    for name, archive in zip(names, archives, strict=True):
        assert isinstance(archive, BinaryArchive)
        if classes not in ((), archive.classes):
            raise DataError(f"{archives[0].path} and {archive.path} have different classes; pass files of one data set")
        classes = archive.classes
        labels |= {f"{name}/{number}.ppm": label for number, label in enumerate(archive.labels)}
    return MemberTable(root, names, archives, list(labels), labels, classes, sorts_by_class=False)


def json_note(left_out: LeftOut, classes: Sequence[str]) -> str:
    """Return a sentence about the JSON files beside images in archives whose classes are folders; "" without them."""
    number, example = left_out.suffixes.get(".json", Count(0, ""))
    if not number or not classes:
        return ""
    return (
        f"the labels are the names of the folders, and the {number} JSON files, such as {example}, are not read; for "
        "other labels add KEY.cls beside KEY.jpg"
    )
