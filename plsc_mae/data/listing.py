"""Lists of the images of a data set, found in folders and archives of several layouts or read from a list file."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc_mae.data.decode import Backend, SourceImage, open_image
from plsc_mae.data.folder_walk import (
    ARRAY_EXTENSIONS,
    EXTENSIONS,
    Count,
    Folder,
    LeftOut,
    holds_images,
    images_below,
    images_in,
    is_image,
    scan,
)
from plsc_mae.data.kept_lists import kept_list
from plsc_mae.data.list_file import CLASSES_FILE, read_label_names, read_list_file
from plsc_mae.data.packed.find import find_archives, has_archives_of
from plsc_mae.data.packed.folder import PackedFolder
from plsc_mae.data.packed.indexed import key_of
from plsc_mae.data.packed.members import split_member
from plsc_mae.data.packed.tables import MemberTable, json_note, member_table
from plsc_mae.data.path_table import PathTable
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.unreadable import UnreadableFiles
from plsc_mae.errors import DataError
from plsc_mae.errors import flag as own_flag
from plsc_mae.file_kinds import REMEDIES
from plsc_mae.names import escape_name
from plsc_mae.wording import counted

SPLIT_NAMES = frozenset({"train", "val", "valid", "validation", "test"})
_SPLIT_LIKE = re.compile(
    r"(train|training|trainval|val|valid|validation|test|testing|eval|dev)([-_]?(set|data|images|\d+))*"
)
_NAMES_SHOWN = 5
_OUTER_FOLDERS = 3  # an archive often adds folders around those of the splits
_SCANNED_AT_ONCE = 64  # class folders
_SCAN_THREADS = 8  # a scan waits for the disk or the network most of the time

__all__ = ["SPLIT_NAMES", "ImageList", "PathTable", "describe_suffixes", "has_split", "list_images"]


@dataclass(frozen=True)
class ImageList:
    """Files and labels of a data set.

    Attributes:
        paths: n paths relative to `root`.
        labels: class numbers, int64 [n], -1 for unlabeled images; or the K labels of every image, float32 [n, K], see
            `plsc_mae.data.label_table`.
        classes: class names in the order of their numbers, or the names of the K labels, as
            `plsc_mae.names.escape_name` writes them; empty for unlabeled images.
        root: base folder of the paths.
        list_file: list file or CSV file with the paths and labels; empty for folders and archives.
        archives: path or pattern of the listed archives; empty for folders and list files.
        labels_are_numbers: whether the labels of a list file or of archives are numbers without names.
        numbers_are_named: whether the labels were such numbers until classes.txt named them.
        label_note: sentence for the log about the labels of a list file or of archives; usually "".
        left_out: files of the folder or archives that are not in the list.
        unreadable: record of the files that could not be decoded.
    """

    paths: PathTable
    labels: npt.NDArray[Any]
    classes: tuple[str, ...]
    root: str
    list_file: str = ""
    archives: str = field(default="", kw_only=True)
    labels_are_numbers: bool = field(default=False, kw_only=True)
    numbers_are_named: bool = field(default=False, kw_only=True)
    label_note: str = field(default="", compare=False, kw_only=True)
    left_out: LeftOut = field(default_factory=LeftOut, compare=False, kw_only=True)
    unreadable: UnreadableFiles = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unreadable", UnreadableFiles(len(self.paths)))

    @property
    def source(self) -> str:
        """The list file, the archives or the folder, for messages."""
        return self.list_file or self.archives or self.root

    @property
    def numbered(self) -> bool:
        """True if the classes are numbers without names, from a list file or archives."""
        return self.labels_are_numbers

    def with_numbers(self) -> ImageList:
        """Return the same images with class numbers in place of the names from classes.txt."""
        return replace(
            self,
            classes=tuple(map(str, range(int(self.labels.max()) + 1))),
            labels_are_numbers=True,
            numbers_are_named=False,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Return the path of one file, including `root`, without ../ where that is the same file."""
        path, levels = self.paths[index], 0
        while path.startswith("../", 3 * levels):
            levels += 1
        return os.path.join(_folder_above(self.root, levels), path[3 * levels :])

    def name(self, index: int) -> str:
        """Return the path of one file relative to `root`, as it is printed and written (`names.escape_name`)."""
        return escape_name(self.paths[index])

    def open(self, index: int, backend: Backend = "pil", pixel_format: PixelFormat = RGB) -> SourceImage:
        """Open one image, see `plsc_mae.data.decode.open_image`, also for the errors."""
        return open_image(self.path(index), backend, pixel_format)


@functools.lru_cache(maxsize=64)
def _folder_above(folder: str, levels: int) -> str:
    """Return the folder `levels` above another one; it ends with ../ only above a symbolic link or the first name."""
    for _ in range(levels):
        folder = "" if folder == "." else folder
        parent, name = os.path.split(folder)
        folder = os.path.join(folder, "..") if name in ("", "..") or os.path.islink(folder) else parent
    return folder


def list_images(data_path: str | Path, split: str, *, flag: str = "", labeled: bool = True) -> ImageList:
    """List the images of a data set, see `plsc_mae.data.imagefolder.find_images`.

    Args:
        data_path: folder, list file, archive, or pattern of archives.
        split: name of the subfolder or archives that are used if `data_path` has them.
        flag: option that `data_path` comes from, for messages; "" for the --data_path or --img_path of the command.
        labeled: False lists the images of class folders, and those beside them, without classes; labels in a list file
            are kept as numbers.

    Raises:
        DataError: `data_path` cannot be read, has no images, is ambiguous, or has none of the known forms.
        ConfigError: the package that reads the archives cannot be imported.
    """
    source, flag = Path(data_path), flag or own_flag("data_path", "img_path")
    data_path = source = list_of_split(source, split) or source
    try:
        if source.is_dir():
            key = (os.path.abspath(source), str(source), split, labeled, EXTENSIONS, ARRAY_EXTENSIONS)
            return kept_list(key, ImageList, lambda: _list_source(source, split, flag, labeled=labeled))
        return _list_source(data_path, split, flag, labeled=labeled)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def _list_source(data_path: str | Path, split: str, flag: str, *, labeled: bool) -> ImageList:
    """List the images of a data set as `list_images` does, but without its cache, and let OSError escape."""
    source = Path(data_path)
    if archives := find_archives(data_path, split, flag):
        return _list_archives(archives, str(data_path), split, flag, labeled=labeled)
    if source.is_file():
        entries = read_list_file(source, flag)
        classes = tuple(str(label) for label in range(entries.labels.max() + 1))
        place = str(source.parent), str(source)
        listed = ImageList(entries.paths, entries.labels, classes, *place, labels_are_numbers=bool(classes))
        return _with_class_names(listed) if labeled else listed
    if not source.exists():
        if (inner := split_member(str(source))) is not None:
            return _list_archives([inner[0]], inner[0], split, flag, labeled=labeled, inner=inner[1])
        refuse_absent_split(source, flag)
        raise DataError(f"{flag} {source} does not exist; expected {_layouts(source, split)}")
    if not source.is_dir():
        raise DataError(f"{flag} {source} is a pipe, socket or device; expected {_layouts(source, split)}")
    left_out = LeftOut()
    folder = _split_folder(source, split, flag, left_out)
    if labeled and folder is source:
        _refuse_inner_splits(source, split, flag)
    images = _list_images_or_arrays(folder, left_out, labeled=labeled)
    if images is None:
        raise DataError(f"no images in {folder}{_contents(left_out)}; expected {_layouts(source, split)}")
    return images


def _with_class_names(images: ImageList) -> ImageList:
    """Name the numbered classes by classes.txt beside the list file or archives; without it, return `images` itself."""
    file = Path(images.root) / CLASSES_FILE
    if not images.numbered or not file.is_file() or (images.list_file and file.samefile(images.list_file)):
        return images
    names = read_label_names(file, images.labels, images.source)
    note = f"the classes are named by {file}"
    if images.label_note:
        note = f"{images.label_note}; {note}"
    return replace(images, classes=names, labels_are_numbers=False, numbers_are_named=True, label_note=note)


def has_split(data_path: str | Path, split: str) -> bool:
    """Return whether a data set has a split: a subfolder, archives, or a folder in archives.

    If the data set cannot be read, the result is False.

    Raises:
        ConfigError: the package that reads the archives cannot be imported.
    """
    source = Path(data_path)
    try:
        if source.is_dir() and ((source / split).is_dir() or has_archives_of(source, split)):
            return True
        if list_of_split(source, split):
            return True
        archives = find_archives(data_path, split, "")
        return bool(archives) and (_top_folder(member_table(archives), str(data_path)) / split).is_dir()
    except (DataError, OSError):
        return False


def list_of_split(source: Path, split: str) -> Path | None:
    """Return the list file SPLIT.txt in the folder `source`; None without one, or if the folder holds images itself."""
    file = source / f"{split}.txt"
    return file if file.is_file() and not has_archives_of(source, split) and not holds_images(source) else None


def refuse_absent_split(source: Path, flag: str) -> None:
    """Raise DataError if the list file SOURCE.txt is in the place of the folder SOURCE, which does not exist."""
    lists = source.with_name(f"{source.name}.txt")
    if lists.is_file() and not source.exists():
        raise DataError(f"{flag} {source} does not exist, but {lists} does; give {flag} {lists}")


# -------------------------------------------------------------------------------------------------- archives


def _list_archives(
    archives: Sequence[str], source: str, split: str, flag: str, *, labeled: bool, inner: str = ""
) -> ImageList:
    """List the images in the folder `inner` of archives, "" for the top.

    Labels in the archives take precedence over folders in them.
    """
    table = member_table(archives)
    left_out = LeftOut()
    if table.paths is not None and not inner:
        return _labeled_list(table, table.paths, source, left_out, labeled=labeled)
    top = table.folder(source) / inner if inner else _top_folder(table, source)
    if not top.is_dir():
        raise DataError(f"{flag} {top}: {source} has no folder '{inner}'; pass the archive, or a folder in it")
    folder = _split_folder(top, split, flag, left_out)
    by_folder = labeled and table.labels is None
    if by_folder and folder is top:
        _refuse_inner_splits(top, split, flag)
    images = _list_images_or_arrays(folder, left_out, labeled=by_folder)
    if images is None:
        raise DataError(f"no images in {folder}{_contents(left_out)}; expected images, or folders of images, in it")
    if table.labels is not None:
        return _labeled_list(table, _primary_images(images.paths, left_out), source, left_out, labeled=labeled)
    return replace(images, root=table.root, archives=source, label_note=json_note(images.left_out, images.classes))


def _top_folder(table: MemberTable, source: str) -> PackedFolder:
    """Return the top folder of archives; outer folders that hold nothing but one folder of folders are skipped."""
    folder = table.folder(source)
    while True:
        folders, files = scan(folder, LeftOut())
        inner = folder / folders[0] if len(folders) == 1 and not files else None
        if inner is None or is_like_split(inner.name) or not scan(inner, LeftOut())[0] or has_direct_images(inner):
            return folder
        folder = inner


def _primary_images(paths: PathTable, left_out: LeftOut) -> list[str]:
    """Return the images except those such as KEY.mask.png beside KEY.jpg (webdataset); count these as left out."""
    primary = {key_of(path) for path in paths if path == key_of(path) + os.path.splitext(path)[1]}
    chosen = []
    for path in paths:
        key = key_of(path)
        if key in primary and path != key + os.path.splitext(path)[1]:
            left_out.add_file(path)
        else:
            chosen.append(path)
    return chosen


def _labeled_list(
    table: MemberTable, paths: Sequence[str], source: str, left_out: LeftOut, *, labeled: bool
) -> ImageList:
    """Return the images `paths`, sorted by class if `table.sorts_by_class`; `labeled` adds the archives' labels."""
    if not paths:
        raise DataError(f"no images in {source}; expected rows or records of images")
    unlabeled = numbers = np.full(len(paths), -1, np.int64)
    classes: tuple[str, ...] = ()
    # Classes determine the order of the images even if they are not used as labels.
    with contextlib.suppress(*() if labeled else (DataError,)):
        numbers, classes = table.classes_of(paths, source)
    order = np.argsort(numbers, kind="stable") if table.sorts_by_class else np.arange(len(paths))
    images = ImageList(
        PathTable(paths[i] for i in order.tolist()),
        numbers[order] if labeled else unlabeled,
        tuple(map(escape_name, classes)) if labeled else (),
        table.root,
        archives=source,
        labels_are_numbers=labeled and bool(classes) and table.labels_are_numbers,
        label_note=table.label_note if labeled else "",
        left_out=left_out,
    )
    return _with_class_names(images)


# --------------------------------------------------------------------------------------------------- folders


def _split_folder(source: Folder, split: str, flag: str, left_out: LeftOut) -> Folder:
    """Return the folder of the split, or `source` if it has no splits.

    DataError is raised if only other splits exist, or if the folder of a split contains splits or could be a class.
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
    similar = [name for name in folders if is_like_split(name)]
    if len(similar) > 1 or (folders and similar == folders):
        example = min(similar, key=lambda name: not name.lower().startswith(split))
        raise DataError(
            f"{source} has no folder '{split}', only {_listed(folders)}; add it, or choose the folder of the images, "
            f"for example {flag} {source / example}; {_class_reading(source, split, flag)}"
        )
    if splits:
        _refuse_two_readings(source, splits[0], split, folders, flag)
    return source


def _refuse_inner_splits(source: Folder, split: str, flag: str) -> None:
    """Raise DataError if a folder that would be a class contains splits, as an unpacked archive often does.

    A single folder is searched three levels deep. If there are several, only the usual names are looked up in each,
    which is fast.
    """
    for _ in range(_OUTER_FOLDERS):
        folders, _ = scan(source, LeftOut())
        for name in folders:
            inner = sorted(SPLIT_NAMES) if len(folders) > 1 else scan(source / name, LeftOut())[0]
            found = [item for item in inner if is_like_split(item) and holds_images(source / name / item)]
            if len(found) > 1:
                raise DataError(
                    f"{flag} {source} is ambiguous: its folder '{name}' has {_listed(found)}; if these are splits, "
                    f"pass {flag} {source / name}; {_class_reading(source, split, flag)}"
                )
        if len(folders) != 1:
            return
        source /= folders[0]


def _refuse_two_readings(source: Folder, found: str, wanted: str, folders: list[str], flag: str) -> None:
    """Raise DataError if `found`, the only folder that is named like a split, is beside other folders with images.

    A folder of class folders beside folders of loose images is not ambiguous: it is a split.
    """
    others = _folders_with_images(source, folders)
    if not has_direct_images(source / found):
        others = [name for name in others if not has_direct_images(source / name)]
    if others:
        remedy = f"pass {flag} {source / found}" if found == wanted else f"move the others to {source / wanted}"
        raise DataError(
            f"{flag} {source} is ambiguous: the folder '{found}' is beside {_listed(others)} with images too; if "
            f"'{found}' is a split, {remedy}; {_class_reading(source, wanted, flag)}"
        )


def is_like_split(folder: str) -> bool:
    """Return whether a folder is named like a split."""
    return _SPLIT_LIKE.fullmatch(folder.lower()) is not None


def _folders_with_images(parent: Folder, folders: list[str]) -> list[str]:
    """Return the folders that hold images and are not named like a split."""
    return [name for name in folders if not is_like_split(name) and holds_images(parent / name)]


def has_direct_images(folder: Folder) -> bool:
    """Return whether a folder itself has images; raise OSError if it cannot be read."""
    return any(is_image(name) for name in scan(folder, LeftOut())[1])


def _class_reading(source: Folder, split: str, flag: str) -> str:
    """Return the remedy for the case that the folders named like splits are classes."""
    if isinstance(source, PackedFolder):
        return "if all folders are classes, pack them into a folder named after the split"
    command = f"mkdir NEW && ln -s {shlex.quote(str(source.absolute()))} NEW/{split}"
    return f"if all folders are classes, run `{command}` and pass {flag} NEW"


def _list_images_or_arrays(folder: Folder, left_out: LeftOut, *, labeled: bool) -> ImageList | None:
    """Return the list of a folder's images, or of its arrays if it has no images; None if it has neither."""
    for suffixes in (EXTENSIONS, ARRAY_EXTENSIONS):
        own = LeftOut()
        images = _list_folder(folder, own, suffixes, labeled=labeled)
        if images is not None or own.suffixes.keys().isdisjoint(ARRAY_EXTENSIONS):
            break
    left_out.add(own)
    return None if images is None else replace(images, left_out=left_out)


def _list_folder(folder: Folder, left_out: LeftOut, suffixes: tuple[str, ...], *, labeled: bool) -> ImageList | None:
    classes, files = scan(folder, left_out)
    loose = images_in(folder, files, left_out, suffixes)
    counts: list[int] = []

    def paths() -> Iterator[str]:
        """Yield the images class by class, so that only the names of some classes are in memory at a time."""
        for found in _images_of_classes(folder, classes, left_out, suffixes):
            counts.append(len(found))
            yield from found

    table = PathTable(paths())
    if len(table) and labeled:
        if 0 in counts:
            empty = classes[counts.index(0)]
            content = LeftOut()
            images_below(folder, empty, content, suffixes)
            raise DataError(
                f"class folder {folder / empty} contains no image ({' '.join(suffixes)}){_contents(content)}; add "
                "images or remove it"
            )
        left_out.loose = Count(len(loose), f"{folder}/{loose[0]}" if loose else "")
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
        return ImageList(table, labels, tuple(map(escape_name, classes)), str(folder), left_out=left_out)
    if loose:
        table = PathTable(itertools.chain(loose, table))
    return (
        ImageList(table, np.full(len(table), -1, np.int64), (), str(folder), left_out=left_out) if len(table) else None
    )


def _images_of_classes(
    folder: Folder, classes: Sequence[str], left_out: LeftOut, suffixes: tuple[str, ...]
) -> Iterator[list[str]]:
    """Yield the images of each class folder, scanning several folders at a time."""

    def scan_class(name: str) -> tuple[list[str], LeftOut]:
        own = LeftOut()
        return images_below(folder, name, own, suffixes), own

    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        for start in range(0, len(classes), _SCANNED_AT_ONCE):
            for found, own in pool.map(scan_class, classes[start : start + _SCANNED_AT_ONCE]):
                left_out.add(own)
                yield found


def _contents(left_out: LeftOut) -> str:
    """Return ", but" with a clause on left-out files that may be or hold images; "" if there are no such files."""
    if pictures := left_out.pictures():
        return f", but {describe_suffixes(pictures)}: convert them to PNG or JPEG"
    for count, kind in left_out.containers():
        return f", but {counted(count.number, 'other file')}; {count.example} is {kind.name}: {REMEDIES[kind.group]}"
    return ""


def describe_suffixes(counts: dict[str, Count]) -> str:
    """Return text such as "12 files of other formats (10 .gif, 2 .heic; for example a/x.gif)"."""
    most = sorted(counts.items(), key=lambda item: -item[1].number)
    kinds = ", ".join(f"{count.number} {suffix or 'without a suffix'}" for suffix, count in most[:_NAMES_SHOWN])
    number = sum(count.number for count in counts.values())
    return f"{counted(number, 'file')} of other formats ({kinds}; for example {most[0][1].example})"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _layouts(source: Path, split: str) -> str:
    if source.suffix in (".txt", ".csv"):
        return "a text file with a 'path label' or a 'path' per line"
    return (
        f"{source}/{split}/<class>/*.jpg, {source}/<class>/*.jpg, {source}/{split}/*.jpg, {source}/*.jpg "
        f"or a text file with a 'path label' or a 'path' per line, or tar, zip or Parquet files"
    )
