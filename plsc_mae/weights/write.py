"""Writes arrays as weight files of torch, safetensors, Paddle and NumPy, without torch and whole or not at all.

The format follows from the suffix. A torch file is a zip of one pickle and one entry per tensor; the pickle is written
opcode by opcode, because Python's own pickler would have to import torch for the names in it.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import (
    BININT,
    BINPERSID,
    BINUNICODE,
    EMPTY_DICT,
    EMPTY_TUPLE,
    GLOBAL,
    MARK,
    NEWFALSE,
    PROTO,
    REDUCE,
    SETITEM,
    STOP,
    TUPLE,
)
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.weights.dialects.base import Array, Tensors

PICKLE_PROTOCOL = 4  # what paddle.save writes; readable by Paddle 2 and 3
TORCH, PADDLE = (".pth", ".pt", ".bin"), (".pd", ".pdparams")
SUFFIXES = (*TORCH, ".safetensors", *PADDLE, ".npz")
_STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "bool": "BoolStorage",
}
_ARCHIVE = "archive"


def write_file(path: str | Path, arrays: Tensors, key: str = "", metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays; the file appears under its name when it is complete.

    Args:
        path: ends in .pth, .pt or .bin (torch), .safetensors, .pd or .pdparams (Paddle), or .npz.
        arrays: what to write.
        key: key of the table of tensors within the file; formats without keys (safetensors, npz) ignore it.
        metadata: of a safetensors file.

    Raises:
        ConfigError: another suffix.
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: the suffix tells the format; expected one of {', '.join(SUFFIXES)}")
    contiguous = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in arrays.items()}
    try:
        with replacing(path) as partial:
            if path.suffix == ".safetensors":
                save_file(contiguous, partial, dict(metadata or {}))
            elif path.suffix == ".npz":
                with partial.open("wb") as stream:
                    np.savez(stream, **contiguous)  # type: ignore[arg-type]
            elif path.suffix in PADDLE:
                with partial.open("wb") as stream:
                    pickle.dump({key: contiguous} if key else contiguous, stream, protocol=PICKLE_PROTOCOL)
            else:
                _write_torch(partial, contiguous, key)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"cannot write {path}: {reason}; free some space or choose another place") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write under; what was written there takes the place of `path` when all has gone well.

    A file that is read stays mapped, and writing into it would change, or cut off, the arrays that were read.

    Raises:
        OSError: the folder cannot be made, or the file not be put in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_torch(path: Path, arrays: Tensors, key: str) -> None:
    """Write what torch.save makes of {key: arrays}, or of the arrays alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{_ARCHIVE}/data.pkl", _torch_pickle(arrays, key))
        archive.writestr(f"{_ARCHIVE}/byteorder", "little")
        for number, value in enumerate(arrays.values()):
            stored = value.astype(value.dtype.newbyteorder("<"), copy=False)
            with archive.open(f"{_ARCHIVE}/data/{number}", "w", force_zip64=True) as entry:
                entry.write(stored.reshape(-1).view(np.uint8).data if stored.size else b"")
        archive.writestr(f"{_ARCHIVE}/version", "3\n")


def _torch_pickle(arrays: Tensors, key: str) -> bytes:
    """The pickle of a table of tensors, each on a storage of its own."""
    table = EMPTY_DICT + b"".join(
        _plain(name) + _tensor(str(number), value) + SETITEM for number, (name, value) in enumerate(arrays.items())
    )
    root = EMPTY_DICT + _plain(key) + table + SETITEM if key else table
    return PROTO + b"\2" + root + STOP


def _tensor(storage: str, value: Array) -> bytes:
    """A call of torch's constructor for a contiguous tensor that fills its storage."""
    kind = _STORAGES.get(value.dtype.name)
    if kind is None:
        raise ConfigError(f"arrays of {value.dtype} cannot be written to a torch file")
    strides = [stride // value.itemsize for stride in value.strides] if value.size else _strides(value.shape)
    persistent = MARK + _plain("storage") + _named("torch", kind) + _plain(storage) + _plain("cpu")
    persistent += _plain(value.size) + TUPLE + BINPERSID
    arguments = persistent + _plain(0) + _plain(value.shape) + _plain(strides) + NEWFALSE
    arguments += _named("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE  # no hooks
    return _named("torch._utils", "_rebuild_tensor_v2") + MARK + arguments + TUPLE + REDUCE


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]


def _named(module: str, name: str) -> bytes:
    return GLOBAL + f"{module}\n{name}\n".encode()


def _plain(value: Any) -> bytes:
    """A string, a whole number below 2^31 or more, or a tuple of such."""
    if isinstance(value, str):
        encoded = value.encode()
        return BINUNICODE + struct.pack("<I", len(encoded)) + encoded
    if isinstance(value, int):
        if value < 2**31:
            return BININT + struct.pack("<i", value)
        return pickle.LONG1 + b"\x08" + struct.pack("<q", value)
    return MARK + b"".join(map(_plain, value)) + TUPLE
