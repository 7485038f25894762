"""Append-only files of whole records. Records wait in memory while the disk cannot be written."""

from __future__ import annotations

import json
import logging
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import CheckpointError
from plsc_mae.names import as_json
from plsc_mae.train.checkpoint.file import sync_folder
from plsc_mae.train.log.tags import CONFIG, HPARAMS

logger = logging.getLogger(__name__)

LENGTH = struct.Struct("<Q")  # precedes every VisualDL record
VISUALDL_FILE = "vdlrecords.run.log"
BINS = 40  # of a histogram


class AppendedFile:
    """Append-only file, whose records wait in memory while the disk cannot be written.

    Args:
        path: path of the file, which is created if missing.
        option: option that the error message names as the remedy.

    Attributes:
        pending: bytes that are not yet written.

    Raises:
        CheckpointError: the file cannot be created or touched.
    """

    def __init__(self, path: Path, option: str = "--output_dir") -> None:
        self.path = path
        self.pending = b""
        self._warned = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise CheckpointError(f"cannot write the log {path}: {error.strerror}; choose another {option}") from None

    def append(self, record: bytes) -> None:
        """Append a record; if writing fails, warn once and retry at the next `append` or `sync`."""
        self.pending += record
        self._write_pending()

    def sync(self) -> bool:
        """Write and flush all records to the disk, and return whether that succeeded."""
        if not self._write_pending():
            return False
        try:
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())
            sync_folder(self.path.parent)
        except OSError as error:
            self._warn(error)
            return False
        return True

    def _write_pending(self) -> bool:
        if not self.pending:
            return True
        try:
            with open(self.path, "ab", buffering=0) as file:
                _append_whole(file.fileno(), self.pending)
        except OSError as error:
            self._warn(error)
            return False
        self.pending = b""
        if self._warned:
            logger.warning("%s is writable again; no records were lost", self.path)
            self._warned = False
        return True

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            logger.warning("cannot write %s: %s; its records wait in memory", self.path, error.strerror)
            self._warned = True


def _append_whole(descriptor: int, data: bytes) -> None:
    size = os.fstat(descriptor).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        os.ftruncate(descriptor, size)  # leave no partial record
        raise


class JsonLines(AppendedFile):
    """File with one JSON object per line."""

    def add(self, record: dict[str, Any]) -> None:
        """Append a record as a line."""
        self.append(as_json(record).encode() + b"\n")

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Keep the records for which `wanted` returns True, and return them; others and damaged lines are removed.

        Raises:
            OSError: the file cannot be read or written.
        """
        content = self.path.read_bytes()
        kept, lines = [], []
        for line in content.splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if line.endswith(b"\n") and isinstance(record, dict) and wanted(record):
                kept.append(record)
                lines.append(line)
        _replace_content(self.path, content, b"".join(lines))
        return kept


class VisualDLRecords(AppendedFile):
    """File of a run's VisualDL records, in the format of `visualdl.LogWriter`.

    LogWriter (2.5.3) cannot replace this class. It never removes records, so a resumed run would show the steps beyond
    the checkpoint twice. VisualDL shows only the newest file of a folder, so a file per start would hide the earlier
    part of a curve. A kill loses the records that wait in LogWriter's thread. A full disk leaves part of a record, and
    the file cannot be read beyond it.

    Args:
        log_dir: folder of the file; every start of a run appends to the same file.
        name: name of the run in VisualDL, stored in a new file.

    Raises:
        CheckpointError: see `AppendedFile`.
        ImportError: visualdl is not installed, or its import fails.
    """

    def __init__(self, log_dir: Path, name: str = "") -> None:
        try:
            from visualdl.component import base_component
            from visualdl.proto import record_pb2
        except Exception as error:  # an unsuitable protobuf is a TypeError
            raise ImportError(" ".join(str(error).split())[:200]) from error

        self._make, self._record, self._name = base_component, record_pb2.Record, name
        self._texts: dict[str, str] = {}  # the newest text by tag
        self._has_hparams = False
        super().__init__(log_dir / VISUALDL_FILE, "--log_dir")

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Append one record at `step` for each tag in `values`, with its scalar."""
        now = _milliseconds()
        self._add(self._make.scalar(tag=tag, value=value, step=step, walltime=now) for tag, value in values.items())

    def add_images(self, images: Mapping[str, npt.NDArray[np.uint8]], step: int) -> None:
        """Append one record at `step` for each image in `images`, uint8 [H, W, 3] by tag."""
        now = _milliseconds()
        self._add(self._make.image(tag=tag, image_array=x, step=step, walltime=now) for tag, x in images.items())

    def add_histograms(self, values: Mapping[str, npt.NDArray[np.float32]], step: int) -> None:
        """Append one record at `step` for each tag in `values`, with the histogram of its array."""
        now, counts = _milliseconds(), {tag: np.histogram(x, bins=BINS) for tag, x in values.items()}
        self._add(self._make.histogram(tag, *histogram, step, now) for tag, histogram in counts.items())

    def add_options(self, tables: Mapping[str, Mapping[str, str]], step: int) -> None:
        """Append each table of options as a text record at `step`, unless its newest record has the same text.

        VisualDL shows a text as one paragraph without line breaks, so every table has a tag of its own.
        """
        texts = {f"{CONFIG}/{title}": _one_line(table) for title, table in tables.items()}
        new = {tag: text for tag, text in texts.items() if self._texts.get(tag) != text}
        now = _milliseconds()
        self._add(self._make.text(tag=tag, text_string=text, step=step, walltime=now) for tag, text in new.items())
        self._texts |= new

    def add_hyper_parameters(self, values: Mapping[str, int | float | str], metrics: Iterable[str], step: int) -> None:
        """Append the run's row in the table of hyper-parameters, unless the file already has it.

        VisualDL fills the columns `metrics`, which are tags of curves, with their newest values.
        """
        if self._has_hparams:
            return
        record = self._make.hparam(self._name, dict(values), list(metrics), _milliseconds())
        record.values[0].id = step
        self._add(iter([record]))
        self._has_hparams = True

    def keep(self, wanted: Callable[[str, int], bool]) -> None:
        """Keep the record that names the run and those for which `wanted(tag, step)` returns True; remove all others.

        A truncated record at the end is removed, too. If no record is left, one that names the run is added.

        Raises:
            OSError: the file cannot be read or written.
        """
        content = self.path.read_bytes()
        kept = []
        for framed in _framed_records(content):
            values = self._record.FromString(framed[LENGTH.size :]).values
            if values and (values[0].HasField("meta_data") or wanted(values[0].tag, values[0].id)):
                kept.append(framed)
                self._has_hparams |= values[0].tag == HPARAMS
                if values[0].HasField("text"):
                    self._texts[values[0].tag] = values[0].text.encoded_text_string
        _replace_content(self.path, content, b"".join(kept))
        if not kept:  # VisualDL's reader expects this record first
            self._add(iter([self._make.meta_data(display_name=self._name, walltime=_milliseconds())]))

    def close(self) -> None:
        """Do nothing: every record has been appended, or waits for `sync`."""

    def _add(self, records: Iterator[Any]) -> None:
        encoded = [record.SerializeToString() for record in records]
        self.append(b"".join(LENGTH.pack(len(data)) + data for data in encoded))


def _milliseconds() -> int:
    return round(time.time() * 1000)


def _one_line(table: Mapping[str, str]) -> str:
    return " \N{BULLET} ".join(f"{name} = {value}" for name, value in table.items())


def has_visualdl_records(path: Path) -> bool:
    """Return whether a file of VisualDL records has more than the first record, which holds no numbers."""
    try:
        with open(path, "rb") as file:
            header = file.read(LENGTH.size)
            size = path.stat().st_size
    except OSError:
        return False
    return len(header) == LENGTH.size and size > LENGTH.size + LENGTH.unpack(header)[0]


def _framed_records(content: bytes) -> Iterator[bytes]:
    """Yield each record with its length prefix, up to the first truncated or empty one."""
    start = 0
    while start + LENGTH.size <= len(content):
        end = start + LENGTH.size + LENGTH.unpack_from(content, start)[0]
        if not start + LENGTH.size < end <= len(content):
            return
        yield content[start:end]
        start = end


def _replace_content(path: Path, before: bytes, after: bytes) -> None:
    """Replace the content `before` of a file by `after`; truncate if possible, which needs no disk space."""
    if before == after:
        return
    if before.startswith(after):
        os.truncate(path, len(after))
    else:
        replace_content(path, after)


def replace_content(path: Path, content: bytes) -> None:
    """Replace the content of a small file atomically; if that raises OSError, the old content is unchanged."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
