"""Names that code of 2020 and 2021 imports from PyTorch, NumPy and timm and that later versions removed."""

from __future__ import annotations

import collections.abc
import functools
import math
import sys
import types
from typing import Any

import numpy as np
import torch


def install() -> None:
    """Put the missing names back; what is there stays as it is."""
    _torch_six()
    for name, kind in (("float", float), ("int", int), ("bool", bool), ("object", object)):
        if name not in vars(np):  # removed in NumPy 1.24
            setattr(np, name, kind)
    if not torch.cuda.is_available():  # Atten4Vis/CAE moves a table to the device of its input by .cuda(device)
        torch.Tensor.cuda = _stay


def _stay(tensor: Any, *_args: Any, **_kwargs: Any) -> Any:
    return tensor


def _torch_six() -> None:
    """`torch._six`, removed in PyTorch 1.13 and 2.0, which timm 0.3.2 imports."""
    if "torch._six" in sys.modules or hasattr(torch, "_six"):
        return
    six: Any = types.ModuleType("torch._six")
    six.container_abcs, six.string_classes, six.int_classes, six.inf = collections.abc, (str, bytes), int, math.inf
    sys.modules["torch._six"] = six


def accept_qk_scale() -> None:
    """Let the blocks of a timm later than 0.3.2 take `qk_scale=None`, as facebookresearch/mae passes it."""
    import inspect

    from timm.models import vision_transformer

    block = vision_transformer.Block
    if "qk_scale" in inspect.signature(block.__init__).parameters:
        return

    @functools.wraps(block, updated=())
    def without_qk_scale(*args: Any, qk_scale: float | None = None, **kwargs: Any) -> Any:
        if qk_scale is not None:
            raise ValueError(f"this timm knows no qk_scale, got {qk_scale}")
        return block(*args, **kwargs)

    vision_transformer.Block = without_qk_scale
