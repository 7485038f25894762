"""Declarations by which layers state how tensor parallelism divides them (Shoeybi et al. 2019, Megatron-LM).

`parallel/tensor.py` divides parameters according to them, and `plan` estimates memory with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from paddle import Tensor, nn

COLUMNS, ROWS = -1, 0  # axes of a weight [in, out]


class Unit(NamedTuple):
    """The smallest part of a layer that tensor parallelism keeps together."""

    attribute: str  # name of the layer's attribute with the number of units
    words: str  # name of the units in messages


HEADS = Unit("num_heads", "attention heads")
HIDDEN = Unit("hidden_dim", "hidden columns")


class TensorSplit(NamedTuple):
    """The division of a layer by tensor parallelism; the layer declares it as `tensor_split`."""

    unit: Unit  # the smallest part; each process gets whole units
    # parameters divided along their last axis, {name: number of tensors concatenated along this axis}. Each of these
    # tensors is divided separately; fused q, k and v are 3. Parameters that the layer lacks are ignored.
    columns: Mapping[str, int]
    # name of the linear sub-layer whose weight is divided along its input, and whose outputs are summed over the
    # processes before the bias is added; empty if there is no such sub-layer
    rows: str = ""


class SplitParameter(NamedTuple):
    """A parameter that tensor parallelism divides."""

    owner: nn.Layer  # the layer that holds it
    name: str  # its attribute name in `owner`
    axis: int  # the divided axis
    parts: int  # number of tensors concatenated along the axis, each divided separately

    @property
    def parameter(self) -> Tensor:
        """The parameter itself."""
        return getattr(self.owner, self.name)


def split_layers(network: nn.Layer) -> Iterator[tuple[nn.Layer, TensorSplit]]:
    """Yield (layer, declaration) for every layer of a network that declares a `tensor_split`."""
    for layer in network.sublayers(include_self=True):
        split = getattr(layer, "tensor_split", None)
        if split is not None:
            yield layer, split


def split_parameters(layer: nn.Layer, split: TensorSplit) -> list[SplitParameter]:
    """Return the parameters of a layer that its declaration `split` divides."""
    declared = [(name, COLUMNS, parts) for name, parts in split.columns.items()]
    if split.rows:
        declared.append((f"{split.rows}.weight", ROWS, 1))
    found = []
    for path, axis, parts in declared:
        below, _, name = path.rpartition(".")
        owner = getattr(layer, below) if below else layer
        parameter = getattr(owner, name, None)
        if parameter is not None:
            found.append(SplitParameter(owner, name, axis % parameter.ndim, parts))
    return found
