"""What a dialect is: another code base's names and layouts for the tensors of our networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import CheckpointError

Array = npt.NDArray[np.generic]
Tensors = Mapping[str, Array]
# Heads of the attention whose projection has this name in the base naming and makes tokens of this width; None where
# that is not known.
NumHeads = Callable[[str, int], int | None]
Rewrite = Callable[[Tensors, NumHeads], dict[str, Array]]


@dataclass(frozen=True)
class Dialect:
    """Names and layout rules of one code base.

    Attributes:
        name: how commands and `dialect=` call it.
        foreign_name: our parameter name -> theirs.
        transposes_linear: whether they store linear weights as [out, in]; ours are [in, out].
        copies: prefixes of tensors that their files hold twice -> prefix of what they are copies of. They are written,
            so that a strict reader finds them, and are not expected when read.
        recognizes: whether a file's tensors are of this dialect, judged by names and shapes.
        holds: whether its networks have all these tensors, by names in the base naming; asked before writing.
        norm_eps: of its blocks' layer norms where it is not the 1e-6 of the others.
        key: under which files hold the network; a file is the flat table itself where it is empty.
        decode: for namings that are further off, what rewrites their tensors into those that `foreign_name` speaks of
            ("the base naming"), as where query, key and value are apart. None where nothing is to be rewritten.
        encode: its inverse; a naming that is decoded and has none is not written.
    """

    name: str
    foreign_name: Callable[[str], str]
    transposes_linear: bool
    recognizes: Callable[[Tensors], bool]
    copies: Mapping[str, str] = field(default_factory=dict)
    holds: Callable[[Collection[str]], bool] = lambda _names: True
    norm_eps: float | None = None
    key: str = "model"
    decode: Rewrite | None = None
    encode: Rewrite | None = None

    def convert(self, value: Array, *, is_linear_weight: bool) -> Array:
        """Turn a tensor from their layout into ours, or back; the rule is its own inverse."""
        return value.T if self.transposes_linear and is_linear_weight else value


def count_blocks(tensors: Tensors, prefix: str) -> int:
    """Count the blocks of a stack whose tensors are called `{prefix}{number}.NAME`."""
    return len({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})


def of_rank(tensors: Tensors, name: str, ndim: int, path: str) -> Array | None:
    """Look a tensor up that sizes are read off; None if it is not there.

    Raises:
        CheckpointError: it has another number of dimensions, or is empty.
    """
    value = tensors.get(name)
    if value is not None and (value.ndim != ndim or value.size == 0):
        raise CheckpointError(
            f"{path}: '{name}' has shape {list(value.shape)}, which no network gives it; expected {ndim} dimensions"
        )
    return value


def renamed(name: str, network: Mapping[str, str], block: Mapping[str, str]) -> str:
    """Replace the beginnings of a name.

    Args:
        name: `STACK.NUMBER.REST` for a tensor of a block.
        network: of whole names and of stacks of blocks.
        block: of what follows a block's number.
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
