"""List files: a text file with a path, or a path and a label, per line; and files with a class name per line."""

from __future__ import annotations

import logging
import os
import re
import shlex
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.data.folder_walk import is_image
from plsc_mae.data.packed.members import is_member
from plsc_mae.data.path_table import PathTable
from plsc_mae.errors import DataError
from plsc_mae.file_kinds import (
    EMPTY,
    REMEDIES,
    TABLE_SUFFIXES,
    UTF8,
    first_foreign_line,
    read_head,
    recognize,
    require_text,
)
from plsc_mae.names import GBK, escape_name, gbk_reading, gbk_text
from plsc_mae.wording import counted

CLASSES_FILE = "classes.txt"  # names the class numbers of a list file, of archives or of masks beside it
DELIMITERS = ",;\t"  # of CSV files
_MAX_CLASSES = 1_000_000  # labels are smaller
_MAX_DIGITS = 18  # of a label; Python refuses to convert thousands of digits
_MAX_LINE = 8192  # characters; Linux limits a path to 4096 bytes

logger = logging.getLogger(__name__)


class ListEntries(NamedTuple):
    """The n paths of a list file, absolute or relative to its folder, and their labels, int64 [n], -1 for none."""

    paths: PathTable
    labels: npt.NDArray[np.int64]


def read_list_file(file: Path, flag: str) -> ListEntries:
    """Read a list file as UTF-8, or as GBK if its first line that is not UTF-8 names an existing file only in GBK.

    Args:
        file: the list file.
        flag: the option that names it, for messages.

    Raises:
        DataError: the file is not text, has a malformed line or no lines, or its first path cannot be found or leads
            into a damaged archive.
        ConfigError: the package that reads the archive in its first path cannot be imported.
        OSError: the file cannot be read.
    """
    kind = recognize(read_head(file))
    if kind is not None and kind.name != EMPTY:
        raise DataError(
            f"{flag} {file} is {kind.name}; expected an image folder, a list, or a tar, zip or Parquet archive: "
            f"{REMEDIES[kind.group]}"
        )
    labels = array("q")
    encoding, doubt = _encoding(file)
    table = PathTable(_entries(file, labels, encoding))
    if not len(table):
        raise DataError(f"list file {file} names no image; expected 'path' or 'path label' on every line")
    if not _exists(file, table[0]):
        entry = gbk_reading(table[0]) or table[0]
        if _is_table(file, entry):
            raise DataError(
                f"{flag} {file} is a CSV file, not a list of images; {_split_command(file, table)} makes lists of it"
            )
        raise DataError(f"list file {file} names {entry}, which is not in {file.parent}; {_list_remedy(file, entry)}")
    if doubt:  # an error about the same file would contradict it
        logger.warning("%s", doubt)
    return ListEntries(table, np.frombuffer(labels, np.int64))


def _exists(file: Path, entry: str) -> bool:
    path = os.path.join(file.parent, entry)
    return os.path.lexists(path) or is_member(path)


def _encoding(file: Path) -> tuple[str, str]:
    """Return the encoding of a list file, UTF-8 or GBK, and a warning unless it is certain."""
    foreign = first_foreign_line(file)
    if foreign is None or _exists(file, _parse_entry(os.fsdecode(foreign.content))[0]):
        return UTF8, ""
    if foreign.gbk and _exists(file, _parse_entry(foreign.gbk)[0]):
        reading = f"so it is read as GBK: '{foreign.gbk}'; save it as UTF-8 if that is wrong"
        return GBK, f"{file} is not UTF-8 ({foreign}), {reading}"
    reading = f" ('{foreign.gbk}')" if foreign.gbk else ""
    return UTF8, (
        f"{file} is not UTF-8 ({foreign}), and this line names no file, neither by its bytes nor in GBK{reading}; "
        "save the list as UTF-8"
    )


def _entries(file: Path, labels: array[int], encoding: str) -> Iterator[str]:
    """Yield the paths of a list file and append their labels to `labels`; raise DataError for a malformed line.

    Names that are not UTF-8 are read as Python reads them from a folder, so the files can be opened.
    """
    with file.open(encoding=encoding, errors="surrogateescape") as lines:
        number = 0
        while text := lines.readline(_MAX_LINE + 1):
            number += 1
            line = text.strip()
            if len(text) > _MAX_LINE or "\0" in line:
                wrong = f"is longer than {_MAX_LINE} characters" if len(text) > _MAX_LINE else "has a zero byte"
                raise DataError(f"{file} line {number} {wrong}; expected a text file with a path per line")
            if not line:
                continue
            path, label = _parse_entry(line)
            if label >= _MAX_CLASSES or (labels and (label < 0) != (labels[0] < 0)):
                before = f" after lines with{'out' if labels[0] < 0 else ''} a label" if labels else ""
                raise DataError(
                    f"{file} line {number}: expected 'path' on every line, or 'path label' on every line with labels "
                    f"from 0 to {_MAX_CLASSES - 1}, got '{line}'{before}"
                )
            labels.append(label)
            yield path


def _parse_entry(line: str) -> tuple[str, int]:
    labeled = re.fullmatch(r"(.*\S)\s+(\d+)", line)
    if labeled is None:
        return line, -1
    digits = labeled[2]
    return labeled[1], int(digits) if len(digits) <= _MAX_DIGITS else _MAX_CLASSES


def _list_remedy(file: Path, entry: str) -> str:
    """Return the remedy for an entry of a list file that names no file."""
    if "://" in entry:
        return "download the images and list their paths"
    if entry[0] in "\"'":
        return "write paths without quotation marks"
    if "\\" in entry:
        return "separate folders by / and not by a backslash"
    if re.search(r"[,;]", entry):
        return "write 'path label' with a blank in between, labels as numbers from 0"
    if is_image(entry.split()[0]) and not is_image(entry):
        return "write one path and at most one label per line, labels as numbers from 0"
    return "write paths relative to the list file, and no line of headings or comments"


def _is_table(file: Path, first: str) -> bool:
    """Return whether a file is CSV, by its name or as its first line names columns and no image."""
    cells = _cells(first)
    return len(cells) > 1 and (file.name.lower().endswith(TABLE_SUFFIXES) or not any(map(is_image, cells)))


def _cells(line: str) -> list[str]:
    return [cell.strip(" '\"") for cell in line.split(max(DELIMITERS, key=line.count))]


def _split_command(file: Path, lines: PathTable) -> str:
    """Return the command that makes lists of a CSV file, with the options that its columns and paths need."""
    row = lines[min(1, len(lines) - 1)]
    path = _cells(gbk_reading(row) or row)[0]
    named = file.name.lower().endswith(TABLE_SUFFIXES)
    table = shlex.quote(str(file if named else file.with_suffix(TABLE_SUFFIXES[0])))
    renaming = "" if named else f"rename it to {table}, and "
    needed = {"image_path DIR": not _exists(file, path), "label_column NAME": len(_cells(lines[0])) > 2}
    options = "".join(f" --{option}" for option, is_needed in needed.items() if is_needed)
    return f"{renaming}`plsc-mae split {table} DST{options}`"


def read_label_names(file: Path, labels: npt.NDArray[np.int64], source: str) -> tuple[str, ...]:
    """Read a name for each class number, in the order of the numbers; classes without images are allowed.

    Args:
        file: text file with one class name per line.
        labels: class numbers [n] of the images.
        source: list file or archives of the images, for messages.

    Raises:
        DataError: the file cannot be read or is not text, an empty line is between names, a name occurs twice, or a
            class has none.
    """
    names = read_class_names(str(file))
    remedy = f"correct it, or rename it if it does not belong to {source}"
    for number, name in enumerate(names):
        if not name:
            raise DataError(f"{file} line {number + 1} is empty; expected the name of class {number}: {remedy}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{file} has the name '{twice[0]}' in lines {names.index(twice[0]) + 1} and "
            f"{len(names) - names[::-1].index(twice[0])}; expected another name for each class: {remedy}"
        )
    if labels.max() >= len(names):
        start = "; the labels seem to start at 1, so subtract 1 from every label" if labels.min() == 1 else ""
        raise DataError(
            f"{file} has {counted(len(names), 'class name')}, but {source} has labels from {labels.min()} to "
            f"{labels.max()}; expected one name per line for each label from 0{start or f': {remedy}'}"
        )
    return names


def read_class_names(path: str) -> tuple[str, ...]:
    """Read one class name per line, in UTF-8 or, with a warning, in GBK; other bytes are escaped as in folder names.

    Raises:
        DataError: the file cannot be read or is not text.
    """
    try:
        require_text(path, f"the list of classes {path}", "a text file with one class name per line", DataError)
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the class names of {path}: {error.strerror}") from None
    text = content.decode(UTF8, errors="surrogateescape")
    if reading := gbk_text(content):
        text = reading
        logger.warning(
            "%s is not UTF-8, so its class names are read as GBK: '%s'; save it as UTF-8 if that is wrong",
            *(path, next(line.strip() for line in reading.splitlines() if not line.isascii())),
        )
    return tuple(escape_name(name.strip()) for name in text.rstrip().splitlines())
