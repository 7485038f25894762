"""Atomic replacement of files, and protection of files that plsc_mae did not write."""

from __future__ import annotations

import csv
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MARK = "written by plsc_mae"  # in the metadata of result files
_SEARCHED_BYTES = 1 << 16  # at either end of a file


@contextmanager
def atomic_replacement(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; if the block succeeds, rename that file to `path`, else delete it.

    Readers therefore see either the old file or the complete new one. Writing in place would also corrupt arrays that
    are still memory-mapped from the old file. Missing parent folders are created. The data are not flushed to the disk
    (fsync). The file gets the permissions that the umask implies, even if a library creates it with others.

    Raises:
        OSError: the folder or the temporary file cannot be created, or the file cannot be renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.touch()
        permissions = stat.S_IMODE(temporary.stat().st_mode)  # a process cannot read its umask without changing it
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != permissions:  # safetensors: 0600
            temporary.chmod(permissions)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def result_replacement(path: Path, signs: Sequence[str] = (MARK,)) -> Iterator[Path]:
    """Yield a temporary path for the result file `path`, as `atomic_replacement` does, and refuse other files.

    If `path` is a symbolic link, its target is replaced.
    """
    refuse_foreign(path, signs)
    with atomic_replacement(Path(os.path.realpath(path))) as temporary:
        yield temporary


def refuse_foreign(path: Path, signs: Sequence[str] = (MARK,)) -> None:
    """Raise FileExistsError if `path` exists, unless it is an empty file or the result of an earlier run.

    Args:
        path: the file to be written.
        signs: texts that every result of this kind contains near its beginning or its end; all of them are required.

    Raises:
        OSError: `path` cannot be examined, for example because a parent is a file.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return
    if stat.S_ISREG(status.st_mode):
        ends = _ends(path, status.st_size)
        if not status.st_size or all(sign.encode() in ends for sign in signs):
            return
    raise FileExistsError(errno.EEXIST, "it exists and is not a result of this command", str(path))


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV in UTF-8, with a byte order mark unless all is ASCII; Excel misreads UTF-8 without one."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    content = text.getvalue()
    path.write_text(content, encoding="utf-8" if content.isascii() else "utf-8-sig", newline="")


def _ends(path: Path, size: int) -> bytes:
    """Return the first and last _SEARCHED_BYTES bytes of a file; of a safetensors file, the start with its header."""
    with path.open("rb") as file:
        head = file.read(_SEARCHED_BYTES)
        if path.suffix == ".safetensors":
            return head + file.read(min(int.from_bytes(head[:8], "little"), size))
        file.seek(max(0, size - _SEARCHED_BYTES))
        return head + file.read()
