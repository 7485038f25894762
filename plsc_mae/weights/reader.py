"""Reads weight files of torch, Paddle, NumPy and safetensors without any of those frameworks and without running code.

The first step of everything that takes weights in: the format is recognised by content, pickles go through
`plsc_mae.weights.pickles`, and the file is split into tensors by path and the plain values around them.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.leaves import Leaves
from plsc_mae.weights.pickles import decode
from plsc_mae.weights.rebuild import BUILDERS, Array, Bytes, Storage, TorchStorages, dtype_named, view, widen_bfloat16

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
CHUNK = 1 << 20
# Weights hardly compress: a file whose content would take more memory than 64 times its size and 16 MiB is refused as a
# bomb.
MAX_INFLATION = 64
INFLATION_ALLOWANCE = 16 << 20

# What a damaged file makes the decoders below raise.
DAMAGE = (
    UnpicklingError,
    ValueError,
    TypeError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,
)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weight file. Arrays are read-only and may share memory.

    Attributes:
        path: the file.
        tensors: every tensor as stored, by its keys joined with "/"; bfloat16 is widened to float32.
        model: the network's own tensors by name: those under the key "model", else "module", else "state_dict", else
            all of a file that is one flat table. A "module." which all names start with is removed.
        meta: the structure around the tensors as plain data: tuples and sets read as lists, an argparse.Namespace as a
            dict, objects of other programs as a description, and a tensor inside a list as None.
        dialect: the naming the tensors follow, where it has been recognised.
    """

    path: Path
    tensors: dict[str, Array]
    model: dict[str, Array]
    meta: dict[str, Any]
    dialect: str = ""


def read_file(path: str | Path) -> Checkpoint:
    """Read a weight file: torch (zip or stream), a pickle of arrays such as paddle.save writes, npz or safetensors.

    Bytes that follow a pickle are left alone. Nothing in the file is executed or imported.

    Args:
        path: the file; its suffix does not matter.

    Returns:
        The content, in memory once: the file is not needed any more.

    Raises:
        CheckpointError: the file is missing, of no known format, damaged, or would unpack beyond all proportion.
    """
    path = Path(path)
    size = _checked_size(path)
    with path.open("rb") as stream:
        head = stream.read(16)
        name, reader = _recognise(path, head)
        stream.seek(0)
        try:
            leaves = reader(stream, size)
        except DAMAGE as error:
            reason = str(error) or type(error).__name__
            raise CheckpointError(
                f"{path} cannot be read as a {name} file: {reason}; if it is damaged, fetch or save it again"
            ) from error
    return Checkpoint(path, leaves.tensors, _network(leaves), leaves.meta)


def _checked_size(path: Path) -> int:
    """Return the size of the file in bytes, or explain why there is nothing to read."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the weight file inside it")
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"weight file {path} cannot be opened: {error.strerror}; check the path") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty, as an interrupted download or save leaves it; fetch or save it again")
    return size


def _recognise(path: Path, head: bytes) -> tuple[str, Callable[[IO[bytes], int], Leaves]]:
    """Tell the format from the first 16 bytes."""
    if head[:2] == b"PK":
        return "torch or NumPy zip", _read_zip
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5") and head[2:3] != b"\0":
        return "pickle", _read_pickle
    if head[8:9] == b"{":
        return "safetensors", _read_safetensors
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} holds a web page instead of weights; download the file itself")
    raise CheckpointError(f"{path} is not a weight file: expected torch, a Paddle or NumPy pickle, npz or safetensors")


def _network(leaves: Leaves) -> dict[str, Array]:
    """Pick the network's own tensors and take a common "module." off their names."""
    found = leaves.tensors if leaves.flat else {}
    for key in NETWORK_KEYS:
        part = {path[len(key) + 1 :]: array for path, array in leaves.tensors.items() if path.startswith(f"{key}/")}
        if part:
            found = part
            break
    wrapped = all(name.startswith("module.") for name in found)
    return {name.removeprefix("module.") if wrapped else name: array for name, array in found.items()}


def _read_zip(stream: IO[bytes], size: int) -> Leaves:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > _max_bytes(size):
            raise UnpicklingError(f"it would unpack from {size} to {unpacked} bytes")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise UnpicklingError("it is compressed in a way that neither torch nor NumPy uses")
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) == 1:
            return _read_torch_zip(archive, pickles[0].removesuffix("data.pkl"), size)
        if names and all(name.endswith(".npy") for name in names):
            return _read_npz(archive, size)
    raise UnpicklingError("the archive holds neither torch's data.pkl nor NumPy arrays")


def _read_npz(archive: zipfile.ZipFile, size: int) -> Leaves:
    arrays: dict[str, Array] = {}
    for name in archive.namelist():
        with archive.open(name) as member:
            arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    return Leaves(arrays, _no_storage, _max_bytes(size))


def _read_torch_zip(archive: zipfile.ZipFile, folder: str, size: int) -> Leaves:
    records = {info.filename.removeprefix(folder): info for info in archive.infolist()}
    for info in archive.infolist():
        if info.CRC == 0:  # torch writes zero when told not to compute checksums, and zipfile must not compare then
            del info.CRC

    def read(name: str) -> Bytes:
        info = records[name]
        with archive.open(info) as record:
            return _read_bytes(record, info.file_size)

    def load(storage: Storage) -> Bytes:
        info = records.get(f"data/{storage.key}")
        if info is None:
            raise UnpicklingError(f"storage {storage.key} is missing")
        if info.file_size < storage.nbytes:
            raise UnpicklingError(f"storage {storage.key} has {info.file_size} of {storage.nbytes} bytes")
        return read(info.filename.removeprefix(folder))

    if "byteorder" in records and read("byteorder").tobytes() != b"little":
        raise UnpicklingError("it was written on a big-endian machine, which is not supported")
    if records["data.pkl"].file_size > size:
        raise UnpicklingError("its data.pkl would unpack to more than the whole file")
    root = decode(BytesIO(read("data.pkl").data), BUILDERS, TorchStorages())
    return Leaves(root, load, _max_bytes(size))


def _read_pickle(stream: IO[bytes], size: int) -> Leaves:
    root = decode(stream, BUILDERS)
    if isinstance(root, int) and root == TORCH_STREAM_MAGIC:
        return _read_torch_stream(stream, size)
    return Leaves(root, _no_storage, _max_bytes(size))


def _read_torch_stream(stream: IO[bytes], size: int) -> Leaves:
    """Read torch's format before 1.6 from behind its magic number: four pickles, then the storages in a given order."""
    _version, system = decode(stream, {}), decode(stream, {})
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UnpicklingError("it was written on a big-endian machine, which is not supported")
    storages = TorchStorages()
    root, order = decode(stream, BUILDERS, storages), decode(stream, {})
    places: dict[str, tuple[int, int]] = {}
    for key in order:
        storage = storages.by_key.get(key)
        if storage is None:
            raise UnpicklingError(f"storage {key} belongs to no tensor")
        nbytes = int.from_bytes(stream.read(8), "little") * storage.itemsize
        places[key] = stream.tell(), nbytes
        if stream.tell() + nbytes > size:
            raise UnpicklingError(f"it ends before storage {key} does")
        stream.seek(nbytes, 1)

    def load(storage: Storage) -> Bytes:
        start, nbytes = places.get(storage.key, (0, 0))
        if nbytes < storage.nbytes:
            raise UnpicklingError(f"storage {storage.key} has {nbytes} of {storage.nbytes} bytes")
        stream.seek(start)
        return _read_bytes(stream, nbytes)

    return Leaves(root, load, _max_bytes(size))


def _read_safetensors(stream: IO[bytes], size: int) -> Leaves:
    """Let the library check header and extents, then read the arrays, because it has no NumPy type for bfloat16."""
    with safe_open(stream.name, framework="np"):
        length = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(length))
    meta = header.pop("__metadata__", {})
    arrays: dict[str, Array] = {}
    for name, entry in header.items():
        dtype = SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])
        start, end = entry["data_offsets"]
        stream.seek(8 + length + start)
        array = view(_read_bytes(stream, end - start), dtype_named(dtype), tuple(entry["shape"]))
        arrays[name] = widen_bfloat16(array) if dtype == "bfloat16" else array
    leaves = Leaves(arrays, _no_storage, _max_bytes(size))
    leaves.meta = meta
    return leaves


def _max_bytes(size: int) -> int:
    return size * MAX_INFLATION + INFLATION_ALLOWANCE


def _no_storage(storage: Storage) -> Bytes:
    raise UnpicklingError(f"storage {storage.key} is missing")


def _read_bytes(stream: IO[bytes], count: int) -> Bytes:
    """Read exactly `count` bytes into one block: in pieces, as zipfile would otherwise make a second copy."""
    data: Bytes = np.empty(count, np.uint8)
    filled = 0
    while filled < count:
        piece = stream.read(min(CHUNK, count - filled))
        if not piece:
            raise EOFError(f"it ends {count - filled} bytes early")
        data[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
    return data
