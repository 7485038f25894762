"""Images with a class, with several labels each, or with numeric targets, from a CSV file.

The first row names the columns. The first column has paths relative to the file. The others, or those chosen by name,
are labels: 0 or 1 in multi-label classification, a number in regression, or empty if unknown. In multi-label
classification a single column may also list the names of the labels that are present, separated by | or ;. For a
class, one column has its name.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plsc_mae.data.classes import listed
from plsc_mae.data.folder_walk import is_image
from plsc_mae.data.list_file import DELIMITERS
from plsc_mae.data.listing import ImageList, PathTable
from plsc_mae.errors import DataError, flag
from plsc_mae.file_kinds import UTF8, first_foreign_line, require_text
from plsc_mae.names import GBK, escape_name
from plsc_mae.wording import counted

_SEPARATORS = "|;"
_TRUTH = {"0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0}
_UNKNOWN = ("", "nan")
_LARGEST = float(np.finfo(np.float32).max)  # labels are float32

logger = logging.getLogger(__name__)


class _Row(NamedTuple):
    """Row of the table: file and row number for messages, the path, the cells of the labels, and that of the group."""

    place: str
    path: str
    cells: list[str]
    group: str


class _Table(NamedTuple):
    """Names of all columns, names of the columns of labels, and the rows below the names."""

    head: tuple[str, ...]
    names: tuple[str, ...]
    rows: list[_Row]


def label_table(folder_or_file: str, split: str, *, flag: str) -> Path:
    """Return the CSV file of a split: `folder_or_file` if it is a file, or SPLIT.csv in it if it is a folder.

    Raises:
        DataError: there is no such file.
    """
    source = Path(folder_or_file)
    file = source / f"{split}.csv" if source.is_dir() else source
    if not file.is_file():
        raise DataError(
            f"{flag} {source}: {file} does not exist; expected a CSV file with a path and labels per row, or a folder "
            f"with {split}.csv"
        )
    return file


def read_labels(
    file: Path, *, binary: bool, columns: Sequence[str] | None = None, known: Sequence[str] = ()
) -> ImageList:
    """Read the images of a CSV file and their K labels, float32 [n, K] with NaN for unknown ones.

    Rows without a known label are left out.

    Args:
        file: the file.
        binary: True for labels of 0 and 1, False for numbers.
        columns: names of the columns to use; None chooses those in `known` if the file has all of them, else all
            after the first.
        known: names of the training images' labels; in a file with one column of label names, each gets a column, which
            is 0 in every row that does not name it.

    Raises:
        DataError: the file cannot be read or is malformed, a column is missing, a cell is not a label, no row has a
            label, or the first path does not exist.
    """
    table = _read(file, columns, known)
    if binary and len(table.names) == 1 and not _is_numeric(table):
        table = _spread(table, known)
    parse = _truth if binary else _number
    labels = np.array([[parse(cell, row.place) for cell in row.cells] for row in table.rows], np.float32)
    used = np.asarray(np.isfinite(labels).any(axis=1))
    if not used.any():
        raise DataError(f"{file} has no row with a label; expected labels in the columns {listed(table.names)}")
    if not used.all():
        logger.warning("%s: %d of %d rows have no label and are left out", file, (~used).sum(), len(used))
    paths = PathTable(row.path for row, use in zip(table.rows, used, strict=True) if use)
    if not os.path.lexists(file.parent / paths[0]):
        raise DataError(
            f"{file} names {paths[0]}, which is not in {file.parent}; write paths relative to the file in the first "
            "column"
        )
    return ImageList(paths, labels[used], tuple(map(escape_name, table.names)), str(file.parent), str(file))


def read_class_table(
    file: Path, folder: Path, column: str = "", group_column: str = ""
) -> tuple[ImageList, tuple[str, ...]]:
    """Read the images of a CSV file with their classes, numbered in the sorted order of the names, and their groups.

    Rows without a class are left out, with a warning. Without `group_column` there are no groups.

    Args:
        file: the file.
        folder: base folder of the paths in the first column.
        column: name of the column of classes; "" for a file with a single one besides the groups.
        group_column: name of the column of groups, or "".

    Raises:
        DataError: the file cannot be read or is malformed, a column is missing or not chosen, no row has a class, a row
            has no group, or an image does not exist.
    """
    table = _read(file, [column] if column else None, (), group_column)
    if len(table.names) != 1:
        raise DataError(
            f"{file} has the columns {listed(table.head[1:])}; name that of the classes: --label_column "
            f"{table.names[0] if table.names else 'NAME'}"
        )
    rows = [row for row in table.rows if row.cells[0]]
    if not rows:
        raise DataError(f"{file} has no row with a class; expected a class name in the column {listed(table.names)}")
    if len(rows) < len(table.rows):
        left_out = len(table.rows) - len(rows)
        logger.warning("%s: %d of %d rows have no class and are left out", file, left_out, len(table.rows))
    missing = [row for row in rows if not os.path.lexists(folder / row.path)]
    if missing:
        remedy = "give the folder of the images by --image_path, and file names with their endings"
        if is_image(missing[0].cells[0]):
            remedy = f"the column {listed(table.names)} looks like the paths: put the paths first"
        raise DataError(
            f"{missing[0].place} names {missing[0].path}, which is not in {folder} "
            f"({counted(len(missing), 'such row')} of {len(rows)}); {remedy}"
        )
    if group_column and (empty := [row.place for row in rows if not row.group]):
        rest = f"({counted(len(empty), 'such row')} of {len(rows)})"
        raise DataError(f"{empty[0]} has no value in the column --group_column {group_column} {rest}; fill it in")
    classes = sorted({row.cells[0] for row in rows})
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[row.cells[0]] for row in rows], np.int64)
    names = tuple(map(escape_name, classes))
    others = [name for name in table.head[1:] if name not in (*table.names, group_column)]
    note = f"{file} also has the columns {listed(others)} for --label_column" if others else ""
    paths = PathTable(row.path for row in rows)
    groups = tuple(row.group for row in rows) if group_column else ()
    return ImageList(paths, labels, names, str(folder), str(file), label_note=note), groups


def match_labels(images: ImageList, names: Sequence[str], source: str) -> ImageList:
    """Return images with the labels `names` only, in this order; messages name `source` as the origin of `names`.

    Raises:
        DataError: a label is missing.
    """
    place = {name: column for column, name in enumerate(images.classes)}
    missing = [name for name in names if name not in place]
    if missing:
        raise DataError(
            f"{images.source} lacks the labels {listed(missing)} of {source}; it has {listed(images.classes)}; "
            "name the columns of both alike"
        )
    unused = [name for name in images.classes if name not in set(names)]
    if unused:
        logger.warning("%s: the labels %s are not among those of %s", images.source, listed(unused), source)
    order = [place[name] for name in names]
    return dataclasses.replace(images, labels=images.labels[:, order], classes=tuple(names))


def label_notes(images: ImageList) -> Iterator[str]:
    """Yield a sentence that lists the labels whose known values are all equal in the training images, if any are."""
    values = images.labels
    filled = np.where(np.isnan(values), np.inf, values), np.where(np.isnan(values), -np.inf, values)
    lowest, highest = filled[0].min(axis=0), filled[1].max(axis=0)
    constant = [name for name, low, high in zip(images.classes, lowest, highest, strict=True) if not low < high]
    if constant:
        yield (
            f"{images.source}: the labels {listed(constant)} have one value in all images, so nothing can be learned "
            "about them; leave them out with --label_columns"
        )


def _read(file: Path, columns: Sequence[str] | None, known: Sequence[str], group_column: str = "") -> _Table:
    """Read a CSV file with stripped cells; raise DataError if it cannot be read or is malformed."""
    try:
        require_text(str(file), f"the table of labels {file}", "a CSV file", DataError)
        encoding = _encoding(file)
        with file.open(encoding=encoding, errors="surrogateescape", newline="") as stream:
            first = stream.readline()
            delimiter = max(DELIMITERS, key=first.count)
            stream.seek(0)
            lines = [[cell.strip() for cell in line] for line in csv.reader(stream, delimiter=delimiter) if line]
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    if len(lines) < 2 or len(lines[0]) < 2:
        raise DataError(f"{file} has no labels; expected a row of column names, then rows of a path and its labels")
    head = lines[0]
    if is_image(head[0]):
        raise DataError(f"{file} begins with the image {head[0]}; expected a first row with the names of the columns")
    if columns is None and known and set(known) <= set(head[1:]):
        columns = known
    group = _chosen(head, [group_column], file, flag("group_column"))[0] if group_column else None
    used = [i for i in range(1, len(head)) if i != group]
    if columns is not None:
        used = _chosen(head, columns, file, flag("label_columns", "label_column"))
    names = tuple(head[i] for i in used)
    if len(set(names)) < len(names):
        raise DataError(f"{file} has several columns of the same name: {listed(names)}; rename them")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(head):
            raise DataError(
                f"{file} row {number} has {counted(len(line), 'cell')}; expected {len(head)}, as in the first row"
            )
        path = line[0] if encoding == UTF8 else _existing(file, line[0])
        cells, name = [line[i] for i in used], "" if group is None else line[group]
        rows.append(_Row(f"{file} row {number}", path, cells, name))
    return _Table(tuple(head), names, rows)


def _encoding(file: Path) -> str:
    """Return the encoding of a CSV file: UTF-8 or, with a warning, GBK."""
    foreign = first_foreign_line(file)
    if foreign is None or not foreign.gbk:
        return UTF8
    logger.warning(
        "%s is not UTF-8 (%s), so it is read as GBK: '%s'; save it as UTF-8 if that is wrong",
        *(file, foreign, foreign.gbk),
    )
    return GBK


def _existing(file: Path, path: str) -> str:
    """Return `path`, decoded from a GBK file, or its original bytes as a path if only that one exists on disk."""
    same_bytes = os.fsdecode(path.encode(GBK, "surrogateescape"))
    has_other = os.path.lexists(file.parent / path) or not os.path.lexists(file.parent / same_bytes)
    return path if has_other else same_bytes


def _chosen(head: Sequence[str], columns: Sequence[str], file: Path, option: str) -> list[int]:
    unknown = [name for name in columns if name not in head[1:]]
    if unknown:
        raise DataError(f"{option} {listed(unknown)}: {file} has the columns {listed(head[1:])}")
    return [list(head).index(name, 1) for name in columns]


def _is_numeric(table: _Table) -> bool:
    """Return True if no cell of the single column is a name: all are numbers, booleans or empty."""
    cells = {row.cells[0].lower() for row in table.rows}
    return all(cell in (*_TRUTH, *_UNKNOWN) or re.fullmatch(r"[-+.\de]+", cell) for cell in cells)


def _spread(table: _Table, known: Sequence[str]) -> _Table:
    """Convert the single column of label names to one column of 0 or 1 per name; an empty cell names no label."""
    sets = [_names_in(row.cells[0]) for row in table.rows]
    names = tuple(sorted(set(known).union(*sets)))
    rows = [
        row._replace(cells=[str(int(name in present)) for name in names])
        for row, present in zip(table.rows, sets, strict=True)
    ]
    return _Table(table.head, names, rows)


def _names_in(cell: str) -> set[str]:
    for separator in _SEPARATORS:
        cell = cell.replace(separator, _SEPARATORS[0])
    return {name.strip() for name in cell.split(_SEPARATORS[0]) if name.strip()}


def _truth(cell: str, place: str) -> float:
    """Return 0 or 1, or NaN for an unknown label; raise DataError for other cells. `place` names the row."""
    if cell.lower() in _UNKNOWN:
        return math.nan
    if cell.lower() not in _TRUTH:
        raise DataError(
            f"{place} has the label '{cell}'; expected 0, 1, or an empty cell if it is unknown; --label_columns "
            "chooses the columns of labels"
        )
    return _TRUTH[cell.lower()]


def _number(cell: str, place: str) -> float:
    """Return a finite number, or NaN for an unknown label; raise DataError for other cells. `place` names the row."""
    if cell.lower() in _UNKNOWN:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if not abs(value) <= _LARGEST:
        raise DataError(
            f"{place} has the label '{cell}'; expected a number, or an empty cell if it is unknown; --label_columns "
            "chooses the columns of labels"
        )
    return value
