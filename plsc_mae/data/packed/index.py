"""Index of a tar or zip archive: the byte position of each member, and labels from webdataset files.

`plsc-mae prepare-data` writes the index of a tar archive to a text file `ARCHIVE.index` beside it, with a line
`OFFSET SIZE LABEL MEMBER` per member, separated by tabs. Without such a file, the index is read from the archive itself
and, if the archive is large, kept in the user's cache folder.
"""

from __future__ import annotations

import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.data.path_table import PathTable
from plsc_mae.errors import DataError
from plsc_mae.files import MARK, atomic_replacement
from plsc_mae.names import escape_name, restore_name

STORED, DEFLATED, ENCRYPTED = 0, 8, -1  # zip's methods, and a mark of encrypted members
SUFFIX = ".index"
ENTRY = np.dtype(
    [("offset", np.int64), ("stored", np.int64), ("size", np.int64), ("method", np.int64), ("crc", np.int64)]
)
_TITLE = f"# tar index, {MARK}, archive of"
_MAX_LINKS = 40  # as in Linux
_DOS = 0  # system whose programs may write backslashes into the names of zip members
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
_CHECKED = 8  # members whose headers are compared with an index file


class Place(NamedTuple):
    """Place of a member in its archive."""

    offset: int  # first byte of the data in a tar archive; of the local header in a zip archive
    stored: int  # number of bytes in the archive
    size: int  # number of bytes of the member
    method: int = STORED  # STORED, DEFLATED, ENCRYPTED or another method of zip
    crc: int = 0  # CRC-32 of the member in a zip archive, else 0


@dataclass(frozen=True)
class Index:
    """Members of an archive, sorted by the bytes of their names."""

    names: PathTable  # n names without leading `./` and `/`; unsafe ones are left out (`safe_name`)
    places: npt.NDArray[np.void]  # n values of ENTRY
    labels: PathTable | None = None  # n labels as text, "" for none; None if no member has one

    @classmethod
    def of(cls, members: Mapping[str, Place]) -> Index:
        """Return the index of members by name."""
        names = sorted(members, key=os.fsencode)
        return cls(PathTable(names), np.array([tuple(members[name]) for name in names], ENTRY))

    def place(self, name: str) -> Place | None:
        """Return the place of a member; None if the archive lacks it."""
        number = self.names.find(name)
        return None if number is None else Place(*self.places[number].item())


def safe_name(name: str) -> str | None:
    """Return the name of a member without empty parts and `.`; None if nothing is left, or for `..` or a zero byte."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if not parts or ".." in parts or "\0" in name else "/".join(parts)


# ---------------------------------------------------------------------------------------------------- archives


def read_tar(path: str) -> Index:
    """Read the headers of an uncompressed tar archive; links are resolved within the archive.

    Raises:
        DataError: the archive is truncated or damaged.
        OSError: the file cannot be read.
    """
    members: dict[str, Place] = {}
    links: dict[str, str] = {}
    size = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            kept: Any = archive  # typeshed lacks `members`
            while (item := archive.next()) is not None:
                kept.members.clear()  # tarfile would keep all of them
                if item.size < 0 or archive.offset > size:  # tarfile may read without end, or fail in other ways
                    raise tarfile.ReadError("unexpected end of data")
                name = safe_name(item.name)
                if name is None:
                    continue
                if item.islnk() or item.issym():
                    links[name] = item.linkname if item.islnk() else os.path.join(os.path.dirname(name), item.linkname)
                elif item.isreg() and not item.issparse():
                    members[name] = Place(item.offset_data, item.size, item.size)
                    links.pop(name, None)
            _require_end(path, archive.offset)
    except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:  # wrong sizes raise the last three
        raise DataError(f"{path} is a damaged tar archive ({error}); copy or pack it again") from None
    _resolve(links, members)
    return Index.of(members)


def _require_end(path: str, offset: int) -> None:
    """Raise DataError unless there is an end mark, a block of zeros, at `offset`, where the last member ends."""
    with open(path, "rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if not block or any(block):
        raise DataError(
            f"{path} is a {'damaged' if block else 'truncated'} tar archive: there is neither a header nor an end "
            f"mark at byte {offset}; copy or pack it again"
        )


def _resolve(links: Mapping[str, str], members: dict[str, Place]) -> None:
    """Add each link that leads to a member, with the place of that member; ignore other links."""
    for name in links:
        target = name
        for _ in range(_MAX_LINKS):
            target = safe_name(os.path.normpath(links[target])) or "" if target in links else target
        if target in members:
            members[name] = members[target]


def read_zip(path: str) -> Index:
    """Read the directory of a zip archive; folders and links are left out.

    Raises:
        DataError: the archive is truncated or damaged.
        OSError: the file cannot be read.
    """
    members: dict[str, Place] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                mode = item.external_attr >> 16
                name = safe_name(_zip_name(item))
                if name is None or item.is_dir() or stat.S_ISLNK(mode):
                    continue
                method = ENCRYPTED if item.flag_bits & 1 else item.compress_type
                members[name] = Place(item.header_offset, item.compress_size, item.file_size, method, item.CRC)
        return Index.of(members)  # OverflowError: a size of more than 63 bits
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise DataError(f"{path} is a damaged zip archive ({error}); copy or pack it again") from None


def _zip_name(item: zipfile.ZipInfo) -> str:
    """Return the name of a member decoded from its bytes in the archive, as `unzip` writes it."""
    name = item.filename
    if not item.flag_bits & 0x800:  # not marked as UTF-8: Python decodes the bytes as code page 437
        name = os.fsdecode(name.encode("cp437"))
    return name.replace("\\", "/") if item.create_system == _DOS else name


def zip_data_offset(descriptor: int, place: Place) -> int:
    """Return the offset of the data of a zip member, after its local header.

    Raises:
        ValueError: there is no local header.
    """
    header = os.pread(descriptor, _LOCAL_HEADER.size, place.offset)
    if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
        raise ValueError("the zip archive is damaged: the member has no header")
    _, name, extra = _LOCAL_HEADER.unpack(header)
    return place.offset + _LOCAL_HEADER.size + int(name) + int(extra)


# ----------------------------------------------------------------------------------------------- index files


def index_path(archive: str | Path) -> Path:
    """Return the path of the index file beside a tar archive."""
    return Path(f"{archive}{SUFFIX}")


def write_index(archive: Path, members: Iterable[tuple[str, Place, str]]) -> None:
    """Write the index file of a finished tar archive.

    Args:
        archive: the archive.
        members: name, place and label ("" for none) of each member.

    Raises:
        OSError: the file cannot be written.
    """
    lines = [f"{_TITLE} {archive.stat().st_size} bytes: offset, size, label, member"]
    lines += [
        f"{place.offset}\t{place.size}\t{escape_name(label)}\t{escape_name(name)}" for name, place, label in members
    ]
    with atomic_replacement(index_path(archive)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_index(archive: str) -> Index | None:
    """Read the index file beside a tar archive; None if it is missing or damaged or does not belong to the archive."""
    members: dict[str, Place] = {}
    labels: dict[str, str] = {}
    try:
        title, *lines = index_path(archive).read_text(encoding="utf-8").splitlines()
        total = os.path.getsize(archive)
        if not title.startswith(f"{_TITLE} {total} bytes"):
            return None
        for line in lines:
            offset, size, label, name = line.split("\t")
            restored = safe_name(restore_name(name))
            if restored is None or not 0 <= int(offset) <= int(offset) + int(size) <= total:
                return None
            members[restored], labels[restored] = Place(int(offset), int(size), int(size)), restore_name(label)
    except (OSError, ValueError):
        return None
    index = Index.of(members)
    if not _belongs(index, archive):
        return None
    return with_labels(index, labels)


def with_labels(index: Index, labels: Mapping[str, str]) -> Index:
    """Return the index with `labels`, given by member name; return it unchanged if all labels are empty."""
    if not any(labels.values()):
        return index
    return Index(index.names, index.places, PathTable(labels.get(name, "") for name in index.names))


def _belongs(index: Index, archive: str) -> bool:
    """Return whether the headers of up to eight members are at the places in the index and give the same sizes."""
    count = min(_CHECKED, len(index.names))
    with open(archive, "rb") as file:
        for number in (i * len(index.names) // count for i in range(count)):
            place = Place(*index.places[number].item())
            file.seek(max(0, place.offset - tarfile.BLOCKSIZE))
            try:
                header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
            except tarfile.TarError:
                return False
            if header.size != place.size:
                return False
    return True
