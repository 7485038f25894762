"""Tables of images in Parquet and Arrow files, as Hugging Face's `datasets` writes them; they need pyarrow.

The image column is a struct of `bytes` and `path`, or binary. The name of a member starts with the index of its row.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import IO, Any, NamedTuple

import numpy as np

from plsc_mae.data.packed.archive import Archive
from plsc_mae.data.packed.index import safe_name
from plsc_mae.errors import ConfigError, DataError

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "picture")
_LABEL_NAMES = ("label", "labels", "fine_label", "cls", "class", "target")
_GROUPS_KEPT = 2  # decompressed row groups in the memory of a process
_NO_LABEL = -1  # label in test sets of `datasets`
_CONVERTED_TYPES = ("bool", "halffloat", "float", "double")  # of labels; whole numbers and text are used as they are


class Columns(NamedTuple):
    """Columns of a table."""

    image: str  # name of the image column
    is_struct: bool  # whether the image column is a struct of `bytes` and `path`; otherwise it is binary
    label: str  # name of the label column; "" without one
    label_type: str  # type of the labels as Arrow names it, such as "int64"; "" without labels
    # names of the classes in the order of the labels; () if the labels are the names or plain numbers
    classes: tuple[str, ...]

    @property
    def has_numbers(self) -> bool:
        """True if the labels are booleans or floating-point numbers, which are class numbers if they are whole."""
        return self.label_type in _CONVERTED_TYPES


def _arrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"Parquet and Arrow files need pyarrow ({error}): pip install 'plsc_mae[parquet]', or pass a folder of the "
            "images"
        ) from None
    return pyarrow


class RowArchive(Archive):
    """Parquet or Arrow file.

    Args:
        path: the file.
        is_parquet: False for an Arrow file (the file format or the stream format).

    Attributes:
        columns: the columns.
        names: name of each row's image, "" if it has none.
        labels: label of each row as text, "" if it has none; a number if `columns.classes` names the classes.

    Raises:
        DataError: the file is damaged, or its column of images is missing or ambiguous.
        ConfigError: pyarrow cannot be imported.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str, *, is_parquet: bool) -> None:
        super().__init__(path)
        arrow = _arrow()
        try:
            self._table: _Table = _ParquetTable(arrow, path) if is_parquet else _ArrowTable(arrow, path)
            self.columns = _choose_columns(arrow, self._table.schema, path)
            names, labels = self._table.texts(self.columns)
        except (arrow.ArrowException, ValueError, OSError) as error:  # ValueError: text that is not UTF-8
            if isinstance(error, OSError) and error.filename is not None:
                raise  # an error of the file system; pyarrow's own errors have no file name
            raise DataError(f"cannot read {path}: {_first_line(error)}; copy or write it again") from None
        self.names = [safe_name(str(name)) or "" if name is not None else "" for name in names]
        self.labels = list(map(_label_text, labels))

    def open_member(self, member: str) -> tuple[IO[bytes], int]:
        """See `Archive.open_member`; the name of a member starts with the index of its row."""
        row = member.partition("/")[0]
        if not row.isdecimal() or int(row) >= len(self.names):
            raise self.missing(member)
        group, place = self._table.locate(int(row))
        try:
            content = _images(self._table, group, self.columns)[place].as_py()
        except Exception as error:  # pyarrow raises exceptions of many types
            raise ValueError(_first_line(error)) from None
        if content is None:
            raise ValueError("the row holds no bytes of an image; write the data set with embedded images")
        return io.BytesIO(content), len(content)


class _Table(ABC):
    """Rows of a file in groups that can be read separately."""

    schema: Any  # names and types of the columns
    ends: Any  # index of the row after each group's last one

    def locate(self, row: int) -> tuple[int, int]:
        """Return (group, index within the group) of a row."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - (int(self.ends[group - 1]) if group else 0)

    @abstractmethod
    def texts(self, columns: Columns) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return the names of the images and the labels of all rows, None for missing ones."""

    @abstractmethod
    def images(self, group: int, columns: Columns) -> Any:
        """Return the column of image bytes of a group."""


class _ParquetTable(_Table):
    """Parquet file; a row group is decompressed as a whole."""

    def __init__(self, arrow: ModuleType, path: str) -> None:
        self._file = arrow.parquet.ParquetFile(path, memory_map=True)
        self.schema = self._file.schema_arrow
        meta = self._file.metadata
        self.ends = np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)])

    def texts(self, columns: Columns) -> tuple[Sequence[Any], Sequence[Any]]:
        """See `_Table.texts`; the bytes of the images are not read."""
        wanted = [f"{columns.image}.path"] * columns.is_struct + [columns.label] * bool(columns.label)
        table = self._file.read(columns=wanted, use_threads=False) if wanted else None
        return _texts(table, columns, int(self.ends[-1]) if len(self.ends) else 0)

    def images(self, group: int, columns: Columns) -> Any:
        """See `_Table.images`."""
        wanted = f"{columns.image}.bytes" if columns.is_struct else columns.image
        table = self._file.read_row_group(group, columns=[wanted], use_threads=False)
        return _bytes_of(table.column(columns.image), columns)


class _ArrowTable(_Table):
    """Arrow file or stream, mapped into memory; only compressed files are read as a whole."""

    def __init__(self, arrow: ModuleType, path: str) -> None:
        source = arrow.memory_map(path)
        try:
            table = arrow.ipc.open_file(source).read_all()
        except arrow.ArrowInvalid:
            source.seek(0)
            table = arrow.ipc.open_stream(source).read_all()
        self.schema, self._table = table.schema, table
        self.ends = np.array([table.num_rows])

    def texts(self, columns: Columns) -> tuple[Sequence[Any], Sequence[Any]]:
        """See `_Table.texts`."""
        return _texts(self._table, columns, self._table.num_rows)

    def images(self, group: int, columns: Columns) -> Any:
        """See `_Table.images`."""
        return _bytes_of(self._table.column(columns.image), columns)


@lru_cache(_GROUPS_KEPT)
def _images(table: _Table, group: int, columns: Columns) -> Any:
    return table.images(group, columns)


def _texts(table: Any, columns: Columns, count: int) -> tuple[Sequence[Any], Sequence[Any]]:
    nothing = [None] * count
    names: Iterable[Any] = nothing
    if columns.is_struct:
        parts = table.column(columns.image).chunks
        names = [name for part in parts for name in part.field("path").to_pylist()]
    labels = table.column(columns.label).to_pylist() if columns.label else nothing
    return list(names), labels


def _bytes_of(column: Any, columns: Columns) -> Any:
    """Return the bytes of an image column as one array or several chunks."""
    if not columns.is_struct:
        return column
    import pyarrow

    parts = [part.field("bytes") for part in column.chunks]
    return parts[0] if len(parts) == 1 else pyarrow.chunked_array(parts)


# ------------------------------------------------------------------------------------------------- columns


def _choose_columns(arrow: ModuleType, schema: Any, path: str) -> Columns:
    """Return the columns of images and labels; raise DataError if the column of images is missing or ambiguous."""
    features = _features(schema)
    images = [name for name in schema.names if _is_image_column(arrow, schema.field(name).type, features.get(name))]
    declared = [name for name in images if features.get(name, {}).get("_type") == "Image"] or images
    image = _choose(declared, _IMAGE_NAMES)
    if image is None:
        found = f"several columns of images, {', '.join(declared)}" if declared else "no column of images"
        raise DataError(
            f"{path} has {found} (columns: {', '.join(schema.names)}); expected one, a struct of bytes and path or "
            "binary: write a file with that column and the labels"
        )
    classes = {name: feature.get("names") for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    usual = [name for name in _LABEL_NAMES if name in schema.names and _is_label(arrow, schema.field(name).type)]
    label = _choose([name for name in schema.names if name in classes], _LABEL_NAMES) or next(iter(usual), "")
    names = classes.get(label) or ()
    label_type = str(_value_type(arrow, schema.field(label).type)) if label else ""
    return Columns(image, arrow.types.is_struct(schema.field(image).type), label, label_type, tuple(map(str, names)))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the features that Hugging Face's `datasets` stores in the schema, by column; {} without them."""
    try:
        stored = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return (
        {name: value for name, value in stored.items() if isinstance(value, dict)} if isinstance(stored, dict) else {}
    )


def _choose(names: Sequence[str], preferred: Sequence[str]) -> str | None:
    """Return the only name, or the first of `preferred` among several names; None if there is no such name."""
    if len(names) == 1:
        return names[0]
    return next((name for name in preferred if name in names), None)


def _is_image_column(arrow: ModuleType, kind: Any, feature: dict[str, Any] | None) -> bool:
    if arrow.types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return {"bytes", "path"} <= set(fields) and _is_binary(arrow, fields["bytes"])
    return _is_binary(arrow, kind) and (feature is None or feature.get("_type") in (None, "Image", "Value"))


def _is_binary(arrow: ModuleType, kind: Any) -> bool:
    return bool(arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind))


def _value_type(arrow: ModuleType, kind: Any) -> Any:
    return kind.value_type if arrow.types.is_dictionary(kind) else kind


def _is_label(arrow: ModuleType, kind: Any) -> bool:
    values, types = _value_type(arrow, kind), arrow.types
    is_text = types.is_string(values) or types.is_large_string(values)
    return bool(is_text or types.is_integer(values) or str(values) in _CONVERTED_TYPES)


def _label_text(label: Any) -> str:
    """Return a label as text: "" for none, NaN and -1, whole numbers without a fraction, False as 0 and True as 1."""
    if label is None or label == _NO_LABEL or label != label:  # NaN differs from itself
        return ""
    if isinstance(label, bool) or (isinstance(label, float) and label.is_integer()):
        return str(int(label))
    return str(label)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
