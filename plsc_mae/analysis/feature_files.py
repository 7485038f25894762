"""Files of features: npz, safetensors and parquet, written piece by piece, so that memory maps are not loaded whole."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.features import Arrays
from plsc_mae.errors import ConfigError, DataError
from plsc_mae.files import MARK, result_replacement

NPZ, SAFETENSORS, PARQUET = ".npz", ".safetensors", ".parquet"
SUFFIXES = (NPZ, SAFETENSORS, PARQUET)
PIECE_BYTES = 1 << 24
LARGEST_HEADER = 100_000_000  # bytes; the library safetensors accepts no larger header
_SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32", "int64": "I64"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # fixed date of npz entries, so that equal features give equal files

Texts = Mapping[str, Sequence[str]]
NO_TEXTS: Texts = MappingProxyType({})


def save_arrays(path: str | Path, arrays: Arrays, texts: Texts = NO_TEXTS) -> None:
    """Write arrays and lists of text to a file.

    Args:
        path: destination. A .safetensors file has the texts as metadata (JSON lists). A .parquet file has a column for
            each array and each list of text, which must have the same length. The list "classes" is an exception: if
            there is an array "labels", a column "class" has the class name of every label, null for negative labels;
            otherwise the list is not written. Any other suffix writes an npz file with the texts as arrays of strings.
        arrays: arrays by name, in float16, float32 or int64.
        texts: lists of text by name.

    Raises:
        ConfigError: the suffix is .parquet, and pyarrow is not installed.
        DataError: the file cannot be written, or exists and is not a result of plsc_mae, or the texts exceed the
            largest header of a .safetensors file.
    """
    path = Path(path)
    require_writer(path)
    writer = {SAFETENSORS: _write_safetensors, PARQUET: _write_parquet}.get(path.suffix, _write_npz)
    try:
        with result_replacement(path) as temporary:
            writer(temporary, arrays, texts)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose another --save_path") from None


def require_writer(path: str | Path) -> None:
    """Raise ConfigError if a file of this suffix needs a package that is not installed."""
    if Path(path).suffix == PARQUET:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{path}: parquet files need pyarrow ({error}); pip install 'plsc_mae[parquet]', or write .npz or "
                ".safetensors"
            ) from None


def _pieces(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the rows of an array in contiguous pieces of about `PIECE_BYTES`."""
    step = max(1, PIECE_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield np.ascontiguousarray(array[start : start + step])


def _write_npz(path: Path, arrays: Arrays, texts: Texts) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as entry:
                _write_npy_header(entry, array.shape, array.dtype)
                for piece in _pieces(array):
                    entry.write(piece.data)
        for name, text in texts.items():
            dtype = np.dtype((np.str_, max(map(len, text), default=1) or 1))
            step = max(1, PIECE_BYTES // dtype.itemsize)
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as entry:
                _write_npy_header(entry, (len(text),), dtype)
                for start in range(0, len(text), step):
                    entry.write(np.array(text[start : start + step], dtype).tobytes())
        archive.comment = MARK.encode()


def _write_npy_header(stream: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, described)


def _write_safetensors(path: Path, arrays: Arrays, texts: Texts) -> None:
    """Write a file of https://github.com/huggingface/safetensors without its library, which needs arrays in memory."""
    metadata = {name: json.dumps(list(text)) for name, text in texts.items()} | {"origin": MARK}
    entries: dict[str, Any] = {"__metadata__": metadata}
    ordered = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # the library's order, which aligns data
    end = 0
    for name in ordered:
        start, end = end, end + arrays[name].nbytes
        kind, shape = _SAFETENSORS_TYPES[arrays[name].dtype.name], list(arrays[name].shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > LARGEST_HEADER:
        raise DataError(
            f"the names of the images take {len(header)} bytes, but the header of a safetensors file has at most "
            f"{LARGEST_HEADER}; choose a --save_path that ends in {NPZ} or {PARQUET}"
        )
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in ordered:
            _write_pieces(file, arrays[name])


def _write_pieces(file: BinaryIO, array: npt.NDArray[Any]) -> None:
    for piece in _pieces(array):
        file.write(piece.data)


def _write_parquet(path: Path, arrays: Arrays, texts: Texts) -> None:
    """Write one row per image; texts and numbers become plain columns, features columns of fixed-size lists."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = len(next(iter(arrays.values())))
    columns = {name: text for name, text in texts.items() if name != "classes"}
    step = max(1, PIECE_BYTES // max(1, sum(array[:1].nbytes for array in arrays.values())))
    writer = None
    try:
        for start in range(0, max(rows, 1), step):
            part = slice(start, start + step)
            table: dict[str, Any] = {name: pa.array(text[part], pa.string()) for name, text in columns.items()}
            if "classes" in texts and "labels" in arrays:
                labels = arrays["labels"][part].astype(np.int32)
                numbers = pa.array(labels, mask=labels < 0)
                table["class"] = pa.DictionaryArray.from_arrays(numbers, pa.array(texts["classes"], pa.string()))
            table |= {name: _column(array[part]) for name, array in arrays.items()}
            batch = pa.table(table).replace_schema_metadata({"origin": MARK})
            writer = writer or pq.ParquetWriter(path, batch.schema, compression="none")
            writer.write_table(batch)
    finally:
        if writer is not None:
            writer.close()


def _column(array: npt.NDArray[Any]) -> Any:
    """Return an array [n, ...] as a column of n numbers or of n fixed-size lists, which are nested beyond two axes."""
    import pyarrow as pa

    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in array.shape[:0:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column
