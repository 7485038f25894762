"""Checkpoint files: written atomically, with a checksum, and found again after a crash.

A file is a pickle of plain data and NumPy arrays, which `paddle.load` opens too. It ends with a footer that unpickling
ignores: JSON with epoch, step, id of the run, if any, size and SHA-256 of the pickle, and a CRC of these values; then
the length of the JSON and a magic number. Files are read by the safe reader, which executes nothing.
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

from plsc_mae.errors import CheckpointError, remedies
from plsc_mae.parallel import activity
from plsc_mae.weights.folders import describe_run_folder
from plsc_mae.weights.reader import Checkpoint, read_file
from plsc_mae.weights.remote import fetch_advice

logger = logging.getLogger(__name__)

MAGIC = b"PLSCMAE1"
FOOTER = {"sha256", "bytes", "epoch", "step"}
RUN = "run"  # id of the run in the footer and the content; earlier versions wrote none
TEMPORARY = ".tmp"  # suffix of a file that is being written
CHUNK = 1 << 22


class _HashingFile:
    """Output file that computes the SHA-256 of its content.

    A disk error is stored in `failure` and raised only by `close`: other processes send their tensors while the
    checkpoint is written, so `write` must not fail before all of them are received.
    """

    def __init__(self, path: Path) -> None:
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None
        self._file: BinaryIO | None = None
        with self._noting_failure():
            self._file = open(path, "wb")  # noqa: SIM115  # closed by `close`

    def write(self, data: bytes) -> int:
        """Write `data`, add it to checksum and size, and return its length; after a failure, write nothing more."""
        activity.tick()  # a slow disk is not a hang
        size = memoryview(data).nbytes
        self.sha256.update(data)
        self.size += size
        if self._file is not None and self.failure is None:
            with self._noting_failure():
                self._file.write(data)
        return size

    def close(self) -> None:
        """Flush the file to the disk and close it.

        Raises:
            OSError: the first disk error since the file was opened.
        """
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
    """Return the path `checkpoint-{tag}.pd` with the prefix `{exp_name}_`, if any.

    The tag is an epoch, "latest", "previous" or "best".
    """
    return Path(output_dir) / f"{exp_name + '_' if exp_name else ''}checkpoint-{tag}.pd"


def save(path: Path, state: dict[str, Any], *, predecessor: Path | None = None) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, read it back to verify it, then rename it.

    Args:
        path: final path.
        state: plain data, arrays and `LazyDict`, with the integers `epoch` and `step`, and `run`, the id of the run, if
            any.
        predecessor: path to which an existing file at `path` is moved; None overwrites that file.

    Raises:
        CheckpointError: the file cannot be written, its content read back differs, or the renames cannot be flushed to
            the disk.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    verified = False
    try:
        _write(temporary, state)
        verify(temporary)
        verified = True
        _replace(temporary, path, predecessor)
    except (OSError, CheckpointError) as error:
        is_renamed = verified and not os.path.lexists(temporary)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "the content read back differs from that written"
        in_place = "the new file is in place, but a power failure may undo that"
        earlier = in_place if is_renamed else "earlier checkpoints are untouched"
        raise CheckpointError(f"cannot write the checkpoint {path}: {reason}; {earlier}") from None


def _write(path: Path, state: dict[str, Any]) -> None:
    file = _HashingFile(path)
    dump(state, file)
    footer = {"sha256": file.sha256.hexdigest(), "bytes": file.size, "epoch": state["epoch"], "step": state["step"]}
    if state.get(RUN):
        footer[RUN] = state[RUN]
    encoded = json.dumps(footer | {"crc": _crc(footer)}).encode()
    file.write(encoded + struct.pack("<Q", len(encoded)) + MAGIC)
    file.close()
    # Drop the cached pages, so that the verification reads from the disk.
    with open(path, "rb") as written:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _replace(temporary: Path, path: Path, predecessor: Path | None) -> None:
    """Rename the flushed file `temporary` to `path`, and an existing file at `path` to `predecessor`.

    A valid checkpoint exists at every moment, even if a power failure undoes any of the renames: the old predecessor is
    replaced only after the new file's name is on the disk.
    """
    spare = None
    if predecessor is not None and path.exists():
        spare = predecessor.with_name(predecessor.name + TEMPORARY)
        spare.unlink(missing_ok=True)
        try:
            os.link(path, spare)
        except OSError:  # the file system has no hard links
            shutil.copyfile(path, spare)
    os.replace(temporary, path)
    sync_folder(path.parent)
    if predecessor is not None and spare is not None:
        os.replace(spare, predecessor)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to the disk, so that renames survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc(footer: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(footer).encode())


def _is_complete(footer: dict[str, Any]) -> bool:
    """Return whether a footer has all values and no unknown ones, and epoch, step and size are integers."""
    return footer.keys() - {RUN} == FOOTER and all(type(footer[name]) is int for name in FOOTER - {"sha256"})


def read_footer(path: Path) -> dict[str, Any]:
    """Read and return the footer of a checkpoint: {"sha256", "bytes", "epoch", "step"}, and "run" if it has an id.

    Raises:
        CheckpointError: the file cannot be read, or its footer is missing or damaged.
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
                    # Earlier versions wrote no crc.
                    if footer.pop("crc", None) in (None, _crc(footer)) and _is_complete(footer):
                        return footer
    except IsADirectoryError:
        raise CheckpointError(describe_run_folder(path)) from None
    except OSError as error:
        advice = (fetch_advice(path) if isinstance(error, FileNotFoundError) else "") or "check the path"
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}; {advice}") from None
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass  # damaged JSON
    fresh = remedies("with --initial_weights", "with --finetune")
    raise CheckpointError(
        f"{path} is not a complete training checkpoint of plsc_mae; expected a checkpoint-*.pd that a run has finished "
        f"writing{f'; to start a new run from its weights, give the file {fresh}' if fresh else ''}"
    )


def verify(path: Path) -> dict[str, Any]:
    """Compare the content of a checkpoint with its checksum and return its footer.

    Raises:
        CheckpointError: the file cannot be read, is damaged or is not a checkpoint.
    """
    footer = read_footer(path)
    sha256, left = hashlib.sha256(), footer["bytes"]
    try:
        with open(path, "rb") as file:
            while left and (chunk := file.read(min(CHUNK, left))):
                sha256.update(chunk)
                left -= len(chunk)
                activity.tick()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    if left or sha256.hexdigest() != footer["sha256"]:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    return footer


def load(path: Path) -> Checkpoint:
    """Verify a checkpoint and return its content; no code in the file is executed.

    Raises:
        CheckpointError: the file cannot be read, is damaged or is not a checkpoint.
    """
    verify(path)
    return read_file(path)


def find_newest(
    output_dir: str, exp_name: str, wanted: Callable[[dict[str, Any]], bool] = lambda _: True
) -> Path | None:
    """Return the undamaged checkpoint with the most updates, or None; warn about damaged files found on the way.

    Args:
        output_dir: folder of the checkpoints.
        exp_name: prefix of their names.
        wanted: returns, for the footer of a checkpoint, whether the checkpoint may be returned.
    """
    candidates = []
    for path in all_of(output_dir, exp_name):
        try:
            footer = read_footer(path)
            if wanted(footer):
                candidates.append((footer["step"], path.stat().st_mtime, path))
        except (CheckpointError, OSError) as error:
            logger.warning("ignoring unusable checkpoint: %s", error)
    for _, _, path in sorted(candidates, reverse=True):
        try:
            verify(path)
            return path
        except CheckpointError as error:
            logger.warning("ignoring unusable checkpoint: %s", error)
    return None


def is_saved(path: Path, step: int) -> bool:
    """Return whether `path` exists and has the intact footer of a checkpoint after `step` updates."""
    try:
        return path.exists() and read_footer(path)["step"] == step
    except CheckpointError:
        return False


def remove_older(output_dir: str, exp_name: str, epoch: int, keep: int) -> None:
    """Remove the checkpoints of epochs up to `epoch`, except for the `keep` newest ones (`keep` is at least 1).

    Files without an intact footer are neither counted nor removed. A file that cannot be removed causes a warning.
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
            logger.warning("cannot remove %s for --keep_last %d: %s", path, keep, error.strerror)


def remove_leftovers(output_dir: str, exp_name: str) -> None:
    """Delete the partly written checkpoints that kills have left.

    Raises:
        OSError: a file cannot be deleted.
    """
    for path in all_of(output_dir, exp_name, TEMPORARY):
        path.unlink()


def all_of(output_dir: str, exp_name: str, suffix: str = "") -> list[Path]:
    """Return the checkpoint files with the prefix `exp_name`, unsorted and including damaged ones.

    `suffix` is appended to their names; TEMPORARY finds the partly written ones.
    """
    name = checkpoint_path("", glob.escape(exp_name), "*").name
    return list(Path(output_dir).glob(name + suffix))


PICKLE_PROTOCOL = 4  # as written by paddle.save; readable by Paddle 2 and 3


class Writable(Protocol):
    """Output to which bytes can be written."""

    def write(self, data: bytes) -> Any:
        """Write `data`."""
        ...


class LazyDict:
    """Placeholder that is pickled as a dictionary whose entries are produced one by one during writing.

    Args:
        items: returns an iterator over (key, value); called once.
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
    """Pickle `state` to `file`: plain data, arrays and `LazyDict` dictionaries, without cyclic references."""
    pickler = _Pickler(file, PICKLE_PROTOCOL)
    pickler.fast = True  # the pickle memo would keep every written array in memory
    pickler.dump(state)
