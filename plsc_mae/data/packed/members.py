"""Opens members of archives by paths such as `shards/0.tar/cat/0.jpg`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from plsc_mae.data.packed.archive import Archive, Stamp, forget_descriptor
from plsc_mae.data.packed.binaries import BinaryArchive, layout_of
from plsc_mae.data.packed.indexed import IndexedArchive
from plsc_mae.data.packed.rows import RowArchive
from plsc_mae.errors import ConfigError
from plsc_mae.file_kinds import FileKind, read_head, recognize

SUFFIXES = (".tar", ".zip", ".parquet", ".arrow")

_archives: dict[str, Archive] = {}  # by path; forked workers inherit them


def is_archive(path: str | Path) -> bool:
    """Return whether a file is an archive, judged by its content or, if the format has no signature, by its name.

    Raises:
        OSError: the file cannot be read.
    """
    return _kind(path) in ("a tar archive", "a zip archive", "a Parquet file", "an Arrow file", "a binary data set")


def describe(path: str | Path) -> FileKind | None:
    """Return the kind of a file, None for text of no known format; raise OSError if it cannot be read."""
    return recognize(read_head(path))


def _kind(path: str | Path) -> str:
    if layout_of(Path(path)) is not None:
        return "a binary data set"
    kind = recognize(read_head(path))
    if str(path).endswith(".arrow"):  # the stream format has no signature
        return "an Arrow file"
    return "" if kind is None else kind.name


def open_archive(path: str) -> Archive:
    """Return the archive in a file; if the file has changed since an earlier call, it is read again.

    Raises:
        DataError: the archive cannot be used: it is damaged, for example, or has no column of images.
        ConfigError: the package for this kind cannot be imported.
        OSError: the file cannot be read, or is not an archive.
    """
    known = _archives.get(path)
    if known is None or known.stamp != Stamp.of(path):
        forget_descriptor(path)
        known = _archives[path] = _read(path)
    return known


def _read(path: str) -> Archive:
    kind = _kind(path)
    if kind == "a binary data set":
        return BinaryArchive(path)
    if kind in ("a Parquet file", "an Arrow file"):
        return RowArchive(path, is_parquet=kind == "a Parquet file")
    if kind in ("a tar archive", "a zip archive"):
        return IndexedArchive(path, is_zip=kind == "a zip archive")
    raise NotADirectoryError(None, "it is neither a folder nor an archive", path)


def split_member(path: str) -> tuple[str, str] | None:
    """Split a path into (archive, member), at the parent that is a file; return None if no parent is a file."""
    for is_file in (_archives.__contains__, os.path.isfile):
        archive = path
        while "/" in archive:
            archive = archive.rpartition("/")[0]
            if is_file(archive):
                return archive, path[len(archive) + 1 :]
    return None


def open_member(path: str) -> tuple[IO[bytes], int]:
    """Return the content of a member of an archive as an open file, and its size in bytes.

    Raises:
        OSError: the path leads into no archive, there is no such member, or the archive cannot be read.
        ValueError: see `Archive.open_member`.
        DataError: see `open_archive`.
        ConfigError: see `open_archive`.
    """
    parts = split_member(path)
    if parts is None:
        raise FileNotFoundError(None, "no such file", path)
    known = _archives.get(parts[0])
    return (known or open_archive(parts[0])).open_member(parts[1])


def is_member(path: str) -> bool:
    """Return whether a path leads to a member of an archive that can be opened."""
    try:
        open_member(path)[0].close()
    except ConfigError:  # a subclass of ValueError
        raise
    except (OSError, ValueError):
        return False
    return True
