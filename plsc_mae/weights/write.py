"""Writes arrays as weight files of torch, safetensors, Paddle and NumPy, atomically and without importing torch.

The suffix determines the format. A torch file is a zip archive with a pickle and an entry per tensor. The pickle is
written opcode by opcode, because Python's own pickler would have to import torch to refer to its classes.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
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
from safetensors import SafetensorError
from safetensors.numpy import save_file

from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.files import atomic_replacement
from plsc_mae.weights.dialects.base import Array, Tensors
from plsc_mae.weights.reader import SAFETENSORS_DTYPES

PICKLE_PROTOCOL = 4  # as in paddle.save; readable by Paddle 2 and 3
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
# {suffix: possible types of arrays}; the other formats accept all types.
_TYPES = {**dict.fromkeys(TORCH, tuple(_STORAGES)), ".safetensors": tuple(SAFETENSORS_DTYPES.values())}
_ARCHIVE = "archive"


def write_file(path: str | Path, arrays: Tensors, key: str = "", metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays to a file that appears under its name only when it is complete.

    Args:
        path: ends in .pth, .pt or .bin (torch), .safetensors, .pd or .pdparams (Paddle), or .npz.
        arrays: arrays by name.
        key: key of the table of tensors within the file, "" for none; safetensors and npz have no keys and ignore it.
        metadata: metadata of a safetensors file; other formats ignore it.

    Raises:
        ConfigError: the suffix is unknown, or its format (torch, safetensors) lacks the type of an array.
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} has no known suffix to determine the format; expected one of {', '.join(SUFFIXES)}")
    types = _TYPES.get(path.suffix)
    for name, value in arrays.items():
        if types and value.dtype.name not in types:
            raise ConfigError(
                f"cannot write {path}: a {path.suffix} file cannot have the type {value.dtype} of '{name}'; expected "
                f"one of {', '.join(types)}"
            )
    contiguous = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in arrays.items()}
    try:
        with atomic_replacement(path) as temporary:
            if path.suffix == ".safetensors":
                save_file(contiguous, temporary, dict(metadata or {}))
            elif path.suffix == ".npz":
                with temporary.open("wb") as stream:
                    np.savez(stream, **contiguous)  # type: ignore[arg-type]
            elif path.suffix in PADDLE:
                with temporary.open("wb") as stream:
                    pickle.dump({key: contiguous} if key else contiguous, stream, protocol=PICKLE_PROTOCOL)
            else:
                _write_torch(temporary, contiguous, key)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {path}: {reason}; free some space or choose another path") from error


def _write_torch(path: Path, arrays: Tensors, key: str) -> None:
    """Write {key: arrays}, or the arrays alone if `key` is empty, in the format of torch.save."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{_ARCHIVE}/data.pkl", _torch_pickle(arrays, key))
        archive.writestr(f"{_ARCHIVE}/byteorder", "little")
        for number, value in enumerate(arrays.values()):
            stored = value.astype(value.dtype.newbyteorder("<"), copy=False)
            with archive.open(f"{_ARCHIVE}/data/{number}", "w", force_zip64=True) as entry:
                entry.write(stored.reshape(-1).view(np.uint8).data if stored.size else b"")
        archive.writestr(f"{_ARCHIVE}/version", "3\n")


def _torch_pickle(arrays: Tensors, key: str) -> bytes:
    """Return the pickle of {key: arrays}, or of `arrays` alone if `key` is empty; each tensor has its own storage."""
    table = EMPTY_DICT + b"".join(
        _pickle_value(name) + _pickle_tensor(str(number), value) + SETITEM
        for number, (name, value) in enumerate(arrays.items())
    )
    root = EMPTY_DICT + _pickle_value(key) + table + SETITEM if key else table
    return PROTO + b"\2" + root + STOP


def _pickle_tensor(storage: str, value: Array) -> bytes:
    """Return the opcodes that call torch's constructor for a contiguous tensor that fills its storage."""
    strides = [stride // value.itemsize for stride in value.strides] if value.size else _strides(value.shape)
    persistent = MARK + _pickle_value("storage") + _pickle_global("torch", _STORAGES[value.dtype.name])
    persistent += _pickle_value(storage) + _pickle_value("cpu") + _pickle_value(value.size) + TUPLE + BINPERSID
    arguments = persistent + _pickle_value(0) + _pickle_value(value.shape) + _pickle_value(strides) + NEWFALSE
    arguments += _pickle_global("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE  # no hooks
    return _pickle_global("torch._utils", "_rebuild_tensor_v2") + MARK + arguments + TUPLE + REDUCE


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]


def _pickle_global(module: str, name: str) -> bytes:
    return GLOBAL + f"{module}\n{name}\n".encode()


def _pickle_value(value: Any) -> bytes:
    """Return the opcodes of a string, an integer from 0 to 2^63 - 1, or a sequence of them, which becomes a tuple."""
    if isinstance(value, str):
        encoded = value.encode()
        return BINUNICODE + struct.pack("<I", len(encoded)) + encoded
    if isinstance(value, int):
        if value < 2**31:
            return BININT + struct.pack("<i", value)
        return pickle.LONG1 + b"\x08" + struct.pack("<q", value)
    return MARK + b"".join(map(_pickle_value, value)) + TUPLE
