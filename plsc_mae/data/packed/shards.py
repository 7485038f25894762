"""Writes images to tar shards of limited size, each with its index, so that an interrupted call can continue.

A shard gets its final name when it is complete. `prepare.json`, rewritten after each shard, records the progress.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from plsc_mae.data.packed.index import Place, write_index
from plsc_mae.errors import DataError
from plsc_mae.files import MARK, atomic_replacement, refuse_foreign
from plsc_mae.names import as_json

RECORD = "prepare.json"
PACKING_OPTIONS = ("short", "quality", "shards")  # the other recorded options identify the images


class Shard(NamedTuple):
    """Complete shard."""

    name: str  # file name
    size: int  # number of bytes
    images: int  # number of images
    end: int  # number of images of the source up to the end of this shard, packed or left out


@dataclass
class PackRecord:
    """Content of `prepare.json`: the options and the progress of packing."""

    options: dict[str, Any]  # number and digest of the images, and the options that determine the shards
    shards: list[Shard] = field(default_factory=list)  # the complete shards
    finished: bool = False  # whether all images are packed

    @property
    def end(self) -> int:
        """Number of images of the source that are packed or left out."""
        return self.shards[-1].end if self.shards else 0

    def save(self, folder: Path) -> None:
        """Write the record; raise OSError if that fails."""
        content = {"origin": MARK, **dataclasses.asdict(self)}
        with atomic_replacement(folder / RECORD) as temporary:
            temporary.write_text(as_json(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, folder: Path, options: dict[str, Any]) -> PackRecord:
        """Return the record of a folder up to the first missing or changed shard.

        A folder that does not exist, or has hidden files only, gets a new record.

        Raises:
            DataError: the folder holds other files, or shards of other images or options.
            OSError: the folder cannot be read.
        """
        if not folder.exists() or (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())):
            return cls(options)
        try:
            content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            stored = dict(content["options"])
            shards = [
                Shard(str(name), int(size), int(images), int(end)) for name, size, images, end in content["shards"]
            ]
            finished = bool(content["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{folder} exists and holds no unfinished shards; choose a new or empty folder") from None
        different = {name: stored.get(name) for name in options if stored.get(name) != options[name]}
        if different:
            raise DataError(
                f"{folder} holds shards {_origin(different)}; repeat the command that wrote them, or choose "
                "another folder"
            )
        intact = [shard for shard in shards if _size(folder / shard.name) == shard.size]
        if len(intact) < len(shards):
            return cls(options, shards[: next(i for i, shard in enumerate(shards) if shard not in intact)])
        return cls(options, shards, finished)


def _origin(options: Mapping[str, Any]) -> str:
    """Return a clause about the command that wrote the shards, from those of its options that differ."""
    if not options.keys() <= set(PACKING_OPTIONS):
        return "of other images"
    flags = (f"without --{name}" if value is None else f"with --{name} {value}" for name, value in options.items())
    return f"that were packed {', '.join(flags)}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


class ShardWriter:
    """Writer of members to the shards of a folder, PREFIX-000000.tar and so on.

    Args:
        folder: the folder; it is created if necessary.
        prefix: start of the names of the shards.
        most_bytes: maximum size of a shard in bytes before tar's padding of up to 10 kB; a single image may exceed it.
        record: record of the folder; its shards are kept.
    """

    def __init__(self, folder: Path, prefix: str, most_bytes: int, record: PackRecord) -> None:
        self.folder, self.prefix, self.most_bytes, self.record = folder, prefix, most_bytes, record
        folder.mkdir(parents=True, exist_ok=True)
        self._archive: tarfile.TarFile | None = None
        self._members: list[tuple[str, Place, str]] = []
        self._end = record.end

    @property
    def shard_name(self) -> str:
        """Name of the shard that is being written."""
        return f"{self.prefix}-{len(self.record.shards):06d}.tar"

    @property
    def _partial(self) -> Path:
        return self.folder / f".{self.shard_name}.partial"

    def add(self, name: str, content: bytes) -> str:
        """Write a member and return the name of its shard.

        Raises:
            DataError: a file that this command did not write has the name of the shard.
            OSError: the shard cannot be written.
        """
        info = tarfile.TarInfo(name)
        info.size = len(content)
        padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if self._archive is not None and self._archive.offset + padded + 3 * tarfile.BLOCKSIZE > self.most_bytes:
            self._complete()
        if self._archive is None:
            self._archive = self._start()
        self._archive.addfile(info, io.BytesIO(content))
        self._members.append((name, Place(self._archive.offset - padded, len(content), len(content)), ""))
        self._end += 1
        return self.shard_name

    def skip(self) -> None:
        """Count the next image of the source as left out."""
        self._end += 1

    def finish(self) -> None:
        """Complete the last shard and record that all images are packed; raise OSError if that fails."""
        if self._archive is not None:
            self._complete()
        self.record.finished = True
        self.record.save(self.folder)

    def _start(self) -> tarfile.TarFile:
        path = self.folder / self.shard_name
        try:
            refuse_foreign(path)
        except FileExistsError:
            raise DataError(f"{path} exists and is not a shard of this command; choose a new or empty folder") from None
        if not self.record.shards:
            self.record.save(self.folder)
        return tarfile.open(
            self._partial, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": MARK}, encoding="utf-8"
        )

    def _complete(self) -> None:
        assert self._archive is not None
        self._archive.close()
        path = self.folder / self.shard_name
        with open(self._partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self._partial, path)
        write_index(path, self._members)
        self.record.shards.append(Shard(path.name, path.stat().st_size, len(self._members), self._end))
        self.record.save(self.folder)
        self._archive, self._members = None, []
