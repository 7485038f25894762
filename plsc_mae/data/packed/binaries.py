"""Binary files of CIFAR-10, CIFAR-100 (Krizhevsky 2009) and STL-10 (Coates et al. 2011).

A record consists of label bytes, if any, and the raw pixels of an image: a red, a green and a blue plane. The member
`17.ppm` is record 17 as a PPM file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from plsc_mae.data.packed.archive import Archive, descriptor_of
from plsc_mae.errors import DataError


class Layout(NamedTuple):
    """Files of a data set and the format of their records."""

    folder: str  # name of the folder in the published archive
    names: str  # file with a class name per line
    side: int  # height and width of the images in pixels
    # number of label bytes before the pixels, of which the last is the class (CIFAR-100 stores the coarse class first);
    # 0 if the labels, which start at 1, are in a separate file
    labels: int
    by_columns: bool  # whether planes are stored column by column
    train: tuple[str, ...]  # files of the training images
    val: tuple[str, ...]  # files of the test images
    other: tuple[str, ...] = ()  # files without labels

    @property
    def record(self) -> int:
        """Number of bytes of a record."""
        return self.labels + 3 * self.side * self.side


CIFAR10 = Layout(
    *("cifar-10-batches-bin", "batches.meta.txt", 32, 1, False),
    *(tuple(f"data_batch_{number}.bin" for number in range(1, 6)), ("test_batch.bin",)),
)
CIFAR100 = Layout("cifar-100-binary", "fine_label_names.txt", 32, 2, False, ("train.bin",), ("test.bin",))
STL10 = Layout(
    *("stl10_binary", "class_names.txt", 96, 0, True, ("train_X.bin",), ("test_X.bin",), ("unlabeled_X.bin",)),
)
LAYOUTS = (CIFAR10, CIFAR100, STL10)


def layout_of(file: Path) -> Layout | None:
    """Return the layout of a data file, found by its name and the file of class names beside it; else None."""
    for layout in LAYOUTS:
        if file.name in (*layout.train, *layout.val, *layout.other) and (file.parent / layout.names).is_file():
            return layout
    return None


def files_in(folder: Path, split: str) -> list[Path]:
    """Return the training files of a data set if `split` is "train", else its test files; [] for other folders."""
    for layout in LAYOUTS:
        for place in (folder, folder / layout.folder):
            if (place / layout.names).is_file() and (place / layout.train[0]).is_file():
                return [place / name for name in (layout.train if split == "train" else layout.val)]
    return []


class BinaryArchive(Archive):
    """Binary file of one of the data sets in LAYOUTS.

    Attributes:
        layout: the data set.
        classes: names of the classes.
        labels: label of each record as text; "" if it has none.

    Raises:
        DataError: the file is truncated, or its labels do not fit its images or the class names.
        OSError: a file cannot be read.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        layout = layout_of(Path(path))
        assert layout is not None, path
        self.layout = layout
        if not self.stamp.size or self.stamp.size % layout.record:
            raise DataError(
                f"{path} has {self.stamp.size} bytes, expected a multiple of {layout.record}: it is truncated; unpack "
                "it again"
            )
        names = (Path(path).parent / layout.names).read_text(encoding="utf-8", errors="replace")
        self.classes = tuple(names.split())
        self.labels = self._read_labels()

    def _read_labels(self) -> Sequence[str]:
        layout, count = self.layout, self.stamp.size // self.layout.record
        labels_file = self.path.replace("_X.bin", "_y.bin")
        if layout.labels:
            records = np.memmap(self.path, np.uint8, "r").reshape(-1, layout.record)
            numbers = records[:, layout.labels - 1].astype(np.int64)
        elif os.path.basename(self.path) in layout.other:
            return [""] * count
        else:
            numbers = np.fromfile(labels_file, np.uint8).astype(np.int64) - 1
        if len(numbers) != count or not 0 <= numbers.min() <= numbers.max() < len(self.classes):
            raise DataError(
                f"{self.path} is damaged: it has {count} images and {len(numbers)} labels up to "
                f"{numbers.max(initial=0)} for {len(self.classes)} classes; unpack it again"
            )
        return [str(number) for number in numbers.tolist()]

    def open_member(self, member: str) -> tuple[IO[bytes], int]:
        """See `Archive.open_member`; the name of a member starts with the index of its record."""
        number, layout = member.partition("/")[0].partition(".")[0], self.layout
        if not number.isdecimal() or int(number) >= len(self.labels):
            raise self.missing(member)
        data = os.pread(descriptor_of(self.path), layout.record, int(number) * layout.record)
        planes = np.frombuffer(data, np.uint8)[layout.labels :].reshape(3, layout.side, layout.side)
        pixels = planes.transpose((2, 1, 0) if layout.by_columns else (1, 2, 0))
        content = b"P6 %d %d 255\n" % (layout.side, layout.side) + pixels.tobytes()
        return io.BytesIO(content), len(content)
