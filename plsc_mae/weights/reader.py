"""Reads weight files of torch, Paddle, NumPy, safetensors and OneFlow without running code from them.

All weights enter the package through this module. The format of a file is detected from its first bytes, pickles are
decoded by `plsc_mae.weights.safe_pickle`, and the content is separated into tensors by path and plain values. Folders
of Hugging Face and DeepSpeed are read file by file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

from plsc_mae.errors import CheckpointError
from plsc_mae.file_kinds import read_head, recognize
from plsc_mae.weights.flatten import Leaves
from plsc_mae.weights.folders import INDEX, ModelFolder, open_folder
from plsc_mae.weights.oneflow import is_oneflow, read_oneflow
from plsc_mae.weights.remote import fetch_advice
from plsc_mae.weights.safe_pickle import decode
from plsc_mae.weights.tensor_builders import (
    BUILDERS,
    Array,
    Bytes,
    Storage,
    TorchStorages,
    counts,
    dtype_named,
    missing,
    view,
    widen_bfloat16,
)
from plsc_mae.weights.weight_file import WeightFile
from plsc_mae.weights.zip_reader import read_zip

NETWORK_KEYS = ("model", "module", "state_dict")
TORCH_STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file in torch's format before 1.6
SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    **{
        f"{letter}{bits}": f"{name}{bits}" for letter, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
    },
}
MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, as defined by the format
# First bytes of other files that are often mistaken for weights; leading spaces and a byte order mark are ignored.
MISTAKEN = {
    b"<": "a web page instead of weights; download the file itself",
    b"version https://git-lfs": "a Git LFS pointer instead of weights; fetch the file itself with `git lfs pull`",
}
MAX_REASON = 300  # characters of a message that are quoted from a library or a file

# Exceptions that the readers of single formats raise for a damaged or unsupported file.
DAMAGE = (
    UnpicklingError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    OSError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Checkpoint:
    """Content of a weight file.

    Arrays may be read-only, share memory, or be unaligned. Most arrays of a torch, safetensors or uncompressed npz file
    are memory-mapped: values are read from the file on use, and the file stays open as long as one of these arrays
    exists. The file may be renamed, deleted, or replaced by renaming another file to its name. It must not be
    modified or truncated: values would change, and an access beyond the end would kill the process.

    Attributes:
        path: the file, or the folder of a checkpoint.
        tensors: the tensors by their keys joined with "/"; bfloat16 is widened to float32.
        model: the network's own tensors by name; may be empty. `read_file` takes those under the key "model", else
            "module", else "state_dict", else all tensors of a flat table. `weights.read` searches the whole file, see
            `unwrap.choose_network`.
        meta: the other values as plain data, and the settings of a model folder (`folders.ModelFolder.meta`). Tuples
            and sets become lists, an argparse.Namespace a dict, and most objects of other programs a description.
        dialect: naming of `model`; empty if it was not detected.
        key: keys of the table that `model` was taken from, joined with "/"; empty for the outermost table.
        others: keys of other tables that hold a network, such as "model_ema"; empty if no network was chosen.
        remark: assumptions in the choice of the network and alternatives to it, for the log; may be empty.
        problem: the reason why no network can be chosen, or the chosen one cannot be used, as the end of a sentence;
            empty otherwise, and if the only reason is that no dialect recognizes the names.
        any_values: True if values that are not finite may be loaded into a network, to examine them.
    """

    path: Path
    tensors: dict[str, Array]
    model: dict[str, Array]
    meta: dict[str, Any]
    dialect: str = ""
    key: str = ""
    others: tuple[str, ...] = ()
    remark: str = ""
    problem: str = ""
    any_values: bool = False


def read_file(path: str | Path) -> Checkpoint:
    """Read weights: torch (zip or stream), a pickle of arrays as in paddle.save, npz, safetensors, or a model folder.

    Nothing in the file is executed or imported. Checksums in a zip file are verified during this call, not when an
    array is used. A program that writes to `path` later must replace the file by renaming a new one, because arrays may
    be memory-mapped (see `Checkpoint`).

    Args:
        path: the file (its suffix is ignored), or the folder of a checkpoint of OneFlow, Hugging Face or DeepSpeed.

    Raises:
        CheckpointError: the file or folder cannot be read, is damaged or of an unsupported kind, or its content would
            take far more memory than its size.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return _checkpoint(path, _read_single(path))
    try:
        folder = None if is_oneflow(path) else open_folder(path)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{error.filename or path} cannot be read: {reason}; check the permissions") from error
    if folder is None:
        return _checkpoint(path, _sound(path, "OneFlow", lambda: read_oneflow(path)))
    return _read_folder(path, folder)


def _checkpoint(path: Path, leaves: Leaves) -> Checkpoint:
    key, network = _network(leaves)
    return Checkpoint(path, leaves.tensors, network, leaves.meta, key=key)


def _read_single(path: Path) -> Leaves:
    with _opened(path) as stream:
        name, reader = _recognize(path, stream.read(64))
        stream.seek(0)
        return _sound(path, name, lambda: reader(WeightFile(stream)))


def _read_folder(path: Path, folder: ModelFolder) -> Checkpoint:
    """Read the weights of a folder; the tensors of its shards, if there are any, form one flat table."""
    if not folder.places:
        single = _checkpoint(path, _read_single(folder.files[0]))
        return dataclasses.replace(single, meta={**single.meta, **folder.meta})
    shards = {file.name: _read_single(file).tensors for file in folder.files}
    for tensor, shard in folder.places.items():
        if tensor not in shards[shard]:
            raise CheckpointError(
                f"{path / shard} lacks the tensor {tensor} that the index places in it; fetch all files of one version"
            )
    unlisted = {name: value for shard in shards.values() for name, value in shard.items()}
    tensors = unlisted | {tensor: shards[shard][tensor] for tensor, shard in folder.places.items()}
    return Checkpoint(path, tensors, dict(tensors), dict(folder.meta))


def _opened(path: Path) -> BinaryIO:
    """Open a regular file; others are refused, because opening a pipe blocks until another process writes to it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is a device or pipe; expected a regular file")
        return path.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        advice = (fetch_advice(path) if isinstance(error, FileNotFoundError) else "") or "check the path"
        raise CheckpointError(f"weight file {path} cannot be opened: {reason}; {advice}") from error


def _sound(path: Path, name: str, read: Callable[[], Leaves]) -> Leaves:
    """Return the result of `read`, and convert errors of a damaged or unsupported file to a CheckpointError."""
    try:
        return read()
    except DAMAGE as error:
        words = " ".join((str(error) or type(error).__name__).split())
        reason = "".join(letter if letter.isprintable() else "?" for letter in words[:MAX_REASON])
        raise CheckpointError(
            f"{path} cannot be read as a {name} file: {reason}; if it is damaged, fetch or save it again"
        ) from error


def _recognize(path: Path, head: bytes) -> tuple[str, Callable[[WeightFile], Leaves]]:
    """Return (name of the format, its reader), detected from `head`, the first bytes of the file."""
    if not head:
        raise CheckpointError(f"{path} is empty, perhaps after an interrupted download or save; fetch or save it again")
    if head[:2] == b"PK":
        return "torch or NumPy zip", read_zip
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5") and head[2:3] != b"\0":
        return "pickle", _read_pickle
    if head[8:9] == b"{":
        return "safetensors", _read_safetensors
    for beginning, content in MISTAKEN.items():
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(beginning):
            raise CheckpointError(f"{path} contains {content}")
    kind = recognize(read_head(path))
    described = f" but {kind.name}" if kind is not None else ""
    of_folder = path.name == "config.json" or path.name.endswith(INDEX)
    remedy = f"; give its folder, {path.parent}" if of_folder else ""
    raise CheckpointError(
        f"{path} is not a weight file{described}: expected torch, a Paddle or NumPy pickle, npz or safetensors{remedy}"
    )


def _network(leaves: Leaves) -> tuple[str, dict[str, Array]]:
    """Return (key of the network's table, its tensors by name); a "module." that all names begin with is removed."""
    key, found = "", leaves.tensors if leaves.flat else {}
    for name in NETWORK_KEYS:
        part = {path[len(name) + 1 :]: array for path, array in leaves.tensors.items() if path.startswith(f"{name}/")}
        if part:
            key, found = name, part
            break
    wrapped = all(name.startswith("module.") for name in found)
    return key, {name.removeprefix("module.") if wrapped else name: array for name, array in found.items()}


def _read_pickle(file: WeightFile) -> Leaves:
    root = decode(file.stream, BUILDERS, file.budget)
    if isinstance(root, int) and root == TORCH_STREAM_MAGIC:
        return _read_torch_stream(file)
    return Leaves(root, missing, file.budget)


def _read_torch_stream(file: WeightFile) -> Leaves:
    """Read the rest of a file in torch's format before 1.6, after its magic number: four pickles, then the storages."""
    stream, budget = file.stream, file.budget
    _version, system = decode(stream, {}, budget), decode(stream, {}, budget)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UnpicklingError("it was written on a big-endian machine, which is not supported")
    storages = TorchStorages()
    root, order = decode(stream, BUILDERS, budget, storages), decode(stream, {}, budget)
    if not isinstance(order, list):
        raise UnpicklingError("the order of its storages is missing")
    places: dict[str, tuple[int, int]] = {}
    for key in order:
        storage = storages.by_key.get(key)
        if storage is None:
            raise UnpicklingError(f"storage {key} belongs to no tensor")
        nbytes = int.from_bytes(stream.read(8), "little") * storage.itemsize
        places[key] = stream.tell(), nbytes
        if stream.tell() + nbytes > file.size:
            raise UnpicklingError(f"it ends before storage {key} does")
        stream.seek(nbytes, 1)

    def load(storage: Storage) -> Bytes:
        """Return the bytes of a storage, mapped from the file."""
        start, nbytes = places.get(storage.key, (0, 0))
        if nbytes < storage.nbytes:
            missing(storage, nbytes)
        return file.mapped(start, nbytes)

    return Leaves(root, load, budget)


def _read_safetensors(file: WeightFile) -> Leaves:
    """Read the header, a JSON table of types, shapes and extents, and map the tensors, which must lie end to end."""
    length = int.from_bytes(file.stream.read(8), "little")
    if length > min(MAX_SAFETENSORS_HEADER, file.size - 8):
        raise UnpicklingError(f"the length of its header, {length} bytes, exceeds the file or the limit of the format")
    header = json.loads(file.stream.read(length).decode(), object_pairs_hook=_table)
    meta = header.pop("__metadata__", {})
    places: dict[str, tuple[tuple[int, int], str, tuple[int, ...]]] = {}
    for name, entry in header.items():
        match entry:
            case {"dtype": str(kind), "shape": list(sizes), "data_offsets": [int(start), int(end)]}:
                places[name] = (start, end), SAFETENSORS_DTYPES.get(kind, kind), counts(sizes)
            case _:
                raise UnpicklingError(f"its header lacks the type, shape or offsets of tensor {name}")
    arrays: dict[str, Array] = {}
    reached = 0
    for name, ((start, end), dtype, shape) in sorted(places.items(), key=lambda item: item[1][0]):
        if start != reached or end - start != prod(shape) * dtype_named(dtype).itemsize:
            raise UnpicklingError(f"bytes {start} to {end} of tensor {name} do not match its shape and offset")
        array = view(file.mapped(8 + length + start, end - start), dtype_named(dtype), shape)
        arrays[name] = widen_bfloat16(array) if dtype == "bfloat16" else array
        reached = end
    if 8 + length + reached < file.size:
        raise UnpicklingError(f"{file.size - 8 - length - reached} bytes at its end belong to no tensor")
    leaves = Leaves(arrays, missing, file.budget)
    leaves.meta = meta if isinstance(meta, dict) else {}
    return leaves


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict; refuse a key that occurs twice, which the JSON decoder accepts."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise UnpicklingError("its header has two entries with the same name")
    return table
