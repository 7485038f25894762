"""Features on disk, appended batch by batch, so that an interrupted computation can continue.

Rows are written as soon as they are computed and are read through a memory map, so they are never all in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import paddle

from plsc_mae.analysis.features import Arrays, Shapes, TokenFeatures, convert
from plsc_mae.config.features import FeatureConfig
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.errors import DataError
from plsc_mae.files import MARK, atomic_replacement
from plsc_mae.folder_lock import LOCK, locked
from plsc_mae.names import as_json
from plsc_mae.parallel.world import World
from plsc_mae.wording import counted

PROGRESS, SUFFIX = "progress.json", ".rows"
COMMIT_SECONDS = 10.0  # shortest time between two records of the progress, because each waits for the disk
EARLIER_LOCK = "lock"  # lock file of earlier versions
_RECORDED = {"identity": dict, "images": int, "rows": int, "unreadable": list}  # fields of the progress and their types
# Options left out of the identity: they do not influence the features of an image, or select the network or the images,
# which have digests of their own.
_NO_INFLUENCE = frozenset(
    (
        *("save_path", "load_path", "num_workers", "device", "dtype", "nb_knn", "temperature", "num_pictures", "map"),
        *("map_images", "model_path", "model_key", "model_prefix", "data_path", "eval_data_path", "split"),
        *("stats", "picture_bands", "bad_image"),
    )
)

logger = logging.getLogger(__name__)


def identify(
    config: FeatureConfig, encode: TokenFeatures, images: ImageList, world: World, pixel_format: PixelFormat
) -> dict[str, str]:
    """Return the identity of features, {name for messages: value}: all inputs that determine their bits.

    Only the contents of the image files are left out.
    """
    names = hashlib.sha256(f"{images.source}\0{len(images)}".encode(errors="surrogateescape"))
    for index in range(len(images)):
        names.update(b"\0" + os.fsencode(images.paths[index]))
    weights = hashlib.sha256()
    for name, value in encode.encoder.state_dict().items():
        weights.update(name.encode())
        weights.update(np.ascontiguousarray(value.numpy()).data)
    options = {
        f"--{field.name}": str(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in _NO_INFLUENCE
    }
    environment = f"{paddle.__version__} on {'GPU' if world.is_gpu else 'CPU'}"
    return options | {
        "images": names.hexdigest(),
        "weights": weights.hexdigest(),
        "pixel format": repr(tuple(pixel_format)),
        "mean and std": repr([values.flatten().tolist() for values in (encode.normalize.mean, encode.normalize.std)]),
        "number of processes": str(world.size),
        "Paddle": environment,
    }


class FeatureStore:
    """Folder with the features of a data set; implements `features.Rows`.

    Every array is a file of rows without a header. `progress.json` has the number of finished images and the identity
    of the features, and is written after the rows have reached the disk. When the computation continues, rows beyond
    the recorded ones are removed, so the result is bit-identical to that of an uninterrupted computation.

    Args:
        folder: the folder; missing parents are created.
        identity: result of `identify`; features of another identity in the folder are removed.
        dtype: type of the stored features.

    Raises:
        DataError: the folder cannot be written, or has files of unknown origin and no record of the progress.
        FolderError: another process writes to the folder, or its lock cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], dtype: str = "float32") -> None:
        self.folder, self.identity, self.dtype = folder, {**identity, "dtype": dtype}, np.dtype(dtype)
        self.images = self._rows = 0
        self.unreadable: list[int] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, BinaryIO] = {}
        self._committed = time.monotonic()
        self._lock = contextlib.ExitStack()  # with the lock of the folder
        with self._reporting():
            folder.mkdir(parents=True, exist_ok=True)
            self._restore_locked()

    def open(self, shapes: Shapes, count: int) -> None:
        """Open the files for appending, and discard all rows if some recorded ones are missing. `count` is unused.

        Raises:
            DataError: a file cannot be opened.
        """
        self._shapes = dict(shapes)
        with self._reporting():
            if any(self._size(name) < self._rows * self._row_bytes(name) for name in shapes):
                logger.warning("%s lacks rows that its progress file counts; computing all features again", self.folder)
                self.images, self._rows, self.unreadable = 0, 0, []
            for name in shapes:
                self._files[name] = file = self._path(name).open("ab")
                file.truncate(self._rows * self._row_bytes(name))

    def add(self, arrays: Arrays, images: int, unreadable: Sequence[int]) -> None:
        """Append rows, see `features.Rows`.

        Raises:
            DataError: a file cannot be written, or a feature exceeds the range of the type.
        """
        with self._reporting():
            for name, array in arrays.items():
                self._files[name].write(np.ascontiguousarray(convert(array, self.dtype)).data)
            self.images, self._rows = self.images + images, self._rows + images - len(unreadable)
            self.unreadable += unreadable
            if time.monotonic() - self._committed >= COMMIT_SECONDS:
                self._commit()

    def finish(self) -> Arrays:
        """Record the progress, close the files, and return all rows by name as read-only memory maps.

        Without rows, the arrays are empty and in memory.

        Raises:
            DataError: a file cannot be written.
        """
        with self._reporting():
            self._commit()
        for file in self._files.values():
            file.close()
        return {name: self._mapped(name, shape) for name, shape in self._shapes.items()}

    def remove(self) -> None:
        """Remove the store's files, and the folder if it has no others; arrays of `finish` stay valid.

        Raises:
            DataError: a file cannot be removed.
        """
        with self._reporting():
            self._clear()
            self._lock.close()
            with contextlib.suppress(OSError):  # the user's files stay
                self.folder.rmdir()

    def _mapped(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        if not self._rows:
            return np.empty((0, *shape), self.dtype)  # an empty file cannot be mapped
        return np.memmap(self._path(name), self.dtype, "r", shape=(self._rows, *shape))

    def _restore_locked(self) -> None:
        """Lock and restore the folder; raise DataError before that if it has files of unknown origin."""
        content = {path.name for path in self.folder.iterdir()} - {LOCK, EARLIER_LOCK}
        if self._stored() is None and any(not name.endswith((SUFFIX, ".partial")) for name in content):
            raise DataError(f"{self.folder} has files of unknown origin; move them, or choose another --save_path")
        self._lock.enter_context(locked(self.folder, "--save_path"))
        self._restore()

    def _restore(self) -> None:
        """Adopt the recorded progress, or remove the files if no progress is recorded or the identity differs."""
        stored = self._stored()
        if stored is None:  # new, or killed before the first record
            self._clear()
            return
        changed = [name for name, value in self.identity.items() if stored["identity"].get(name) != value]
        if changed:
            names = " and ".join(changed)
            logger.warning("%s has features of other %s; computing all features again", self.folder, names)
            self._clear()
            return
        self.images, self._rows, self.unreadable = stored["images"], stored["rows"], stored["unreadable"]
        logger.info("continuing after %s, whose features are in %s", counted(self.images, "image"), self.folder)

    def _stored(self) -> dict[str, Any] | None:
        """Return the recorded progress; None if there is no progress file, or one that this class did not write."""
        try:
            stored = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        is_own = isinstance(stored, dict) and stored.get("origin") == MARK
        return stored if is_own and all(type(stored.get(name)) is kind for name, kind in _RECORDED.items()) else None

    def _commit(self) -> None:
        """Record the progress, after the rows have reached the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        position = {"images": self.images, "rows": self._rows, "unreadable": self.unreadable}
        with atomic_replacement(self.folder / PROGRESS) as temporary:
            temporary.write_text(as_json({"origin": MARK, "identity": self.identity, **position}), encoding="utf-8")
        self._committed = time.monotonic()

    def _clear(self) -> None:
        others = (PROGRESS, f".{PROGRESS}.partial", EARLIER_LOCK)
        for path in (*self.folder.glob(f"*{SUFFIX}"), *(self.folder / name for name in others)):
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}{SUFFIX}"

    def _size(self, name: str) -> int:
        path = self._path(name)
        return path.stat().st_size if path.exists() else 0

    def _row_bytes(self, name: str) -> int:
        return int(np.prod(self._shapes[name], dtype=np.int64)) * self.dtype.itemsize

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn an OSError into a DataError."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"cannot write to {self.folder}: {error.strerror}; free some space or choose another --save_path"
            ) from None
