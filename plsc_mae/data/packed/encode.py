"""Reads the files of a list in parallel processes and resizes large images."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from plsc_mae.data import depth
from plsc_mae.data.decode import as_data_error, read_content
from plsc_mae.data.listing import ImageList
from plsc_mae.data.workers import end_with_parent
from plsc_mae.errors import DataError

_IMAGES_PER_TASK = 16
_TASKS_AHEAD = 4  # per process
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")  # modes that an 8-bit gray or RGB JPEG file can represent


class Resize(NamedTuple):
    """Rule for images with a shorter side above `short` pixels: reduce it to `short`, and save as JPEG of `quality`."""

    short: int
    quality: int


class EncodedFile(NamedTuple):
    """Content of a file for the archive."""

    content: bytes  # the bytes; empty for a file that cannot be read
    is_resized: bool = False  # whether the image was resized and is a JPEG file now
    problem: str = ""  # reason why the file cannot be read; "" for others


def encode_files(
    images: ImageList, first: int, resize: Resize | None, workers: int
) -> Generator[EncodedFile, None, None]:
    """Yield the content of each file in order, starting at index `first`.

    Args:
        images: the files.
        first: index of the first file.
        resize: rule by which large images are resized; None copies all files.
        workers: number of processes.

    Raises:
        DataError: a process died.
        ConfigError: see `encode_file`.
    """
    starts = range(first, len(images), _IMAGES_PER_TASK)
    context = multiprocessing.get_context("fork")  # the processes inherit the list
    with ProcessPoolExecutor(workers, context, _set_up, (images, resize, os.getpid())) as pool:
        waiting: deque[Future[list[EncodedFile]]] = deque()
        try:
            for start in starts:
                waiting.append(pool.submit(_encode_part, start))
                if len(waiting) > _TASKS_AHEAD * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                "a process that reads images died; the system may have run out of memory: lower --num_workers and run "
                "the command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_job: tuple[ImageList, Resize | None] | None = None  # set once in each process


def _set_up(images: ImageList, resize: Resize | None, parent: int) -> None:
    """Prepare a process: it exits with its parent and ignores Ctrl-C, which the parent handles."""
    global _job
    _job = images, resize
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()


def _encode_part(start: int) -> list[EncodedFile]:
    assert _job is not None
    images, resize = _job
    numbers = range(start, min(start + _IMAGES_PER_TASK, len(images)))
    return [encode_file(images.path(number), resize) for number in numbers]


def encode_file(path: str, resize: Resize | None) -> EncodedFile:
    """Return the content of a file or of a member of an archive, resized if it is larger than `resize` allows.

    Files with more than 8 bits per band, alpha or further bands are copied unchanged, because JPEG would lose them. For
    a file that cannot be read, the result has a `problem`, and no DataError is raised.

    Raises:
        ConfigError: the package that reads an archive cannot be imported.
    """
    try:
        with as_data_error(path):
            content = read_content(path)
            resized = None if resize is None else _resized(content, resize)
    except DataError as error:
        return EncodedFile(b"", problem=str(error))
    return EncodedFile(content if resized is None else resized, is_resized=resized is not None)


def _resized(content: bytes, resize: Resize) -> bytes | None:
    """Return the resized image as a JPEG file, or None if the file must be copied unchanged."""
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if depth.tiff_layout(content) is not None:  # has more bands than Pillow reads
            return None
        raise
    shorter = min(image.size)
    is_plain = image.mode in _PLAIN_MODES and not depth.is_deep(image) and not depth.has_extra_bands(image)
    if shorter <= resize.short or not is_plain:
        return None
    width, height = (max(1, round(side * resize.short / shorter)) for side in image.size)
    pixels = image.convert("L" if image.mode in ("1", "L") else "RGB")
    stream = io.BytesIO()
    pixels.resize((width, height), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=resize.quality)
    return stream.getvalue()
