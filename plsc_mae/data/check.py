"""Check of image files, mostly without decoding: by the header and, in the usual formats, the file's length or end.

A file that looks damaged is decoded, so that no usable file is reported as bad. Damage inside the pixel data is found
only when an image is decoded.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from plsc_mae.data import depth
from plsc_mae.data.decode import any_number_of_pixels, open_image, open_regular, reads_bands
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.loader import WORKER_TIMEOUT, build_loader
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.raster import reads_regions
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.transfer import HOST_PREFIX, INDEX
from plsc_mae.data.transforms import Sample
from plsc_mae.data.workers import CurrentRead
from plsc_mae.errors import DataError

_BATCH = 256  # files per batch of a worker
_FEW_FILES = 4096  # up to this number of files, starting workers would take longer than the check
NOTES = HOST_PREFIX + "notes"  # name of the flags in samples
_ESTIMATE_SECONDS = 2.0  # time after which the duration is estimated
_NAMED_SECONDS = 20.0  # shorter checks are not announced
_TIFF_PARTS = ((273, 279), (324, 325))  # TIFF tags (offsets, byte counts), of strips and of tiles

logger = logging.getLogger(__name__)


class Note(enum.IntFlag):
    """Properties of a file."""

    BAD = 1  # cannot be read
    DEEP = 2  # more than 8 bits per band
    BANDS = 4  # alpha, or other content that the conversion to gray or RGB drops
    PAGES = 8  # further pages or frames
    FATAL = 16  # crashed or blocked a worker; must not be read in this process


class FileReport(NamedTuple):
    """Properties of a file."""

    notes: Note
    reason: str  # why it cannot be read; "" if it can be read
    bands: int = 0  # number of its bands if they are the reason, else 0


def examine_file(path: str, pixel_format: PixelFormat = RGB) -> FileReport:
    """Check whether a file can be read, and find its properties; most intact files are not decoded.

    Returns:
        The properties, and "" or the reason. A file that cannot be read has `Note.BAD` and a reason; no error is raised
        for it. The other properties are found only if Pillow can open the file.

    Raises:
        ConfigError: the package that reads the format or the archive cannot be imported.
    """
    notes, complete, unmarked = Note(0), False, False
    try:
        any_size = pixel_format.tile > 0
        with (
            open_regular(path, any_size=any_size) as (file, size),
            any_number_of_pixels() if any_size else nullcontext(),
            Image.open(file) as header,
        ):
            notes |= Note.DEEP if depth.is_deep(header) else Note(0)
            notes |= Note.BANDS if depth.has_extra_bands(header) else Note(0)
            unmarked = depth.is_unmarked_band(header)
            notes |= Note.PAGES if depth.has_pages(header) else Note(0)
            readable = pixel_format.range is not None or depth.has_default_range(header)
            complete = readable and _is_complete(header, file, size)
    except Exception:  # Pillow's plug-ins let exceptions of many types escape; decoding finds the reason
        pass
    by_bands = reads_bands(path, pixel_format)
    if complete and not by_bands:
        if unmarked:
            depth.log_dropped_bands(path)  # here, because data workers decode the file
        return FileReport(notes, "")
    try:
        # This checks the number of bands and, for a file that is read by regions, its length.
        image = open_image(path, pixel_format=pixel_format)
        if not complete and not (by_bands and reads_regions(path)):
            image.resize((min(image.height, 8), min(image.width, 8)))
    except DataError as error:
        bands = error.__cause__.bands if isinstance(error.__cause__, depth.BandError) else 0
        return FileReport(notes | Note.BAD, str(error), bands)
    return FileReport(notes, "")


def _is_complete(header: Image.Image, file: IO[bytes], size: int) -> bool:
    """Return False if the file seems to be truncated; formats that are not listed here count as complete."""
    kind = header.format
    if kind in ("JPEG", "MPO"):
        return _read_at(file, size - 2, 2) == b"\xff\xd9"
    if kind == "PNG":
        return _read_at(file, size - 8, 4) == b"IEND"
    if kind == "GIF":
        return _read_at(file, size - 1, 1) == b";"
    if kind == "WEBP":
        return int.from_bytes(_read_at(file, 4, 4), "little") + 8 <= size
    if kind == "TIFF":
        tags = getattr(header, "tag_v2", {})
        offsets = [offset for tag, _ in _TIFF_PARTS for offset in tags.get(tag, ())]
        lengths = [length for _, tag in _TIFF_PARTS for length in tags.get(tag, ())]
        ends = [offset + length for offset, length in zip(offsets, lengths, strict=False)]
        return bool(ends) and max(ends) <= size
    tiles = getattr(header, "tile", ())
    if kind in ("BMP", "PPM") and tiles:
        return tiles[-1][2] + header.width * header.height * _bytes_per_pixel(header) <= size
    return True


def _bytes_per_pixel(header: Image.Image) -> float:
    """Estimate the stored bytes per pixel; too high an estimate only makes an intact file be decoded."""
    return 1 / 8 if header.mode == "1" else len(header.getbands()) * (4 if depth.is_deep(header) else 1)


def _read_at(file: IO[bytes], offset: int, count: int) -> bytes:
    file.seek(max(0, offset))
    return file.read(count)


class HeaderDataset:
    """Data set of the properties of files.

    A sample has three int64 scalars: `NOTES` (see `Note`), `INDEX`, and "skipped", which is always 0.

    Attributes:
        current_read: see `ReadsFiles`.
    """

    def __init__(self, images: ImageList, pixel_format: PixelFormat) -> None:
        self.images, self.pixel_format = images, pixel_format
        self.current_read: CurrentRead | None = None
        self._fatal: set[int] = set()
        self._last = ("", Note(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample:
        fatal = key.index in self._fatal
        notes = Note.BAD | Note.FATAL if fatal else self._examine(self.name(key.index))
        numbers = {NOTES: int(notes), INDEX: key.index, "skipped": 0}
        return {name: np.asarray(number, np.int64) for name, number in numbers.items()}

    def _examine(self, path: str) -> Note:
        """Return the properties of a file; those of the last file are cached, because a list may repeat it."""
        if self._last[0] != path:
            self._last = path, examine_file(path, self.pixel_format).notes
        return self._last[1]

    def name(self, index: int) -> str:
        """Return the path of a file."""
        return self.images.path(index)

    def mark_bad(self, index: int, reason: str) -> bool:
        """Treat a file that crashed or blocked a worker as bad; return True, because the check continues."""
        self._fatal.add(index)
        return True


def check_files(
    images: ImageList,
    *,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
    worker_timeout: float = WORKER_TIMEOUT,
    pixel_format: PixelFormat = RGB,
    remedy: str = "",
) -> npt.NDArray[np.int64]:
    """Check the files of a list, or this process's part of them.

    On a terminal, the process of rank 0 shows a progress bar for more than 4096 files.

    Args:
        images: the files.
        num_workers: worker processes; a list of up to 4096 files is checked in this process.
        rank: rank of this process among those that share the files.
        world_size: number of these processes.
        worker_timeout: limit in seconds for one file, see `build_loader`.
        pixel_format: format in which the images will be read.
        remedy: end of the log line about a long check, such as the option that avoids it.

    Returns:
        The `Note` flags of every file of the list, int64 [n]; 0 for files that other processes check.

    Raises:
        DataError: the list is empty, or workers cannot be started, lack memory or keep dying.
        ConfigError: see `examine_file`.
    """
    sampler = EpochBatchSampler(len(images), _BATCH, rank, world_size, seed=0, shuffle=False, drop_last=False)
    workers = num_workers if len(images) > _FEW_FILES else 0
    dataset = HeaderDataset(images, pixel_format)
    loader = build_loader(dataset, sampler, num_workers=workers, worker_timeout=worker_timeout)
    notes = np.zeros(len(images), np.int64)
    announce = _announcer(images, len(loader), remedy)
    title = f"checking {images.root}"
    few = len(images) <= _FEW_FILES
    for done, batch in enumerate(tqdm(loader, title, disable=True if rank or few else None), start=1):
        notes[batch[INDEX]] = batch[NOTES]
        announce(done)
    return notes


def _announcer(images: ImageList, batches: int, remedy: str) -> Callable[[int], None]:
    """Return a function that is called with the number of finished batches and logs a long remaining time once."""
    started, announced = time.monotonic(), False

    def announce(done: int) -> None:
        """Estimate the remaining time once, a few seconds after the start, and log it if it is long."""
        nonlocal announced
        passed = time.monotonic() - started
        if announced or passed < _ESTIMATE_SECONDS:
            return
        announced = True
        left = passed / done * (batches - done)
        if left > _NAMED_SECONDS:
            logger.info("checking %d files of %s, about %.0f s%s", len(images), images.root, left, remedy)

    return announce
