"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read from local files of the binary version.

The Python version is not supported, because its files are pickles.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from plsc_mae.data.decode import PilImage
from plsc_mae.data.packed.binaries import CIFAR10, CIFAR100, Layout
from plsc_mae.data.pixels import Pixels
from plsc_mae.data.seeding import SampleKey, sample_rng
from plsc_mae.data.transfer import INDEX
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.errors import DataError

_LAYOUTS = (CIFAR10, CIFAR100)


@dataclass(frozen=True)
class CifarImages:
    """Labeled images in memory."""

    pixels: Pixels  # uint8 [n, 32, 32, 3]
    labels: npt.NDArray[np.int64]  # class numbers [n]
    classes: tuple[str, ...]  # names in the order of their numbers
    source: str  # folder and split, used in messages

    @property
    def numbered(self) -> bool:
        """False, because the classes have names."""
        return False

    @property
    def numbers_are_named(self) -> bool:
        """False, because the classes have never been numbers."""
        return False

    def __len__(self) -> int:
        return len(self.labels)


def read_cifar(data_path: str | Path, split: str) -> CifarImages:
    """Read the training or the test images of CIFAR-10 or CIFAR-100 into memory.

    Args:
        data_path: folder of the files, or a folder that contains `cifar-10-batches-bin` or `cifar-100-binary`.
        split: "train" for the training images; any other value reads the test images.

    Raises:
        DataError: the folder or one of its files is missing, damaged or cannot be read.
    """
    folder, layout = _find(Path(data_path))
    classes = tuple(_read(folder / layout.names).decode("utf-8", "replace").split())
    files = layout.train if split == "train" else layout.val
    records = np.concatenate([_read_records(folder / name, layout, len(classes)) for name in files])
    planes = records[:, layout.labels :].reshape(-1, 3, layout.side, layout.side)
    pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))  # [n, 3, H, W] -> [n, H, W, 3]
    return CifarImages(pixels, records[:, layout.labels - 1].astype(np.int64), classes, f"{folder} ({split})")


class CifarDataset:
    """Data set of transformed CIFAR images.

    A sample is the transform's arrays plus `INDEX`, "label" and "skipped", which is always 0.

    Args:
        images: images in memory; forked workers share them.
        transform: maps a SourceImage and the sample's generator to named arrays.
        seed: seeds the generators together with epoch and index.
    """

    def __init__(self, images: CifarImages, transform: Transform, *, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample:
        name = f"{key.index} of {self.images.source}"
        image = PilImage(name, Image.fromarray(self.images.pixels[key.index]))
        sample = self.transform(image, sample_rng(self.seed, *key))
        numbers = {INDEX: key.index, "label": self.images.labels[key.index], "skipped": 0}
        return sample | {name: np.asarray(number, np.int64) for name, number in numbers.items()}


def _find(data_path: Path) -> tuple[Path, Layout]:
    for layout in _LAYOUTS:
        for folder in (data_path, data_path / layout.folder):
            if folder.name == layout.folder and folder.is_dir():
                return folder, layout
        if (data_path / layout.train[0]).is_file():  # the folder was given another name
            return data_path, layout
    folders = " or ".join(layout.folder for layout in _LAYOUTS)
    raise DataError(
        f"--data_path {data_path} contains no {folders}; unpack the 'binary version' of CIFAR there "
        f"(the Python version is not supported)"
    )


def _read_records(file: Path, layout: Layout, num_classes: int) -> npt.NDArray[np.uint8]:
    data = np.frombuffer(_read(file), np.uint8)
    if data.size == 0 or data.size % layout.record:
        raise DataError(
            f"{file} has {data.size} bytes, expected a multiple of {layout.record}: it is truncated or not a CIFAR "
            f"file; unpack it again"
        )
    records = data.reshape(-1, layout.record)
    largest = records[:, layout.labels - 1].max()
    if largest >= num_classes:
        raise DataError(
            f"{file} is damaged: label {largest} is out of range for {num_classes} classes; unpack it again"
        )
    return records


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; unpack CIFAR's binary version again") from error
