"""Result files and exit codes of the commands that process images one by one.

Unless --bad_image is error, such a command leaves out images that it cannot read, and then exits with code 1, except
for `stats`, whose result is no result of the single images.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from plsc_mae.errors import DataError
from plsc_mae.files import MARK, refuse_foreign

INCOMPLETE = 1  # exit code

logger = logging.getLogger(__name__)


def require_free(*paths: Path, signs: Sequence[str] = (MARK,)) -> None:
    """Raise DataError if a path is not free for a result, see `files.refuse_foreign`."""
    for path in paths:
        try:
            refuse_foreign(path, signs)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None


def exit_code(unreadable: int) -> int:
    """Return the exit code of a command that could not read `unreadable` of its images."""
    return INCOMPLETE if unreadable else 0


def summarize(unreadable: int, count: int) -> int:
    """Log the number of `unreadable` images among `count`, if there are any, and return the exit code."""
    if unreadable:
        logger.warning("%d of %d images could not be read and are left out", unreadable, count)
    return exit_code(unreadable)
