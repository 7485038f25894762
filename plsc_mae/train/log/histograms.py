"""Parameters and gradients of a network by block, for histograms."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from paddle import Tensor

from plsc_mae.train.log.tags import GRADIENTS, PARAMETERS

_BLOCK = re.compile(r".*?\bblocks\.\d+")


def block_values(params: Mapping[str, Tensor]) -> dict[str, npt.NDArray[np.float32]]:
    """Return all values of the parameters, and of their gradients, as one flat array per block, by tag.

    A parameter outside blocks belongs to the first two parts of its name, for example encoder.patch_embed. Values that
    only another process holds are absent.
    """
    parts: dict[str, list[npt.NDArray[np.float32]]] = {}
    for name, param in params.items():
        for group, tensor in ((PARAMETERS, param), (GRADIENTS, param.grad)):
            if tensor is not None and tensor.size:
                parts.setdefault(f"{group}/{_block(name)}", []).append(tensor.astype("float32").numpy().ravel())
    return {tag: np.concatenate(arrays) for tag, arrays in parts.items()}


def _block(name: str) -> str:
    """Return the name of a parameter's block, or the first two parts of its name outside blocks."""
    match = _BLOCK.match(name)
    return match[0] if match else ".".join(name.split(".")[:2])
