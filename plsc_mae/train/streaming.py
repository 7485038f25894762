"""Pickles of dictionaries whose values come one after the other, so that they need not fit into memory together."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any, Protocol

PICKLE_PROTOCOL = 4  # what paddle.save writes; readable by Paddle 2 and 3


class Writable(Protocol):
    """What takes bytes."""

    def write(self, data: bytes) -> Any:
        """Write them."""
        ...


class Streamed:
    """A dictionary that is made while it is written.

    Args:
        items: makes its entries; called once.
    """

    def __init__(self, items: Callable[[], Iterator[tuple[str, Any]]]) -> None:
        self.items = items


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Write a `Streamed` as a plain dictionary."""
        if isinstance(obj, Streamed):
            return dict, (), None, None, obj.items()
        return NotImplemented


def dump(state: Any, file: Writable) -> None:
    """Pickle plain data, arrays and `Streamed` dictionaries; nothing may refer to itself."""
    pickler = _Pickler(file, PICKLE_PROTOCOL)
    pickler.fast = True  # without a memo of what was written, which would keep all of it in memory
    pickler.dump(state)
