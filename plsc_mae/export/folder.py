"""The folder of an export: files move into it after all have been written, and replace only earlier exports."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plsc_mae.errors import DataError
from plsc_mae.files import MARK

DESCRIPTION = "export.json"


@contextmanager
def new_export(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; if the block succeeds, move its files to `path`.

    Files of an earlier export in `path`, which its description lists, are replaced or removed.

    Raises:
        DataError: a file cannot be written, or would replace one that is not of an earlier export.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        _move(temporary, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; choose another --save_path") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_usable(path: Path) -> None:
    """Raise DataError unless `path` is free, a readable empty folder, or the folder of an earlier export."""
    try:
        if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
            return
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose another --save_path") from None
    if not earlier_files(path):
        raise DataError(f"{path} exists and is not the folder of an export; choose another --save_path")


def earlier_files(path: Path) -> list[str]:
    """Return the names of files that the description of an earlier export in a folder lists; [] without an export."""
    try:
        names = [str(name) for name in described(path)["files"]]
    except (KeyError, TypeError):
        return []
    return [name for name in names if name == Path(name).name]


def described(path: Path) -> dict[str, Any]:
    """Return the description of an earlier export in a folder; {} without an export."""
    try:
        content = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        return dict(content) if content.get("mark") == MARK else {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _move(temporary: Path, path: Path) -> None:
    earlier = set(earlier_files(path)) if path.is_dir() else set()
    new = sorted(file.name for file in temporary.iterdir())
    for name in new:
        if os.path.lexists(path / name) and name not in earlier:
            raise DataError(f"{path / name} exists and is not of an earlier export; choose another --save_path")
    path.mkdir(parents=True, exist_ok=True)
    for name in new:
        os.replace(temporary / name, path / name)
    for name in earlier - set(new):
        (path / name).unlink(missing_ok=True)
