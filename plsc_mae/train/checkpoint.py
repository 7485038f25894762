"""Training checkpoints: written whole or not at all, checksummed, found again after a crash.

A file is a pickle of plain dictionaries, numbers and NumPy arrays, which `paddle.load` opens too, followed by a footer
that the pickle format ignores: a line of JSON with the SHA-256 of the pickle, epoch and step, its length, and a magic
word. Reading goes through the safe reader.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from plsc_mae.errors import CheckpointError
from plsc_mae.train.streaming import dump
from plsc_mae.weights.reader import Checkpoint, read_file

logger = logging.getLogger(__name__)

MAGIC = b"PLSCMAE1"
CHUNK = 1 << 22


class _HashingFile:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)


def checkpoint_path(output_dir: str, exp_name: str, tag: int | str) -> Path:
    """`{exp_name}_checkpoint-{tag}.pd`, where the tag is the epoch, or `latest` in the middle of one."""
    return Path(output_dir) / f"{exp_name + '_' if exp_name else ''}checkpoint-{tag}.pd"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, then give it its name.

    Args:
        path: final name.
        state: plain data and arrays; must have the integers `epoch` and `step`.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; older checkpoints are untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            hashing = _HashingFile(file)
            dump(state, hashing)
            footer = {"sha256": hashing.sha256.hexdigest(), "bytes": hashing.size}
            footer |= {"epoch": state["epoch"], "step": state["step"]}
            encoded = json.dumps(footer).encode()
            file.write(encoded + struct.pack("<Q", len(encoded)) + MAGIC)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error.strerror}; earlier checkpoints are untouched, "
            "free some space or choose another --output_dir and go on with --auto_resume"
        ) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
                    return json.loads(file.read(size))
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    except ValueError:
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
    with open(path, "rb") as file:
        while left and (chunk := file.read(min(CHUNK, left))):
            sha256.update(chunk)
            left -= len(chunk)
    if left or sha256.hexdigest() != footer["sha256"]:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    return footer


def load(path: Path) -> Checkpoint:
    """Verify and read a checkpoint; nothing in it is executed."""
    verify(path)
    return read_file(path)


def find_newest(output_dir: str, exp_name: str) -> Path | None:
    """The undamaged checkpoint of a run that has come furthest, or None; damaged ones are warned about."""
    name = checkpoint_path(output_dir, exp_name, "*").name
    candidates = []
    for path in Path(output_dir).glob(name):
        try:
            candidates.append((read_footer(path)["step"], path.stat().st_mtime, path))
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    for _, _, path in sorted(candidates, reverse=True):
        try:
            verify(path)
            return path
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    return None


def remove_leftovers(output_dir: str, exp_name: str) -> None:
    """Delete half-written files of a run that was killed while saving."""
    for path in Path(output_dir).glob(checkpoint_path(output_dir, exp_name, "*").name + ".tmp"):
        path.unlink()
