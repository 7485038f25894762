"""Image lists of large folders, cached for later runs, as long as the modification times of all folders stay.

The modification time of a folder changes when an entry is added, removed or renamed, and these are the only changes
that affect the list. Overwriting a file does not affect it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from plsc_mae.data import list_cache
from plsc_mae.data.folder_walk import Count, FolderStamp, LeftOut, recording_scans
from plsc_mae.data.path_table import PathTable

KEPT_IMAGES = 10_000  # shorter lists are not cached
_SETTLED_SECONDS = 2.0  # newer changes prevent caching, because file systems may round times this much
_FORMAT = 1

Images = TypeVar("Images")
logger = logging.getLogger(__name__)


def kept_list(key: tuple[object, ...], build: Callable[..., Images], scan: Callable[[], Images]) -> Images:
    """Return the cached list of a folder if the folder is unchanged, else the result of `scan`.

    That result is cached if it has at least KEPT_IMAGES images, none in archives, and no folder changed recently.

    Args:
        key: identifies the folder and the rules of the listing.
        build: creates a list of images from the arguments of `ImageList`.
        scan: lists the images.
    """
    entry = list_cache.entry("lists", _FORMAT, *key)
    known = _load(entry)
    if known is not None:
        logger.info("%s is unchanged; using the list of %d images from an earlier run", known[0][3], len(known[0][0]))
        return build(*known[0], left_out=known[1])
    started = time.time_ns()
    with recording_scans() as folders:
        images: Any = scan()
    settled = started - int(_SETTLED_SECONDS * 1e9)
    if len(images) >= KEPT_IMAGES and not images.archives and all(folder.mtime_ns < settled for folder in folders):
        _store(entry, images, list(dict.fromkeys(folders)))
    return images


def _load(entry: Path) -> tuple[tuple[Any, ...], LeftOut] | None:
    """Return (arguments of `ImageList`, files left out); None if there is no usable cached list or a folder changed."""
    arrays = list_cache.load(entry)
    if arrays is None:
        return None
    try:
        meta = json.loads(arrays["meta"].tobytes())
        if any(FolderStamp.of(folder[0]) != FolderStamp(*folder) for folder in meta["folders"]):
            return None
        paths = PathTable.from_arrays(arrays["paths"], arrays["ends"])
        left_out = LeftOut()
        left_out.hidden, left_out.loose = (Count(*meta[name]) for name in ("hidden", "loose"))
        left_out.suffixes = {name: Count(*count) for name, count in meta["suffixes"].items()}
        return (paths, arrays["labels"].astype(np.int64), tuple(meta["classes"]), meta["root"]), left_out
    except (KeyError, TypeError, ValueError, OSError):
        return None


def _store(entry: Path, images: Any, folders: list[FolderStamp]) -> None:
    paths, ends = images.paths.arrays()
    left_out: LeftOut = images.left_out
    meta = {
        "folders": folders,
        "hidden": left_out.hidden,
        "loose": left_out.loose,
        "suffixes": left_out.suffixes,
        "classes": images.classes,
        "root": images.root,
    }
    packed = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    list_cache.store(entry, {"paths": paths, "ends": ends, "labels": images.labels, "meta": packed})
