"""Walk of image folders: the images in torchvision's order, and a count of the files that are left out.

Folders in archives (`PackedFolder`) are walked by the same rules as those on disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plsc_mae.data.packed.folder import PackedFolder
from plsc_mae.errors import DataError
from plsc_mae.file_kinds import EMPTY, FileKind, read_head, recognize

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
ARRAY_EXTENSIONS = (".npy", ".npz")  # used only in folders without files of EXTENSIONS
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

Folder = Path | PackedFolder


class Count(NamedTuple):
    """Number of files or folders, and the path of the first."""

    number: int
    example: str


class LeftOut:
    """Files and folders of a data set that are not used.

    Attributes:
        hidden: hidden and system files and folders.
        loose: images beside class folders.
        suffixes: other files by lower-case suffix, those beyond the first 100 suffixes under "...".
    """

    def __init__(self) -> None:
        self.hidden = Count(0, "")
        self.loose = Count(0, "")
        self.suffixes: dict[str, Count] = {}

    def add_hidden(self, path: str) -> None:
        """Count a hidden or system file or folder."""
        self.hidden = Count(self.hidden.number + 1, self.hidden.example or path)

    def add_file(self, path: str) -> None:
        """Count a file that is not used, by its suffix."""
        suffix = os.path.splitext(path)[1].lower()
        if suffix not in self.suffixes and len(self.suffixes) >= _MAX_SUFFIXES:
            suffix = "..."
        number, example = self.suffixes.get(suffix, (0, path))
        self.suffixes[suffix] = Count(number + 1, example)

    def add(self, other: LeftOut) -> None:
        """Add the counts of another part of the data set."""
        self.hidden = _sum(self.hidden, other.hidden)
        self.loose = _sum(self.loose, other.loose)
        for suffix, count in other.suffixes.items():
            name = suffix if suffix in self.suffixes or len(self.suffixes) < _MAX_SUFFIXES else "..."
            self.suffixes[name] = _sum(self.suffixes.get(name, Count(0, "")), count)

    def pictures(self) -> dict[str, Count]:
        """Return the counts of left-out images by suffix.

        The files of a suffix count as images if it is in OTHER_FORMATS or if the first of them is an image.
        """
        found = {}
        for suffix, count in self.suffixes.items():
            kind = None if suffix in OTHER_FORMATS else _kind(count.example)
            if suffix in OTHER_FORMATS or (kind is not None and kind.group == "picture"):
                found[suffix] = count
        return found

    def containers(self) -> Iterator[tuple[Count, FileKind]]:
        """Yield (count, file kind) for each suffix of archives, tables, UTF-16 text or other binary files.

        The first file of a suffix determines its kind. Left out are weight files, suffixes in OTHER_FORMATS, and
        suffixes whose first file is empty.
        """
        for suffix, count in self.suffixes.items():
            kind = None if suffix in OTHER_FORMATS else _kind(count.example)
            if kind is not None and kind.group in ("archive", "table", "encoding", "other") and kind.name != EMPTY:
                yield count, kind


def _sum(one: Count, other: Count) -> Count:
    return Count(one.number + other.number, one.example or other.example)


def is_image(name: str) -> bool:
    """Return whether a file name has one of EXTENSIONS."""
    return name.lower().endswith(EXTENSIONS)


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden or belongs to a system, such as `.DS_Store`, `._a.png` or `@eaDir`."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def scan(folder: Folder, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Return (folders, files), the sorted names in a folder; count hidden ones in `left_out`.

    Raises:
        OSError: the folder cannot be read.
    """
    folders: list[str] = []
    files: list[str] = []
    for name, is_folder in _entries(folder):
        if is_hidden(name):
            left_out.add_hidden(f"{folder}/{name}")
        else:
            (folders if is_folder else files).append(name)
    return sorted(folders), sorted(files)


def _entries(folder: Folder) -> Iterator[tuple[str, bool]]:
    """Yield the name of each entry of a folder and whether it is a folder."""
    if isinstance(folder, PackedFolder):
        yield from ((name, True) for name in sorted(folder.tree.folders_in(folder.inner)))
        yield from ((name, False) for name in sorted(folder.tree.files_in(folder.inner)))
        return
    for scanned in _recorded:
        scanned.append(FolderStamp.of(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name, _is_folder(entry)


def images_in(folder: Folder, files: list[str], left_out: LeftOut, suffixes: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Return the `files` of a folder that have one of `suffixes`; count the others in `left_out`.

    For a folder on disk the result has names; for a folder in archives it has paths that start with the archive.
    """
    images = []
    for name in files:
        if name.lower().endswith(suffixes):
            images.append(name)
        else:
            left_out.add_file(f"{folder}/{name}")
    return folder.paths(images) if isinstance(folder, PackedFolder) else images


def images_below(folder: Folder, name: str, left_out: LeftOut, suffixes: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Return the images in `folder/name` and its subfolders in torchvision's order.

    Their paths are relative to `folder`; in archives they start with the archive.

    Raises:
        DataError: a link leads back to a folder above.
        OSError: a folder cannot be read.
    """
    images: list[str] = []
    ancestors = () if isinstance(folder, PackedFolder) else (_identity(folder),)
    for subfolder, files in sorted(_walk(folder / name, ancestors, left_out), key=lambda item: str(item[0])):
        found = images_in(subfolder, files, left_out, suffixes)
        if isinstance(folder, PackedFolder):
            images += found
        else:
            prefix = os.path.relpath(str(subfolder), folder)
            images += [f"{prefix}/{file}" for file in found]
    return images


def holds_images(folder: Folder) -> bool:
    """Return whether a folder or one of its subfolders contains an image; False if it cannot be searched."""
    with contextlib.suppress(OSError, DataError):
        return any(is_image(name) for _, files in _walk(folder, (), LeftOut()) for name in files)
    return False


def _walk(
    folder: Folder, ancestors: tuple[tuple[int, int], ...], left_out: LeftOut
) -> Iterator[tuple[Folder, list[str]]]:
    """Yield (folder, file names) for a folder and its subfolders, following links.

    DataError is raised for a link back to a parent folder; `ancestors` are the (device, inode) of those above `folder`.
    """
    if not isinstance(folder, PackedFolder):
        identity = _identity(folder)
        if identity in ancestors:
            raise DataError(f"{folder} is a link to a parent folder, and the search would never end; remove the link")
        ancestors = (*ancestors, identity)
    folders, files = scan(folder, left_out)
    yield folder, files
    for name in folders:
        yield from _walk(folder / name, ancestors, left_out)


class FolderStamp(NamedTuple):
    """Identity of a folder, and the time at which one of its entries was last added, removed or renamed."""

    path: str
    device: int
    inode: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | Path) -> FolderStamp:
        """Return the stamp of a folder; raise OSError if it cannot be examined."""
        status = os.stat(path)
        return cls(str(path), status.st_dev, status.st_ino, status.st_mtime_ns)


_recorded: list[list[FolderStamp]] = []  # a list per active context of `recording_scans`


@contextlib.contextmanager
def recording_scans() -> Iterator[list[FolderStamp]]:
    """Yield a list to which, until the context ends, each scan of a folder on disk first adds the folder's stamp."""
    scanned: list[FolderStamp] = []
    _recorded.append(scanned)
    try:
        yield scanned
    finally:
        del _recorded[next(i for i, stamps in enumerate(_recorded) if stamps is scanned)]  # not an equal list


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
