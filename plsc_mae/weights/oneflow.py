"""Reads what oneflow.save writes, such as LiBai's checkpoints: folders with a pickle and a folder for every tensor.

The pickle refers to tensors by the name of their folder, in which `meta` tells shape and type and `out` holds the
values. A LiBai checkpoint is a folder of such folders: model, optimizer, lr_scheduler.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from plsc_mae.weights.flatten import Leaves
from plsc_mae.weights.safe_pickle import Budget, decode
from plsc_mae.weights.tensor_builders import BUILDERS, Array, PickledArray, dtype_named, missing, view

PICKLE, META, VALUES = "pickled_data", "meta", "out"
META_FORM = re.compile(r"shape \{\s*((?:dim: [0-9]{1,18}\s+){0,32})\}\s*data_type: (k[A-Za-z0-9]+)\s*")
MAX_META = 2000  # bytes
DTYPES = {
    "kFloat": "float32",
    "kDouble": "float64",
    "kFloat16": "float16",
    "kBFloat16": "float32",  # OneFlow 0.9 writes them so
    "kInt8": "int8",
    "kInt32": "int32",
    "kInt64": "int64",
    "kUInt8": "uint8",
    "kBool": "bool",
}
TENSORS = ("oneflow.Tensor", "oneflow.nn.Parameter")


def is_oneflow(folder: Path) -> bool:
    """Tell whether oneflow.save has written the folder, or folders in it."""
    return bool(_parts(folder))


def read_oneflow(folder: Path) -> Leaves:
    """Read a folder that oneflow.save has written, or the ones in it, each under its name.

    Raises:
        UnpicklingError, OSError and others: a file is missing, damaged or not a plain one.
    """
    parts = _parts(folder)
    sizes = [_size(path) for part in parts.values() for path in (part / PICKLE, *part.glob(f"*/{VALUES}"))]
    budget = Budget(sum(sizes))
    roots = {name: _read_part(part, budget) for name, part in parts.items()}
    return Leaves(roots.get("", roots), missing, budget)


def _parts(folder: Path) -> dict[str, Path]:
    """The folders with a pickle, by name: the folder itself without one, or those in it."""
    if (folder / PICKLE).is_file():
        return {"": folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{PICKLE}")) if path.is_file()}


def _read_part(folder: Path, budget: Budget) -> Any:
    tensors: dict[str, Array] = {}

    def load(name: str) -> Array:
        if name not in tensors:
            tensors[name] = _read_tensor(folder / name)
        return tensors[name]

    def builder(path: str) -> Callable[..., PickledArray]:
        return lambda *_: _FiledTensor(path, load)

    with (folder / PICKLE).open("rb") as stream:
        root = decode(stream, {**BUILDERS, **{path: builder(path) for path in TENSORS}}, budget)
    match root:
        case {"protocol_version": 1, "data": data}:
            return data
    raise UnpicklingError(f"{folder.name}/{PICKLE} is not of protocol version 1, the only one known")


class _FiledTensor(PickledArray):
    """A pickled tensor, whose state tells the folder that its values are in."""

    def __init__(self, path: str, load: Callable[[str], Array]) -> None:
        super().__init__(path)
        self._load = load

    def build(self, state: Any) -> None:
        """Read the tensor from its folder, which must lie in that of the pickle."""
        match state:
            case {"path": str(name)} if re.fullmatch(r"\w+", name, re.ASCII):
                self.value = self._load(name)
            case _:
                raise UnpicklingError("it has a tensor without a folder of its own")


def _read_tensor(folder: Path) -> Array:
    meta, values = folder / META, folder / VALUES
    form = META_FORM.fullmatch(meta.read_text()) if _size(meta) < MAX_META else None
    if form is None:
        raise UnpicklingError(f"{folder.name}/{META} does not tell a tensor's shape and type")
    shape, kind = tuple(int(size) for size in re.findall("[0-9]+", form[1])), form[2]
    dtype = dtype_named(DTYPES.get(kind, kind))
    size, expected = _size(values), prod(shape) * dtype.itemsize
    if size != expected:
        raise UnpicklingError(f"{folder.name}/{VALUES} has {size} of {expected} bytes")
    return view(values.read_bytes(), dtype, shape)


def _size(path: Path) -> int:
    """Size of an ordinary file; opening anything else could wait for ever."""
    if not path.is_file():
        raise UnpicklingError(f"{path.parent.name}/{path.name} is missing")
    return path.stat().st_size
