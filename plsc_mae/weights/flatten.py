"""Splits the decoded content of a weight file into its tensors, by path, and the plain values around them.

Stands between the decoders and `reader.read_file`. Whole pickled torch modules are read as their state dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from pickle import UnpicklingError
from typing import Any

import numpy as np

from plsc_mae.weights.safe_pickle import SCALARS, VALUE_BYTES, Budget, Foreign, Symbol
from plsc_mae.weights.tensor_builders import (
    NUMPY_CODES,
    Array,
    Bytes,
    PickledArray,
    Storage,
    TorchTensor,
    widen_bfloat16,
)

MAX_DEPTH = 100
MAX_BITS = 4096  # of a number; Python will not print the longest ones
# Helper entries of paddle.save: tensor names by parameter, and arrays cut in pieces for pickle protocols below 4.
PADDLE_NAMES = "StructuredToParameterName@@"
PADDLE_PIECES = "UnpackBigParamInfor@@"

_TENSOR = object()  # what remains of a tensor, or of a container of nothing else, among the plain values


class Leaves:
    """Collects the tensors of a file while reducing the rest to plain data.

    Attributes:
        tensors: arrays by path, keys joined with "/".
        meta: the plain rest of the outermost table.
        flat: whether every tensor lies in the outermost table.
    """

    def __init__(self, root: Any, load: Callable[[Storage], Bytes], budget: Budget) -> None:
        """Walk the content.

        Args:
            root: what a decoder returned. What is no table is filed under the key "data".
            load: reads the bytes of a torch storage.
            budget: of the file. Values count each time they are met, as a file can repeat one value, or a container of
                containers, without end.

        Raises:
            UnpicklingError: a tensor cannot be built, or the structure is no sensible one.
        """
        self.tensors: dict[str, Array] = {}
        self.flat = True
        self._load = load
        self._budget = budget
        root = self._opened(root)
        rest = self._sift(root if isinstance(root, dict) else {"data": root}, "", 0)
        self.meta: dict[str, Any] = {} if rest is _TENSOR else rest

    def _sift(self, value: Any, path: str, depth: int) -> Any:
        """Keep the tensors below `path` and return what else is there as plain data."""
        held = len(value) if isinstance(value, str | bytes | bytearray) else 0
        self._spend(VALUE_BYTES + len(path) + held, depth)
        match value:
            case (str(), PickledArray() as array) if isinstance(value, tuple):  # Paddle's tensor with its name
                return self._keep(array, path, depth, by_paddle=True)
            case TorchTensor() | PickledArray() | np.ndarray():
                return self._keep(value, path, depth)
            case dict():
                return self._sift_dict(value, path, depth)
            case list() | tuple():
                return self._sift_list(value, path, depth)
            case Foreign():
                opened = self._opened(value)
                return self._described(opened) if isinstance(opened, str) else self._sift(opened, path, depth + 1)
            case Symbol():
                return value.path
            case bytearray():
                return bytes(value)
        if not isinstance(value, SCALARS):
            raise UnpicklingError(f"it holds a stray {type(value).__name__}")
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise UnpicklingError(f"it holds a number of {value.bit_length()} bits")
        return value

    def _sift_dict(self, table: dict[Any, Any], path: str, depth: int) -> Any:
        if PADDLE_PIECES in table:
            table = self._joined(table)
        names = table.get(PADDLE_NAMES)
        rest: dict[Any, Any] = {}
        for key, value in table.items():
            below = f"{path}/{_plain(key)}" if path else str(_plain(key))
            if isinstance(names, dict) and key in names and isinstance(value, PickledArray | np.ndarray):
                remainder = self._keep(value, below, depth + 1, by_paddle=True)
            else:
                remainder = self._sift(value, below, depth + 1)
            if remainder is not _TENSOR:
                rest[_plain(key)] = remainder
        return _TENSOR if table and not rest else rest

    def _sift_list(self, items: Iterable[Any], path: str, depth: int) -> Any:
        rest = [self._sift(item, f"{path}/{index}", depth + 1) for index, item in enumerate(items)]
        if rest and all(item is _TENSOR for item in rest):
            return _TENSOR
        return [None if item is _TENSOR else item for item in rest]

    def _keep(self, tensor: TorchTensor | PickledArray | Array, path: str, depth: int, by_paddle: bool = False) -> Any:
        """File a tensor under its path; an array of text or of objects becomes plain data instead."""
        if isinstance(tensor, PickledArray):
            if tensor.value is None:
                return self._described(tensor.describe())
            tensor = tensor.value
        itemsize = 2 * VALUE_BYTES if tensor.dtype.kind in "SU" else max(tensor.dtype.itemsize, 4)
        self._spend(prod(tensor.shape) * itemsize, depth)
        array = tensor.array(self._bytes) if isinstance(tensor, TorchTensor) else tensor
        if array.dtype.kind in "SU":
            return array.tolist()
        if array.dtype.str[1:] not in NUMPY_CODES or array.dtype.byteorder == ">":
            raise UnpicklingError(f"it holds an array of type {array.dtype.str}, which is not supported")
        if by_paddle and array.dtype == np.uint16:
            array = widen_bfloat16(array)  # Paddle has no uint16: it hands bfloat16 to NumPy under that name
        if path in self.tensors:
            raise UnpicklingError(f"two of its tensors are called {path}")
        array.flags.writeable = False
        self.tensors[path] = array
        self.flat &= depth == 1
        return _TENSOR

    def _opened(self, value: Any) -> Any:
        """See a stand-in as the plain container it amounts to, or else as its description."""
        if not isinstance(value, Foreign) or isinstance(value, PickledArray):
            return value
        if isinstance(value.state, dict):
            if value.path == "argparse.Namespace":
                return value.state
            if isinstance(value.state.get("_modules"), dict):
                return self._state_dict(value.state, "", 0)
        return value.entries or value.elements or value.describe()

    def _state_dict(self, module: dict[str, Any], prefix: str, depth: int) -> dict[str, Any]:
        """Name the parameters and buffers of a pickled torch.nn.Module as its `state_dict()` would."""
        tables = [module.get(name) for name in ("_parameters", "_buffers", "_modules")]
        own, buffers, children = [table if isinstance(table, dict) else {} for table in tables]
        self._spend(sum(VALUE_BYTES + len(prefix) + len(str(name)) for name in (*own, *buffers, *children)), depth)
        transient = module.get("_non_persistent_buffers_set")
        transient = {name for name in transient if isinstance(name, str)} if isinstance(transient, list | tuple) else ()
        own = {**own, **{name: buffer for name, buffer in buffers.items() if name not in transient}}
        found = {f"{prefix}{name}": tensor for name, tensor in own.items() if tensor is not None}
        for name, child in children.items():
            if isinstance(child, Foreign) and isinstance(child.state, dict):
                found.update(self._state_dict(child.state, f"{prefix}{name}.", depth + 1))
        return found

    def _described(self, text: str) -> str:
        self._budget.spend(len(text))
        return text

    def _spend(self, nbytes: int, depth: int) -> None:
        self._budget.spend(nbytes)
        if depth > MAX_DEPTH:
            raise UnpicklingError("its structure contains itself or is nested beyond reason")

    def _joined(self, table: dict[Any, Any]) -> dict[Any, Any]:
        """Put arrays together again which Paddle has cut in pieces."""
        plans = table[PADDLE_PIECES]
        table = {key: value for key, value in table.items() if key != PADDLE_PIECES}
        for name, plan in plans.items() if isinstance(plans, dict) else ():
            match plan:
                case {"slices": list(keys), "OriginShape": tuple(shape)}:
                    pieces = [table.pop(key, None) for key in keys]
                    arrays = [
                        piece.value for piece in pieces if isinstance(piece, PickledArray) and piece.value is not None
                    ]
                    if len(arrays) < len(keys):
                        raise UnpicklingError(f"pieces of {name} are missing")
                    self._budget.spend(sum(array.nbytes for array in arrays))
                    table[name] = np.concatenate(arrays).reshape(shape)
        return table

    def _bytes(self, storage: Storage) -> Bytes:
        if storage.data is None:
            storage.data = self._load(storage)
        return storage.data


def _plain(key: Any) -> Any:
    """Keep a scalar key, describe any other."""
    if isinstance(key, Symbol):
        return key.path
    if isinstance(key, Foreign):
        return key.describe()
    return key if isinstance(key, SCALARS) else str(key)
