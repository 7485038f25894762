"""Reads checkpoints of oneflow.save, such as LiBai's.

Such a checkpoint is a folder with a pickle and one sub-folder per tensor. The pickle refers to a tensor by the name of
its folder, which has the shape and type in `meta` and the values in `out`. A LiBai checkpoint is a folder of such
folders: model, optimizer, lr_scheduler.
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
    "kBFloat16": "float32",  # OneFlow 0.9 writes bfloat16 tensors as float32
    "kInt8": "int8",
    "kInt32": "int32",
    "kInt64": "int64",
    "kUInt8": "uint8",
    "kBool": "bool",
}
TENSORS = ("oneflow.Tensor", "oneflow.nn.Parameter")


def is_oneflow(folder: Path) -> bool:
    """Return True if the folder, or one of its sub-folders, has the pickle that oneflow.save writes.

    Raises:
        OSError: the folder cannot be read.
    """
    return bool(_parts(folder))


def read_oneflow(folder: Path) -> Leaves:
    """Read a folder that oneflow.save has written, or else all such folders inside it, as {name: content}.

    Raises:
        UnpicklingError, OSError and others (`reader.DAMAGE`): a file cannot be read, is damaged or is unsupported, or
            the content would take far more memory than the files.
    """
    parts = _parts(folder)
    sizes = [_size(path) for part in parts.values() for path in (part / PICKLE, *part.glob(f"*/{VALUES}"))]
    budget = Budget(sum(sizes))
    roots = {name: _read_part(part, budget) for name, part in parts.items()}
    return Leaves(roots.get("", roots), missing, budget)


def _parts(folder: Path) -> dict[str, Path]:
    """Return {name: folder} of the folders with a pickle: `folder` itself under an empty name, or else sub-folders."""
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
    raise UnpicklingError(f"{folder.name}/{PICKLE} does not have protocol version 1, the only one that is supported")


class _FiledTensor(PickledArray):
    """Pickled tensor whose state names the folder with its values."""

    def __init__(self, path: str, load: Callable[[str], Array]) -> None:
        super().__init__(path)
        self._load = load

    def build(self, state: Any) -> None:
        """Set `value` to the tensor in the folder that `state` names."""
        match state:
            case {"path": str(name)} if re.fullmatch(r"\w+", name, re.ASCII):
                self.value = self._load(name)
            case _:
                raise UnpicklingError("one of its tensors names no sub-folder")


def _read_tensor(folder: Path) -> Array:
    meta, values = folder / META, folder / VALUES
    form = META_FORM.fullmatch(meta.read_text()) if _size(meta) < MAX_META else None
    if form is None:
        raise UnpicklingError(f"{folder.name}/{META} does not contain a tensor's shape and type")
    shape = tuple(int(size) for size in re.findall("[0-9]+", form[1]))
    kind = form[2]
    dtype = dtype_named(DTYPES.get(kind, kind))
    size, expected = _size(values), prod(shape) * dtype.itemsize
    if size != expected:
        raise UnpicklingError(f"{folder.name}/{VALUES} has {size} bytes, expected {expected}")
    return view(values.read_bytes(), dtype, shape)


def _size(path: Path) -> int:
    """Return the size of a regular file in bytes; others are refused, because opening a pipe could block forever."""
    if not path.is_file():
        raise UnpicklingError(f"{path.parent.name}/{path.name} is missing")
    return path.stat().st_size
