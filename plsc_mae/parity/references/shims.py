"""Shims for names that code of 2020 and 2021 uses and that PyTorch, NumPy and timm have removed since."""

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
    """Add the removed names of PyTorch and NumPy; names that still exist stay unchanged."""
    _add_torch_six()
    for name, kind in (("float", float), ("int", int), ("bool", bool), ("object", object)):
        if name not in vars(np):  # removed in NumPy 1.24
            setattr(np, name, kind)
    if not torch.cuda.is_available():  # Atten4Vis/CAE moves a table to its input's device by .cuda(device)
        torch.Tensor.cuda = _identity


def _identity(tensor: Any, *_args: Any, **_kwargs: Any) -> Any:
    return tensor


def _add_torch_six() -> None:
    """Add `torch._six`, which timm 0.3.2 imports; PyTorch removed it in 1.13 and 2.0."""
    if "torch._six" in sys.modules or hasattr(torch, "_six"):
        return
    six: Any = types.ModuleType("torch._six")
    six.container_abcs, six.string_classes, six.int_classes, six.inf = collections.abc, (str, bytes), int, math.inf
    sys.modules["torch._six"] = six


def accept_qk_scale() -> None:
    """Make the blocks of timm versions after 0.3.2 accept `qk_scale=None`, which facebookresearch/mae passes.

    Raises:
        ValueError: raised by the patched block if `qk_scale` has another value.
    """
    import inspect

    from timm.models import vision_transformer

    block = vision_transformer.Block
    if "qk_scale" in inspect.signature(block.__init__).parameters:
        return

    @functools.wraps(block, updated=())
    def without_qk_scale(*args: Any, qk_scale: float | None = None, **kwargs: Any) -> Any:
        if qk_scale is not None:
            raise ValueError(f"qk_scale is {qk_scale}, expected None: this version of timm has no such argument")
        return block(*args, **kwargs)

    vision_transformer.Block = without_qk_scale
