"""Base of all dialects: names and layouts of another code base for the tensors of our networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import CheckpointError

Array = npt.NDArray[np.generic]
Tensors = Mapping[str, Array]
# (name of an attention's projection in the base naming, width of its tokens) -> number of heads, None if unknown.
NumHeads = Callable[[str, int], int | None]
Rewrite = Callable[[Tensors, NumHeads], dict[str, Array]]


@dataclass(frozen=True)
class Dialect:
    """Names and layout rules of one code base.

    `foreign_name` maps our names to a base naming. If the files use another naming, or divide the values among tensors
    differently (such as separate query, key and value), `decode` and `encode` convert between the files and the base
    naming.

    Attributes:
        name: name in commands and in `dialect=`.
        foreign_name: maps our parameter name to the base naming.
        transposes_linear: True if linear weights are stored as [out, in]; ours are [in, out].
        copies: tensors that files store twice, as {prefix of the copies: prefix of the originals}. Copies are written
            for strict readers and are optional when reading.
        recognizes: returns True if a file's tensors are in this dialect, judged by their names and shapes.
        holds: returns True if a network of this dialect can have tensors with all the given names (in the base naming);
            checked before writing.
        newer_parts: True if the code base has normalized queries and keys, register tokens, and position tables without
            a row for the class token.
        norm_eps: eps of the blocks' layer norms, if files do not store it and it is not 1e-6; else None.
        key: key of the network's tensors in a file that is written; empty for a file that is a flat table.
        decode: rewrites tensors into the base naming; None if that is the naming of the files.
        encode: inverse of `decode`; a dialect with `decode` and without `encode` is read-only.
    """

    name: str
    foreign_name: Callable[[str], str]
    transposes_linear: bool
    recognizes: Callable[[Tensors], bool]
    copies: Mapping[str, str] = field(default_factory=dict)
    holds: Callable[[Collection[str]], bool] = lambda _names: True
    newer_parts: bool = False
    norm_eps: float | None = None
    key: str = "model"
    decode: Rewrite | None = None
    encode: Rewrite | None = None

    def convert(self, value: Array, *, is_linear_weight: bool) -> Array:
        """Return a tensor converted from the foreign layout to ours, or back; the conversion is its own inverse."""
        return value.T if self.transposes_linear and is_linear_weight else value


def count_blocks(tensors: Tensors, prefix: str) -> int:
    """Count the blocks of a stack whose tensors have names `{prefix}{number}.NAME`."""
    return len({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})


def tensor_of_rank(tensors: Tensors, name: str, ndim: int, path: str) -> Array | None:
    """Return the tensor `name`, or None if it is missing.

    Raises:
        CheckpointError: the tensor does not have `ndim` dimensions, or is empty.
    """
    value = tensors.get(name)
    if value is not None and (value.ndim != ndim or value.size == 0):
        raise CheckpointError(
            f"{path}: '{name}' has shape {list(value.shape)}, expected a non-empty tensor of {ndim} dimensions; check "
            f"that the file contains a network of a supported kind"
        )
    return value


def renamed(name: str, network: Mapping[str, str], block: Mapping[str, str]) -> str:
    """Return a tensor's name in another naming; a name that matches nothing in `network` is returned unchanged.

    Args:
        name: name of a tensor; `STACK.NUMBER.REST` for a tensor of a block.
        network: {old: new} beginnings of names, such as the STACK of blocks; the first match is used.
        block: {old: new} beginnings of REST; the first match is used.
    """
    for old, new in network.items():
        if name == old or name.startswith(f"{old}."):
            number, _, rest = name[len(old) + 1 :].partition(".")
            if number.isdigit():
                return f"{new}.{number}.{_replaced(rest, block)}"
            return new + name[len(old) :]
    return name


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name
