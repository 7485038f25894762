"""Walk of image folders: the images in torchvision's order, and a count of the files that are left out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plsc_mae.errors import DataError
from plsc_mae.file_kinds import EMPTY, FileKind, read_head, recognize

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
ARRAY_EXTENSIONS = (".npy", ".npz")  # images only in folders without files of EXTENSIONS
# Written by operating systems, network storage, archivers and notebooks; names with a leading dot are hidden as well.
SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "lost+found", "$recycle.bin"}
    | {"system volume information", "recycler", "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot"}
    | {"@synoresource", "@recently-snapshot", "@__thumb"}
    | {"network trash folder", "temporary items", "__pycache__"}
)
# Images that are recognized by their suffix; others are recognized by their first bytes.
OTHER_FORMATS = frozenset(
    {".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".jfif", ".jpe", ".ico", ".tga", ".psd", ".svg"}
    | {".dcm", ".nii", ".npy", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".exr", ".hdr", ".pbm", ".pnm", ".fits"}
)
_MAX_SUFFIXES = 100  # names such as run.1234 have a suffix each; the rest are counted together


class Count(NamedTuple):
    """Number of files and the path of the first."""

    number: int
    example: str


class LeftOut:
    """Files and folders of a data set that are not used.

    Attributes:
        hidden: hidden and system files and folders.
        loose: images beside class folders.
        suffixes: other files by lower-case suffix.
    """

    def __init__(self) -> None:
        self.hidden = Count(0, "")
        self.loose = Count(0, "")
        self.suffixes: dict[str, Count] = {}

    def add_hidden(self, path: str) -> None:
        """Count a hidden or system file or folder."""
        self.hidden = Count(self.hidden.number + 1, self.hidden.example or path)

    def add_file(self, path: str) -> None:
        """Count a file without a suffix of EXTENSIONS."""
        suffix = os.path.splitext(path)[1].lower()
        if suffix not in self.suffixes and len(self.suffixes) >= _MAX_SUFFIXES:
            suffix = "..."
        number, example = self.suffixes.get(suffix, (0, path))
        self.suffixes[suffix] = Count(number + 1, example)

    def pictures(self) -> dict[str, Count]:
        """Return the counts of left-out images by suffix: suffixes in OTHER_FORMATS or whose first file is an image."""
        found = {}
        for suffix, count in self.suffixes.items():
            kind = None if suffix in OTHER_FORMATS else _kind(count.example)
            if suffix in OTHER_FORMATS or (kind is not None and kind.group == "picture"):
                found[suffix] = count
        return found

    def containers(self) -> Iterator[tuple[Count, FileKind]]:
        """Yield the count and kind of files that may hold images: archives, tables of arrays, videos."""
        for suffix, count in self.suffixes.items():
            kind = None if suffix in OTHER_FORMATS else _kind(count.example)
            if kind is not None and kind.group in ("archive", "table", "encoding", "other") and kind.name != EMPTY:
                yield count, kind


def is_image(name: str) -> bool:
    """Return whether a file name has one of EXTENSIONS."""
    return name.lower().endswith(EXTENSIONS)


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden or belongs to a system, such as `.DS_Store`, `._a.png` or `@eaDir`."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def scan(folder: str | Path, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Return the sorted names of the (folders, files) in a folder; hidden ones are only counted in `left_out`."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                left_out.add_hidden(entry.path)
            elif _is_folder(entry):
                folders.append(entry.name)
            else:
                files.append(entry.name)
    return sorted(folders), sorted(files)


def images_in(
    folder: str | Path, files: list[str], left_out: LeftOut, suffixes: tuple[str, ...] = EXTENSIONS
) -> list[str]:
    """Return those of `files` in a folder that have one of `suffixes`; other files are counted in `left_out`."""
    images = []
    for name in files:
        if name.lower().endswith(suffixes):
            images.append(name)
        else:
            left_out.add_file(os.path.join(folder, name))
    return images


def images_below(folder: Path, name: str, left_out: LeftOut, suffixes: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Return the images in `folder/name` and its subfolders, relative to `folder`, in torchvision's order.

    Raises:
        DataError: a link leads back to a folder above.
        OSError: a folder cannot be read.
    """
    images: list[str] = []
    for subfolder, files in sorted(_walk(str(folder / name), (_identity(folder),), left_out)):
        prefix = os.path.relpath(subfolder, folder)
        images += [os.path.join(prefix, file) for file in images_in(subfolder, files, left_out, suffixes)]
    return images


def holds_images(folder: Path) -> bool:
    """Return whether there is an image in a folder or below; False if the folder cannot be searched."""
    with contextlib.suppress(OSError, DataError):
        return any(is_image(name) for _, files in _walk(str(folder), (), LeftOut()) for name in files)
    return False


def _walk(folder: str, ancestors: tuple[tuple[int, int], ...], left_out: LeftOut) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, file names) for a folder and its subfolders, following links.

    Raises:
        DataError: a link leads back to one of the `ancestors` (device and inode numbers) or to a folder below them.
        OSError: a folder cannot be read.
    """
    identity = _identity(folder)
    if identity in ancestors:
        raise DataError(f"{folder} is a link to a parent folder, and the search would never end; remove the link")
    folders, files = scan(folder, left_out)
    yield folder, files
    for name in folders:
        yield from _walk(os.path.join(folder, name), (*ancestors, identity), left_out)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: treat it as a file, and reading it raises the error
        return False


def _kind(path: str) -> FileKind | None:
    with contextlib.suppress(OSError):
        return recognize(read_head(path))
    return None
