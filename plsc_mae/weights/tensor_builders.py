"""Allow-list of the pickle decoder: builds arrays from pickled NumPy, torch and Paddle tensors.

A torch tensor becomes a `TorchTensor`, whose storage is read later. A NumPy array is a read-only view of the bytes in
the pickle where possible.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from plsc_mae.weights.safe_pickle import Foreign, Symbol

Array: TypeAlias = NDArray[Any]
Bytes: TypeAlias = NDArray[np.uint8]

MAX_DIMENSIONS = 32  # limit of NumPy 1
DTYPES: Mapping[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in ("bool", "float16", "float32", "float64", "complex64", "complex128")},
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "bfloat16": np.dtype("uint16"),  # the bits, which `widen_bfloat16` converts to float32
}
NUMPY_CODES = frozenset(dtype.str[1:] for dtype in DTYPES.values())
STORAGES = {
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BFloat16Storage": "bfloat16",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ByteStorage": "uint8",
    "UntypedStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


def dtype_named(name: str) -> np.dtype[Any]:
    """Return the NumPy type that represents a dtype such as "float32"; bfloat16 is represented by its bits (uint16).

    Raises:
        UnpicklingError: the dtype is not supported.
    """
    if name not in DTYPES:
        raise UnpicklingError(f"it contains tensors of type {name}, which is not supported")
    return DTYPES[name]


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Convert bfloat16 values, stored as their bits in uint16, to float32 without loss."""
    wide = np.empty(bits.shape, np.uint32)
    np.left_shift(bits, 16, out=wide, dtype=np.uint32)
    return wide.view(np.float32)


def view(
    data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int = 0, strides: tuple[int, ...] | None = None
) -> Array:
    """Return a read-only array view of a buffer; booleans are copied.

    `offset` and `strides` are in bytes. NumPy raises ValueError or TypeError if the array exceeds the buffer.
    """
    array: Array = np.ndarray(shape, dtype, data, offset, strides)
    if dtype == np.bool_:
        array = np.asarray(array.view(np.uint8) != 0)  # NumPy requires 0 or 1, but a file may contain other bytes
    array.flags.writeable = False
    return array


@dataclass(eq=False)
class Storage:
    """Bytes that torch tensors share; `data` is None unless they are loaded."""

    key: str
    itemsize: int
    nbytes: int
    data: Bytes | None = None


def missing(storage: Storage, held: int | None = None) -> NoReturn:
    """Raise UnpicklingError for a storage that is missing, or that has only `held` bytes in the file."""
    lack = "is missing" if held is None else f"has {held} of {storage.nbytes} bytes"
    raise UnpicklingError(f"storage {storage.key} {lack}")


@dataclass(frozen=True, eq=False)
class TypedStorage:
    """Range of a storage with an element type; `start` and `nbytes` are in bytes."""

    storage: Storage
    dtype: str
    start: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class TorchTensor:
    """Torch tensor whose storage has not been read; `offset`, `shape` and `strides` are in elements."""

    source: TypedStorage
    dtype_name: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy type of the stored elements, see `dtype_named`."""
        return dtype_named(self.dtype_name)

    def array(self, load: Callable[[Storage], Bytes]) -> Array:
        """Return the tensor as an array, a view of its storage where possible; bfloat16 is converted to float32.

        Args:
            load: reads the bytes of a storage.

        Raises:
            UnpicklingError, ValueError and others (`reader.DAMAGE`): the type is not supported, the tensor exceeds its
                storage, or `load` fails.
        """
        dtype = self.dtype
        widen = self.dtype_name == "bfloat16"
        if 0 in self.shape:
            return np.empty(self.shape, np.float32 if widen else dtype)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if (last + 1) * dtype.itemsize > self.source.nbytes:
            held = self.source.nbytes // dtype.itemsize
            raise UnpicklingError(
                f"a tensor of shape {list(self.shape)} needs element {last} of a storage with {held} elements"
            )
        start = self.source.start + self.offset * dtype.itemsize
        strides = tuple(stride * dtype.itemsize for stride in self.strides)
        array = view(load(self.source.storage), dtype, self.shape, start, strides)
        if not widen:
            return array
        self.source.storage.data = None  # the float32 copy does not need it
        return widen_bfloat16(array)


class TorchStorages:
    """Resolver of torch's persistent ids; collects the storages by key."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def __call__(self, reference: object) -> Symbol | TypedStorage:
        """Resolve `("storage", type, key, location, length, ...)` to a storage, or `("module", class, ...)` to a class.

        Raises:
            UnpicklingError: the reference has another form, an unknown type, or exceeds its storage.
        """
        match reference:
            case ("module", Symbol() as symbol, *_):
                return symbol
            case ("storage", Symbol(path=path), str(key), _, int(length), *view_of) if length >= 0:
                return self._typed(path.rpartition(".")[2], key, length, view_of[0] if view_of else None)
        raise UnpicklingError("it refers to a storage in an unknown form")

    def _typed(self, kind: str, key: str, length: int, view_of: object) -> TypedStorage:
        dtype = STORAGES.get(kind, kind)
        itemsize = dtype_named(dtype).itemsize
        storage = self.by_key.setdefault(key, Storage(key, itemsize, length * itemsize))
        match view_of:  # files of torch 0.3 and older have storages that are parts of others
            case None:
                return TypedStorage(storage, dtype, 0, length * itemsize)
            case (_, int(offset), int(size)) if 0 <= offset <= offset + size <= length:
                return TypedStorage(storage, dtype, offset * itemsize, size * itemsize)
        raise UnpicklingError(f"a view of storage {key} exceeds the storage")


class _DType(Foreign):
    """Pickled numpy.dtype; its code is an argument of the call, its byte order is in the state."""

    def resolve(self) -> np.dtype[Any] | None:
        """Return the type if it is a number or text type, else None.

        Raises:
            UnpicklingError: the type is big-endian.
        """
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "|"
        if order == ">":
            raise UnpicklingError("it contains big-endian arrays, which are not supported")
        code = self.args[0] if self.args else None
        plain = isinstance(code, str) and (code in NUMPY_CODES or re.fullmatch(r"[SU][1-9][0-9]{0,5}", code))
        return np.dtype(code) if plain else None


class PickledArray(Foreign):
    """Pickled numpy.ndarray; `build` sets `value`, which stays None for types such as Python objects."""

    value: Array | None = None

    def build(self, state: object) -> None:
        """Set `value` to the array of numbers or text that a state (version, shape, dtype, is_fortran, data) describes.

        Other states and types leave `value` None.

        Raises:
            UnpicklingError, ValueError and others (`reader.DAMAGE`): the array is big-endian, or its shape or data is
                invalid.
        """
        super().build(state)
        match state:
            case (_, tuple(shape), _DType() as pickled, fortran, (bytes() | bytearray() | str()) as data):
                self.value = _array(data, pickled.resolve(), shape, "F" if fortran else "C")


def _array(
    data: bytes | bytearray | str, dtype: np.dtype[Any] | None, shape: tuple[int, ...], order: str
) -> Array | None:
    if dtype is None:
        return None
    buffer = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as text
    shape = counts(shape)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size != len(buffer):
        raise UnpicklingError(f"an array of shape {list(shape)} needs {size} bytes, the file has {len(buffer)}")
    return view(buffer, dtype, shape) if order == "C" else view(buffer, dtype, shape[::-1]).T


def counts(values: object) -> tuple[int, ...]:
    """Validate a shape, strides, or a tuple of one offset, and return it as a tuple.

    Raises:
        UnpicklingError: it is not a tuple or list of at most 32 non-negative integers.
    """
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS:
        raise UnpicklingError(f"a tensor's shape is not a list of at most {MAX_DIMENSIONS} numbers")
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise UnpicklingError(f"a tensor's shape or strides are not non-negative integers: {list(values)}")
    return tuple(values)


def _numpy_scalar(dtype: object = None, data: object = b"") -> Any:
    resolved = dtype.resolve() if isinstance(dtype, _DType) else None
    array = _array(data, resolved, (), "C") if isinstance(data, bytes | str) else None
    return Foreign("numpy.core.multiarray.scalar") if array is None else array.item()


def _numpy_from_buffer(data: object, dtype: object, shape: object, order: object) -> Any:
    array = PickledArray("numpy.ndarray")
    array.build((1, shape, dtype, order == "F", data))
    return array


def _torch_tensor(
    source: object,
    offset: object,
    shape: object,
    strides: object,
    _grad: object = None,
    _hooks: object = None,
    marks: object = None,
) -> TorchTensor:
    if not isinstance(source, TypedStorage):
        raise UnpicklingError("a tensor has no storage")
    if isinstance(marks, dict) and any(marks.values()):  # "neg" or "conj": the values differ from those of the storage
        raise UnpicklingError("a tensor is stored negated or conjugated, which is not supported")
    (offset,), shape, strides = counts((offset,)), counts(shape), counts(strides)
    if len(shape) != len(strides):
        raise UnpicklingError(f"a tensor of shape {list(shape)} has strides {list(strides)}")
    return TorchTensor(source, source.dtype, offset, shape, strides)


def _torch_tensor_v3(
    source: object,
    offset: object,
    shape: object,
    strides: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    marks: object = None,
) -> TorchTensor:
    tensor = _torch_tensor(source, offset, shape, strides, marks=marks)
    name = dtype.path.rpartition(".")[2] if isinstance(dtype, Symbol) else "unknown"
    return TorchTensor(tensor.source, name, tensor.offset, tensor.shape, tensor.strides)


def _torch_subclass(function: object, _type: object, args: object, _state: object) -> Any:
    path = function.path if isinstance(function, Symbol) else ""
    builder = BUILDERS.get(path) if path.startswith("torch._utils._rebuild_tensor") else None
    return builder(*args) if builder and isinstance(args, tuple) else Foreign("torch.Tensor")


def _paddle_dense_tensor(source: object, scope: object = None) -> Any:
    """Build Paddle's DenseTensor, pickled as `eval("data", {"data": array})`; other calls are only recorded."""
    if source == "data" and isinstance(scope, dict) and isinstance(scope.get("data"), PickledArray):
        return scope["data"]
    return Foreign("builtins.eval", (source,))


def _sequence(items: object = ()) -> Any:
    return type(items)(items) if isinstance(items, tuple | list) else Foreign("builtins.list")


def _mapping(items: object = (), *_rest: object) -> dict[Any, Any]:
    """Build a dict from the argument of a dict subclass: a dict, or pairs, of which those with text as key are used."""
    if isinstance(items, dict):
        return dict(items)
    table: dict[Any, Any] = {}
    for pair in items if isinstance(items, tuple | list) else ():
        match pair:
            case (str() as key, value):
                table[key] = value
    return table


def _bytes(text: object = b"", _encoding: object = None, *_rest: object) -> Any:
    return text.encode("latin1") if isinstance(text, str) else text


BUILDERS: Mapping[str, Callable[..., Any]] = {
    "builtins.tuple": _sequence,
    "builtins.list": _sequence,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.eval": _paddle_dense_tensor,
    "_codecs.encode": _bytes,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _mapping,
    "numpy.dtype": lambda *args: _DType("numpy.dtype", args),
    "numpy.core.multiarray._reconstruct": lambda *_: PickledArray("numpy.ndarray"),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.core.numeric._frombuffer": _numpy_from_buffer,
    "torch.Size": _sequence,
    "torch._utils._rebuild_tensor": _torch_tensor,
    "torch._utils._rebuild_tensor_v2": _torch_tensor,
    "torch._utils._rebuild_tensor_v3": _torch_tensor_v3,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": _torch_subclass,
}
