"""Tar and zip archives, with labels from the webdataset files in them."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from plsc_mae.data import list_cache
from plsc_mae.data.folder_walk import is_image
from plsc_mae.data.packed import index as indexes
from plsc_mae.data.packed.archive import Archive, ByteRange, descriptor_of
from plsc_mae.data.packed.index import DEFLATED, ENCRYPTED, STORED, Index, Place
from plsc_mae.data.path_table import PathTable
from plsc_mae.errors import DataError

CACHED_BYTES = 16 << 20  # indexes of smaller archives are read again
_LABEL_BYTES = 1 << 16  # of a .cls or .json file; labels in larger files are not read
_JSON_LABELS = ("label", "cls", "class")
_FORMAT = 1  # of the cached index


class IndexedArchive(Archive):
    """Tar or zip archive.

    Args:
        path: the file.
        is_zip: False for a tar archive.

    Attributes:
        index: places and labels of the members.

    Raises:
        DataError: the archive is damaged, or a label in it cannot be read.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str, *, is_zip: bool) -> None:
        super().__init__(path)
        self._is_zip = is_zip
        self.index = self._known_index() or self._read_index()

    def _known_index(self) -> Index | None:
        """Return the index from the file beside the archive or from the cache; None without a valid one."""
        if not self._is_zip and (index := indexes.read_index(self.path)) is not None:
            return index
        arrays = list_cache.load(self._cache_entry()) if self.stamp.size >= CACHED_BYTES else None
        if arrays is None:
            return None
        try:
            names, labels = (
                PathTable.from_arrays(arrays[name], arrays[f"{name}_ends"]) for name in ("names", "labels")
            )
            return Index(names, arrays["places"].astype(indexes.ENTRY), labels if len(labels) else None)
        except (KeyError, ValueError):
            return None

    def _read_index(self) -> Index:
        """Read the index from the archive, and keep that of a large archive in the cache."""
        self.index = indexes.read_zip(self.path) if self._is_zip else indexes.read_tar(self.path)
        index = indexes.with_labels(self.index, dict(self._labels()))
        if self.stamp.size >= CACHED_BYTES:
            arrays: list_cache.Arrays = {"places": index.places}
            for name, table in {"names": index.names, "labels": index.labels or PathTable(())}.items():
                arrays[name], arrays[f"{name}_ends"] = table.arrays()
            list_cache.store(self._cache_entry(), arrays)
        return index

    def _cache_entry(self) -> Path:
        return list_cache.entry("indexes", _FORMAT, os.path.realpath(self.path), tuple(self.stamp))

    def open_member(self, member: str) -> tuple[IO[bytes], int]:
        """See `Archive.open_member`."""
        place = self.index.place(member)
        if place is None:
            raise self.missing(member)
        descriptor = descriptor_of(self.path)
        start = indexes.zip_data_offset(descriptor, place) if self._is_zip else place.offset
        stored = ByteRange(descriptor, start, place.stored)
        if place.method == STORED:
            return io.BufferedReader(stored), place.size
        return io.BytesIO(_inflate(stored, place)), place.size

    def _labels(self) -> Iterator[tuple[str, str]]:
        """Yield (image, label) for images with a webdataset label file: `KEY.cls`, or `KEY.json` in the top folder."""
        origins: dict[str, str] = {}  # label file by key
        for name in self.index.names:
            if name.endswith(".cls"):
                origins[key_of(name)] = name
            elif name.endswith(".json") and "/" not in name:
                origins.setdefault(key_of(name), name)
        for name in self.index.names if origins else ():
            origin = origins.get(key_of(name))
            if origin is not None and is_image(name):
                yield name, self._label_in(origin)

    def _label_in(self, member: str) -> str:
        """Return the label in a .cls or .json file; "" if it has none or is larger than 64 KiB."""
        try:
            file, size = self.open_member(member)
        except ValueError as error:
            raise DataError(f"cannot read the label {self.path}/{member}: {error}") from None
        with file:
            text = file.read().decode("utf-8", "surrogateescape").strip() if size <= _LABEL_BYTES else ""
        if member.endswith(".cls"):
            return text
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return ""
        values = [content[name] for name in _JSON_LABELS if name in content] if isinstance(content, dict) else []
        return str(values[0]) if values and isinstance(values[0], (int, str)) else ""


def key_of(name: str) -> str:
    """Return webdataset's key of a member, which ends at the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _inflate(stored: ByteRange, place: Place) -> bytes:
    """Decompress a member; raise ValueError if it is encrypted, not compressed by deflate, or damaged."""
    if place.method == ENCRYPTED:
        raise ValueError("the member is encrypted; unpack the archive with its password")
    if place.method != DEFLATED:
        raise ValueError(f"the member is compressed by zip's method {place.method}; pack the archive with deflate")
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored.readall(), place.size + 1)
    except zlib.error as error:
        raise ValueError(f"the member is damaged ({error})") from None
    if len(content) != place.size or zlib.crc32(content) != place.crc:
        raise ValueError("the member is damaged: its size or checksum differs from the archive's directory")
    return content
