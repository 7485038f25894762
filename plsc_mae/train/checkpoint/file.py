"""Training checkpoints: written whole or not at all, checksummed, found again after a crash.

A file is a pickle of plain dictionaries, numbers and NumPy arrays, which `paddle.load` opens too, followed by a footer
that the pickle format ignores: a line of JSON with the SHA-256 of the pickle, epoch, step and its own CRC, its length,
and a magic word. Reading goes through the safe reader.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.reader import Checkpoint, read_file

logger = logging.getLogger(__name__)

MAGIC = b"PLSCMAE1"
FOOTER = {"sha256", "bytes", "epoch", "step"}
TEMPORARY = ".tmp"  # added to the name of a file that is being written
CHUNK = 1 << 22


class _HashingFile:
    """A file that hashes what is written to it.

    A disk that is full shows in `failure` and not in an exception: other processes may take part in making the rest of
    a checkpoint, so it is made to its end.
    """

    def __init__(self, path: Path) -> None:
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None
        self._file: BinaryIO | None = None
        with self._noting_failure():
            self._file = open(path, "wb")  # noqa: SIM115  # closed by `close`

    def write(self, data: bytes) -> int:
        size = memoryview(data).nbytes
        self.sha256.update(data)
        self.size += size
        if self._file is not None and self.failure is None:
            with self._noting_failure():
                self._file.write(data)
        return size

    def close(self) -> None:
        """Flush to the disk and end; raises the first failure."""
        if self._file is not None:
            with self._noting_failure(), self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
        if self.failure is not None:
            raise self.failure

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error


def checkpoint_path(output_dir: str, exp_name: str, tag: int | str) -> Path:
    """`{exp_name}_checkpoint-{tag}.pd`, where the tag is the epoch, or `latest`, `previous` or `best`."""
    return Path(output_dir) / f"{exp_name + '_' if exp_name else ''}checkpoint-{tag}.pd"


def save(path: Path, state: dict[str, Any], *, predecessor: Path | None = None) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, read it back, then give it its name.

    Args:
        path: final name.
        state: plain data and arrays; must have the integers `epoch` and `step`.
        predecessor: name that the file now at `path` gets, if there is one.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; older checkpoints are untouched.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        _write(temporary, state)
        verify(temporary)
        _give_name(temporary, path, predecessor)
    except (OSError, CheckpointError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "what was read back is not what was written"
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {reason}; earlier checkpoints are untouched"
        ) from None


def _write(path: Path, state: dict[str, Any]) -> None:
    file = _HashingFile(path)
    dump(state, file)
    footer = {"sha256": file.sha256.hexdigest(), "bytes": file.size, "epoch": state["epoch"], "step": state["step"]}
    encoded = json.dumps(footer | {"crc": _crc(footer)}).encode()
    file.write(encoded + struct.pack("<Q", len(encoded)) + MAGIC)
    file.close()
    with open(path, "rb") as written:  # so that reading it back asks the disk, where the system can
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _give_name(temporary: Path, path: Path, predecessor: Path | None) -> None:
    """Put a file that is on the disk in the place of `path`, and then that one in the place of its predecessor.

    At no moment, and in no order in which a machine without power forgets renames, is there neither: the old
    predecessor goes when the new file has its name for good.
    """
    spare = None
    if predecessor is not None and path.exists():
        spare = predecessor.with_name(predecessor.name + TEMPORARY)
        spare.unlink(missing_ok=True)
        try:
            os.link(path, spare)
        except OSError:  # a file system without links: it costs a copy
            shutil.copyfile(path, spare)
    os.replace(temporary, path)
    sync_folder(path.parent)
    if predecessor is not None and spare is not None:
        os.replace(spare, predecessor)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc(footer: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(footer).encode())


def read_footer(path: Path) -> dict[str, Any]:
    """Read what the footer tells, without reading the file.

    Raises:
        CheckpointError: there is none, so the file was cut off or is not a training checkpoint of this suite.
    """
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            end = file.tell()
            tail = 8 + len(MAGIC)
            if end > tail:
                file.seek(end - tail)
                size, magic = struct.unpack("<Q", file.read(8))[0], file.read()
                if magic == MAGIC and size < end - tail:
                    file.seek(end - tail - size)
                    footer = json.loads(file.read(size))
                    # Files of earlier versions have no crc.
                    if footer.pop("crc", None) in (None, _crc(footer)) and footer.keys() == FOOTER:
                        return footer
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError):
        pass  # damaged JSON: the sentence below tells
    raise CheckpointError(
        f"{path} is not a complete training checkpoint of plsc_mae; expected a checkpoint-*.pd that a run has finished "
        "writing"
    )


def verify(path: Path) -> dict[str, Any]:
    """Compare the file with its checksum; returns the footer.

    Raises:
        CheckpointError: the file is damaged.
    """
    footer = read_footer(path)
    sha256, left = hashlib.sha256(), footer["bytes"]
    try:
        with open(path, "rb") as file:
            while left and (chunk := file.read(min(CHUNK, left))):
                sha256.update(chunk)
                left -= len(chunk)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    if left or sha256.hexdigest() != footer["sha256"]:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    return footer


def load(path: Path) -> Checkpoint:
    """Verify and read a checkpoint; nothing in it is executed."""
    verify(path)
    return read_file(path)


def find_newest(output_dir: str, exp_name: str) -> Path | None:
    """The undamaged checkpoint of a run that has come furthest, or None; damaged ones are warned about."""
    candidates = []
    for path in all_of(output_dir, exp_name):
        try:
            candidates.append((read_footer(path)["step"], path.stat().st_mtime, path))
        except (CheckpointError, OSError) as error:
            logger.warning("passed over: %s", error)
    for _, _, path in sorted(candidates, reverse=True):
        try:
            verify(path)
            return path
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    return None


def is_saved(path: Path, step: int) -> bool:
    """Whether a whole checkpoint of that step is at `path`, as far as its footer tells."""
    try:
        return path.exists() and read_footer(path)["step"] == step
    except CheckpointError:
        return False


def remove_older(output_dir: str, exp_name: str, epoch: int, keep: int) -> None:
    """Of the checkpoints numbered up to `epoch`, leave the `keep` newest whole ones and remove those before.

    Damaged ones do not count, so that the others are as many as were asked for.
    """
    numbered = []
    for path in all_of(output_dir, exp_name):
        number = path.stem.rpartition("-")[2]
        if number.isdecimal() and int(number) <= epoch:
            with contextlib.suppress(CheckpointError):
                read_footer(path)
                numbered.append((int(number), path))
    for _, path in sorted(numbered)[:-keep]:
        try:
            path.unlink()
        except OSError as error:
            logger.warning("cannot remove %s, which --keep_last %d asks for: %s", path, keep, error.strerror)


def remove_leftovers(output_dir: str, exp_name: str) -> None:
    """Delete half-written files of a run that was killed while saving."""
    for path in all_of(output_dir, exp_name, TEMPORARY):
        path.unlink()


def all_of(output_dir: str, exp_name: str, suffix: str = "") -> list[Path]:
    """The checkpoint files of a run, damaged ones too, or those with a suffix behind their names."""
    name = checkpoint_path("", glob.escape(exp_name), "*").name
    return list(Path(output_dir).glob(name + suffix))


PICKLE_PROTOCOL = 4  # what paddle.save writes; readable by Paddle 2 and 3


class Writable(Protocol):
    """What takes bytes."""

    def write(self, data: bytes) -> Any:
        """Write them."""
        ...


class LazyDict:
    """A dictionary that is made while it is written.

    Args:
        items: makes its entries; called once.
    """

    def __init__(self, items: Callable[[], Iterator[tuple[str, Any]]]) -> None:
        self.items = items


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Write a `LazyDict` as a plain dictionary."""
        if isinstance(obj, LazyDict):
            return dict, (), None, None, obj.items()
        return NotImplemented


def dump(state: Any, file: Writable) -> None:
    """Pickle plain data, arrays and `LazyDict` dictionaries; nothing may refer to itself."""
    pickler = _Pickler(file, PICKLE_PROTOCOL)
    pickler.fast = True  # without a memo of what was written, which would keep all of it in memory
    pickler.dump(state)
