"""What a dialect is: another code base's names and layouts for the tensors of our networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Tensors = Mapping[str, Array]


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
    """

    name: str
    foreign_name: Callable[[str], str]
    transposes_linear: bool
    recognizes: Callable[[Tensors], bool]
    copies: Mapping[str, str] = field(default_factory=dict)

    def convert(self, value: Array, *, is_linear_weight: bool) -> Array:
        """Turn a tensor from their layout into ours, or back; the rule is its own inverse."""
        return value.T if self.transposes_linear and is_linear_weight else value


def count_blocks(tensors: Tensors, prefix: str) -> int:
    """Count the blocks of a stack whose tensors are called `{prefix}{number}.NAME`."""
    return len({name[len(prefix) :].partition(".")[0] for name in tensors if name.startswith(prefix)})
