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
    """Return all values of the parameters and of their gradients as flat arrays by tag, one per block.

    A parameter outside blocks belongs to the first two parts of its name, for example encoder.patch_embed. Parameters
    that another process holds or updates are absent.
    """
    parts: dict[str, list[npt.NDArray[np.float32]]] = {}
    for name, param in params.items():
        for group, tensor in ((PARAMETERS, param), (GRADIENTS, param.grad)):
            if tensor is not None and tensor.size:
                parts.setdefault(f"{group}/{_block(name)}", []).append(tensor.astype("float32").numpy().ravel())
    return {tag: np.concatenate(arrays) for tag, arrays in parts.items()}


def _block(name: str) -> str:
    """Return the block of a parameter."""
    match = _BLOCK.match(name)
    return match[0] if match else ".".join(name.split(".")[:2])
