"""Reads weight files that are zip archives: torch's since version 1.6, and NumPy's npz.

Uncompressed arrays, the default of both, are memory-mapped. Compressed ones are unpacked into memory. Checksums are
verified first, where the file has them.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
from io import BytesIO
from math import prod
from pickle import UnpicklingError
from typing import IO, Any

import numpy as np

from plsc_mae.weights.flatten import Leaves
from plsc_mae.weights.safe_pickle import decode
from plsc_mae.weights.tensor_builders import BUILDERS, Array, Bytes, Storage, TorchStorages, counts, missing, view
from plsc_mae.weights.weight_file import CHUNK, WeightFile

NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
LOCAL_HEADER_SIZE = 30  # bytes of the fixed part of an entry's local header
LOCAL_HEADER_LENGTHS = 26  # offset of the two lengths of its variable part


def read_zip(file: WeightFile) -> Leaves:
    """Read a torch zip or an npz file.

    Raises:
        UnpicklingError, ValueError, zipfile.BadZipFile and others (`reader.DAMAGE`): the file is damaged or
            unsupported, or its content would take far more memory than its size.
    """
    with zipfile.ZipFile(file.stream) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) < len(names):
            raise UnpicklingError("two entries of the archive have the same name")
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > file.budget.left:
            raise UnpicklingError(f"it would unpack from {file.size} to {unpacked} bytes")
        for entry in entries:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UnpicklingError("it uses a compression that neither torch nor NumPy writes")
            # torch writes 0 if checksums are disabled. Without the attribute, zipfile skips the check.
            if entry.CRC == 0:
                del entry.CRC
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) == 1:
            return _read_torch(archive, file, pickles[0].removesuffix("data.pkl"))
        if names and all(name.endswith(".npy") for name in names):
            return _read_npz(archive, file)
    raise UnpicklingError("the archive contains neither torch's data.pkl nor NumPy arrays")


def _read_torch(archive: zipfile.ZipFile, file: WeightFile, folder: str) -> Leaves:
    records = {entry.filename.removeprefix(folder): entry for entry in archive.infolist()}

    def load(storage: Storage) -> Bytes:
        entry = records.get(f"data/{storage.key}")
        if entry is None:
            missing(storage)
        if entry.file_size < storage.nbytes:
            missing(storage, entry.file_size)
        return _entry_bytes(archive, file, entry)

    if any(name.startswith("code/") for name in records):
        raise UnpicklingError(
            "it is a TorchScript program, whose tensors are part of its code; save its state dict instead"
        )
    if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
        raise UnpicklingError("it was written on a big-endian machine, which is not supported")
    if records["data.pkl"].file_size > file.size:
        raise UnpicklingError("its data.pkl would unpack to more than the whole file")
    root = decode(BytesIO(archive.read(records["data.pkl"])), BUILDERS, file.budget, TorchStorages())
    return Leaves(root, load, file.budget)


def _read_npz(archive: zipfile.ZipFile, file: WeightFile) -> Leaves:
    arrays: dict[str, Array] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        with archive.open(entry) as member:
            shape, fortran, dtype = _npy_header(member, name)
            start = member.tell()
        data = _entry_bytes(archive, file, entry)
        if start + prod(shape) * dtype.itemsize != len(data):
            raise UnpicklingError(
                f"its array {name} has {len(data) - start} bytes, expected {prod(shape) * dtype.itemsize}"
            )
        array = view(data, dtype, shape[::-1] if fortran else shape, start)
        arrays[name] = array.T if fortran else array
    return Leaves(arrays, missing, file.budget)


def _npy_header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return (shape, True for Fortran order, type) of an npy array, and leave `member` at its data."""
    try:
        shape, fortran, dtype = NPY_HEADERS[np.lib.format.read_magic(member)](member)
    except (ValueError, LookupError, RecursionError, tokenize.TokenError) as error:
        raise UnpicklingError(f"the header of its array {name} is malformed") from error
    if dtype.hasobject:
        raise UnpicklingError(f"its array {name} contains Python objects")
    return counts(shape), fortran, dtype


def _entry_bytes(archive: zipfile.ZipFile, file: WeightFile, entry: zipfile.ZipInfo) -> Bytes:
    """Return the bytes of an entry: mapped if it is uncompressed, else unpacked.

    Both kinds are read to their end, because that is where zipfile verifies the checksum.
    """
    stored = entry.compress_type == zipfile.ZIP_STORED
    if stored and entry.compress_size != entry.file_size:
        raise UnpicklingError(
            f"its uncompressed entry {entry.filename} has {entry.compress_size} bytes, expected {entry.file_size}"
        )
    with archive.open(entry) as member:
        data = _read_all(member, np.empty(0 if stored else entry.file_size, np.uint8), entry.file_size)
    if not stored:
        return data
    file.stream.seek(entry.header_offset + LOCAL_HEADER_LENGTHS)
    name_length, extra_length = struct.unpack("<HH", file.stream.read(4))
    return file.mapped(entry.header_offset + LOCAL_HEADER_SIZE + name_length + extra_length, entry.file_size)


def _read_all(stream: IO[bytes], data: Bytes, count: int) -> Bytes:
    """Read a stream of `count` bytes into `data`, or discard the bytes if `data` is empty; return `data`.

    The bytes are read in pieces, because zipfile would otherwise hold them in memory twice.
    """
    done = 0
    while piece := stream.read(CHUNK):
        if data.size:
            data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    if done < count:
        raise EOFError(f"it ends {count - done} bytes early")
    return data
