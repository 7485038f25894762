"""Separates the decoded content of a weight file into tensors, by path, and plain values, as the last step of reading.

A pickled torch module is converted to its state dict.
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
MAX_BITS = 4096  # of an integer; Python refuses to print very long ones
# Extra entries of paddle.save: Paddle's own names of the parameters by key, and the pieces into which large arrays are
# split for pickle protocols below 4.
PADDLE_NAMES = "StructuredToParameterName@@"
PADDLE_PIECES = "UnpackBigParamInfor@@"

_TENSOR = object()  # placeholder among the plain values for a tensor, or for a container of tensors only


class Leaves:
    """Content of a file: its tensors by path, and its other values as plain data.

    Attributes:
        tensors: arrays by path; the keys of a path are joined with "/".
        meta: the other values, in the structure of the file.
        flat: True if every tensor is in the outermost table.
    """

    def __init__(self, root: Any, load: Callable[[Storage], Bytes], budget: Budget) -> None:
        """Separate the content of a file.

        Args:
            root: result of a decoder; a value that is not a table is stored under the key "data".
            load: reads the bytes of a torch storage.
            budget: memory budget of the file. A value is charged each time it is visited, because a file can refer to
                the same value, or to nested containers, any number of times.

        Raises:
            UnpicklingError, ValueError and others (`reader.DAMAGE`): the content is damaged, unsupported or over
                budget.
        """
        self.tensors: dict[str, Array] = {}
        self.flat = True
        self._load = load
        self._budget = budget
        root = self._unwrap(root)
        rest = self._separate(root if isinstance(root, dict) else {"data": root}, "", 0)
        self.meta: dict[str, Any] = {} if rest is _TENSOR else rest

    def _separate(self, value: Any, path: str, depth: int) -> Any:
        """Collect the tensors of `value` under `path`; return the rest as plain data, `_TENSOR` if nothing remains."""
        held = len(value) if isinstance(value, str | bytes | bytearray) else 0
        self._spend(VALUE_BYTES + len(path) + held, depth)
        match value:
            case (str(), PickledArray() as array) if isinstance(value, tuple):  # Paddle's tensor with its name
                return self._add_tensor(array, path, depth, by_paddle=True)
            case TorchTensor() | PickledArray() | np.ndarray():
                return self._add_tensor(value, path, depth)
            case dict():
                return self._separate_dict(value, path, depth)
            case list() | tuple():
                return self._separate_list(value, path, depth)
            case Foreign():
                content = self._unwrap(value)
                return self._charged(content) if isinstance(content, str) else self._separate(content, path, depth + 1)
            case Symbol():
                return value.path
            case bytearray():
                return bytes(value)
        if not isinstance(value, SCALARS):
            raise UnpicklingError(f"it contains an unexpected {type(value).__name__}")
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise UnpicklingError(f"it contains an integer of {value.bit_length()} bits, the limit is {MAX_BITS}")
        return value

    def _separate_dict(self, table: dict[Any, Any], path: str, depth: int) -> Any:
        if PADDLE_PIECES in table:
            table = self._join_pieces(table)
        names = table.get(PADDLE_NAMES)
        rest: dict[Any, Any] = {}
        for key, value in table.items():
            item_path = f"{path}/{_plain_key(key)}" if path else str(_plain_key(key))
            if isinstance(names, dict) and key in names and isinstance(value, PickledArray | np.ndarray):
                remainder = self._add_tensor(value, item_path, depth + 1, by_paddle=True)
            else:
                remainder = self._separate(value, item_path, depth + 1)
            if remainder is not _TENSOR:
                rest[_plain_key(key)] = remainder
        return _TENSOR if table and not rest else rest

    def _separate_list(self, items: Iterable[Any], path: str, depth: int) -> Any:
        rest = [self._separate(item, f"{path}/{index}", depth + 1) for index, item in enumerate(items)]
        if rest and all(item is _TENSOR for item in rest):
            return _TENSOR
        return [None if item is _TENSOR else item for item in rest]

    def _add_tensor(
        self, tensor: TorchTensor | PickledArray | Array, path: str, depth: int, by_paddle: bool = False
    ) -> Any:
        """Store a tensor under its path and return `_TENSOR`.

        An array of text or objects is not stored, but returned as plain data.
        """
        if isinstance(tensor, PickledArray):
            if tensor.value is None:
                return self._charged(tensor.describe())
            tensor = tensor.value
        itemsize = 2 * VALUE_BYTES if tensor.dtype.kind in "SU" else max(tensor.dtype.itemsize, 4)
        self._spend(prod(tensor.shape) * itemsize, depth)
        array = tensor.array(self._bytes) if isinstance(tensor, TorchTensor) else tensor
        if array.dtype.kind in "SU":
            return array.tolist()
        if array.dtype.str[1:] not in NUMPY_CODES or array.dtype.byteorder == ">":
            raise UnpicklingError(f"it contains an array of type {array.dtype.str}, which is not supported")
        if by_paddle and array.dtype == np.uint16:
            array = widen_bfloat16(array)  # Paddle has no uint16 type; it stores bfloat16 in NumPy's uint16
        if path in self.tensors:
            raise UnpicklingError(f"two of its tensors have the name {path}")
        array.flags.writeable = False
        self.tensors[path] = array
        self.flat &= depth == 1
        return _TENSOR

    def _unwrap(self, value: Any) -> Any:
        """Return the content of a foreign object as a plain container, or else a description of the object.

        Arrays, and values that are not foreign objects, are returned unchanged.
        """
        if not isinstance(value, Foreign) or isinstance(value, PickledArray):
            return value
        if isinstance(value.state, dict):
            if value.path == "argparse.Namespace":
                return value.state
            if isinstance(value.state.get("_modules"), dict):
                return self._state_dict(value.state, "", 0)
        return value.entries or value.elements or value.describe()

    def _state_dict(self, module: dict[str, Any], prefix: str, depth: int) -> dict[str, Any]:
        """Return the tensors of a pickled torch.nn.Module by name, as its `state_dict()` would."""
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

    def _charged(self, text: str) -> str:
        self._budget.spend(len(text))
        return text

    def _spend(self, nbytes: int, depth: int) -> None:
        self._budget.spend(nbytes)
        if depth > MAX_DEPTH:
            raise UnpicklingError(f"its structure contains itself or is nested more than {MAX_DEPTH} levels deep")

    def _join_pieces(self, table: dict[Any, Any]) -> dict[Any, Any]:
        """Return a copy of a table in which the pieces of each array that Paddle has split are joined."""
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


def _plain_key(key: Any) -> Any:
    """Return a scalar key unchanged and any other key as text."""
    if isinstance(key, Symbol):
        return key.path
    if isinstance(key, Foreign):
        return key.describe()
    return key if isinstance(key, SCALARS) else str(key)
