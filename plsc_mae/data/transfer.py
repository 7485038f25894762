"""Transfer of batches from the host to the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy.typing as npt
import paddle
from paddle import Tensor

HOST_PREFIX = "host_"  # prefix of arrays that stay on the host, because no kernel reads them
INDEX = HOST_PREFIX + "index"  # name of the sample indices

Item = TypeVar("Item")


def device_batch(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Copy the arrays of a batch to the device; those whose names start with `host_` stay NumPy arrays.

    The host may overwrite `arrays` afterwards.
    """
    return {name: array.copy() if name.startswith(HOST_PREFIX) else to_device(array) for name, array in arrays.items()}


def to_device(array: npt.NDArray[Any]) -> Tensor:
    """Copy an array to the device; a GPU copies it from pinned memory, and the host does not wait.

    The copy is queued in the stream that computes. Kernels launched later find the values, and memory that earlier
    kernels still use is not overwritten. Paddle frees the pinned memory after the copy: `Tensor._copy_to` without
    `blocking` holds its source in a callback of the stream (paddle/fluid/pybind/eager_method.cc).
    """
    if not copies_asynchronously():
        return paddle.to_tensor(array)
    return paddle.to_tensor(array, place=paddle.CUDAPinnedPlace()).cuda(blocking=False)


def copies_asynchronously() -> bool:
    """Return True if the device is a GPU, which copies and computes while the host continues."""
    return paddle.get_device().startswith("gpu")


class OneAhead(Iterator[Item]):
    """Iterator over `items` that can take one item before it is requested.

    An exception that `items` raises meanwhile is raised when that item is requested.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._taken: list[Item] = []
        self._error: Exception | None = None

    def __next__(self) -> Item:
        self.take()
        if self._taken:
            return self._taken.pop()
        assert self._error is not None
        raise self._error

    def take(self) -> None:
        """Take the next item from `items` unless one has been taken already."""
        if self._taken or self._error is not None:
            return
        try:
            self._taken.append(next(self._items))
        except Exception as error:  # StopIteration too
            self._error = error
