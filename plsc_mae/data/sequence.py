"""Image data sets that are Python sequences, such as lists of arrays or data sets of other libraries.

`sequence_images` makes an `ImageList` of a sequence, so that runs read it as they read folders: the same random numbers
per sample, the same batches. The loader processes are forked and share the sequence with the caller without a copy.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from plsc_mae.data.decode import Backend, PilImage, RasterImage, SourceImage, as_data_error, open_image
from plsc_mae.data.listing import ImageList, PathTable
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.raster import array_raster
from plsc_mae.errors import DataError
from plsc_mae.names import escape_name

_BANDS = (1, 3, 4)
_GRAY_TYPES = ("uint8", "uint16", "int32", "float32")  # Pillow's "L", "I;16", "I" and "F"
_ITEMS = "images (Pillow images, uint8 arrays [H, W, 3] or [H, W], or paths) or pairs of an image and a label"
_NO_BATCH = "an array of images has the shape [n, H, W, 3], and a single image is given as a list of one"


@dataclass(frozen=True)
class SequenceImages(ImageList):
    """Images of a Python sequence. `paths` holds their indices in it as text, and `root` names it."""

    items: Sequence[Any] = field(default=(), compare=False, kw_only=True)  # the sequence, see `sequence_images`

    @property
    def numbered(self) -> bool:
        """True if the classes are numbers without names."""
        return self.classes == _numbers_as_names(len(self.classes))

    def path(self, index: int) -> str:
        """Return the Python expression of one item, for example "data[17]"."""
        return f"{self.root}[{self.paths[index]}]"

    def name(self, index: int) -> str:
        """Return the same as `path`."""
        return self.path(index)

    def open(self, index: int, backend: Backend = "pil", pixel_format: PixelFormat = RGB) -> SourceImage:
        """See `ImageList.open`; for images in memory, `backend` is ignored."""
        item = self.items[int(self.paths[index])]
        image = item[0] if _is_pair(item) else item
        return _as_source(image, self.path(index), backend, pixel_format)


def sequence_images(
    items: Sequence[Any], name: str, *, labeled: bool, pixel_format: PixelFormat = RGB
) -> SequenceImages:
    """Return the images of a sequence.

    Args:
        items: sequence of images or of (image, label) pairs. An image is a Pillow image, an array (uint8 [H, W] or
            [H, W, C] of 1, 3 or 4 channels; [H, W] may also be uint16, int32 or float32), or the path of a file. A
            label is a whole number from 0 or a name. Anything with `len` and `[]` is a sequence, also an array
            [n, H, W, 3].
        name: name of the sequence in messages, for example "data".
        labeled: whether to read the labels of pairs, for which every pair of the sequence is read once. If labels are
            numbers, an attribute `classes` of the sequence, as in torchvision, gives the class names.
        pixel_format: format of the pixels; arrays [H, W, C] of other channels than RGB may be of any real type.

    Raises:
        DataError: `items` is not a sequence or is empty, its first image cannot be read, or labels are missing or
            invalid.
        ConfigError: the package that reads the file of the first image cannot be imported.
    """
    _require_sequence(items, name)
    count = len(items)
    has_labels = labeled and _is_pair(items[0])
    labels = _read_labels(items, name) if has_labels else _Labels(np.full(count, -1, np.int64), ())
    images = SequenceImages(PathTable(map(str, range(count))), *labels, name, items=items)
    images.open(0, pixel_format=pixel_format)
    return images


def _require_sequence(items: Any, name: str) -> None:
    """Raise DataError unless `items` can be a sequence of images."""
    described = f"{name} is {_describe(items)}"
    if isinstance(items, (Mapping, Image.Image)) or not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
        raise DataError(f"{described}; expected a path or a sequence of {_ITEMS}; list(...) makes one of an iterator")
    shape = tuple(getattr(items, "shape", ()))
    if shape and (len(shape) < 3 or (len(shape) == 3 and shape[-1] in _BANDS)):
        raise DataError(f"{described}; {_NO_BATCH}")
    if not len(items):
        raise DataError(f"{name} is empty; expected {_ITEMS}")


def _is_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2


def _as_source(image: Any, path: str, backend: Backend, pixel_format: PixelFormat) -> SourceImage:
    """Return one image of a sequence; `path` names it in messages."""
    if isinstance(image, (str, PathLike)):
        return open_image(str(image), backend, pixel_format)
    if isinstance(image, Image.Image):
        if not pixel_format.is_rgb:
            with as_data_error(path):  # Pillow decodes a file that it opened earlier
                image = np.asarray(image)
            return _as_source(image, path, backend, pixel_format)
        return PilImage(path, image, pixel_range=pixel_format.range)
    if isinstance(image, (Mapping, tuple, list)) or not hasattr(image, "__array__"):
        raise DataError(f"{path} is {_describe(image)}; expected {_ITEMS}")
    array = np.asarray(image)
    if not pixel_format.is_rgb:
        with as_data_error(path):
            return RasterImage(path, array_raster(array), pixel_format)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    color = array.ndim == 3 and array.shape[2] in _BANDS and array.dtype == np.uint8
    gray = array.ndim == 2 and array.dtype.name in _GRAY_TYPES
    if not (color or gray) or not array.size:
        remedy = "transpose it" if array.ndim == 3 and array.shape[0] in _BANDS else "convert it"
        raise DataError(
            f"{path} is {_describe(image)}; expected a uint8 array [H, W, 3] or [H, W], values 0 to 255: {remedy}; "
            "other channels and types need in_chans or bands"
        )
    return PilImage(path, Image.fromarray(np.ascontiguousarray(array)), pixel_range=pixel_format.range)


def _describe(value: Any) -> str:
    """Return text for messages, such as "an array of uint8 [2, 3]" or "of type dict"."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array of {str(value.dtype).rpartition('.')[2]} {list(value.shape)}"
    return f"of type {type(value).__name__}"


# ---------------------------------------------------------------------------------------------------- labels


class _Labels(NamedTuple):
    numbers: npt.NDArray[np.int64]
    classes: tuple[str, ...]


def _read_labels(items: Sequence[Any], name: str) -> _Labels:
    """Return the class numbers of all pairs and the names of the classes; raise DataError for invalid labels."""
    labels = [_label(items[i], f"{name}[{i}]") for i in range(len(items))]
    names = {label for label in labels if isinstance(label, str)}
    if names and len({type(label) for label in labels}) > 1:
        raise DataError(f"the labels of {name} are numbers and names; expected one kind, such as '{min(names)}'")
    if names:
        classes = sorted(names)
        order = {label: number for number, label in enumerate(classes)}
        return _Labels(np.array([order[str(label)] for label in labels], np.int64), tuple(map(escape_name, classes)))
    numbered = np.array(labels, np.int64)
    count = int(numbered.max()) + 1
    return _Labels(numbered, _given_names(items, count) or _numbers_as_names(count))


def _label(item: Any, place: str) -> int | str:
    if not _is_pair(item):
        raise DataError(f"{place} is {_describe(item)}; expected a pair of an image and a label, as the first item is")
    label = item[1]
    if hasattr(label, "__array__") and np.ndim(np.asarray(label)) == 0:
        label = np.asarray(label).item()
    if isinstance(label, str) and label:
        return label
    if isinstance(label, numbers.Integral) and int(label) >= 0:
        return int(label)
    raise DataError(f"{place} has the label {label!r}; expected a whole number from 0 or a name")


def _given_names(items: Any, count: int) -> tuple[str, ...]:
    """Return the names in the attribute `classes` of a sequence; () without it or if it has fewer than `count`."""
    given: Iterable[object] = getattr(items, "classes", None) or ()
    names = tuple(escape_name(str(name)) for name in given)
    return names if len(names) >= count else ()


def _numbers_as_names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))
