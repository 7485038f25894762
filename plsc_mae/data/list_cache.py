"""Lists of files and indexes of archives, kept in the user's cache folder for later runs.

The folder is $XDG_CACHE_HOME/plsc_mae, by default ~/.cache/plsc_mae; it may be removed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plsc_mae.files import atomic_replacement

Arrays = dict[str, npt.NDArray[Any]]


def entry(kind: str, *key: object) -> Path:
    """Return the path of a cached list or index; `key` identifies the data and the rules of the listing."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    digest = hashlib.sha256(repr(key).encode("utf-8", "surrogatepass")).hexdigest()
    return Path(base) / "plsc_mae" / kind / f"{digest[:40]}.npz"


def load(path: Path) -> Arrays | None:
    """Return the arrays of an entry; None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except Exception:  # a damaged npz file raises exceptions of many types
        return None


def store(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an entry; do nothing if it cannot be written."""
    with contextlib.suppress(OSError), atomic_replacement(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # mypy takes them for allow_pickle
