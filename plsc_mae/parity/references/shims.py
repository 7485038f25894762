"""Shims for names that code of 2020 and 2021 uses and that PyTorch, NumPy and timm have removed since.

Also stand-ins for packages that the originals import for tokenizers, logs and downloads only.
"""

from __future__ import annotations

import collections.abc
import functools
import importlib.abc
import importlib.machinery
import math
import sys
import types
from typing import Any

import numpy as np
import torch


def install() -> None:
    """Add the removed names of PyTorch and NumPy that the originals use; names that still exist stay unchanged.

    Without a GPU, `Tensor.cuda` is replaced by a method that returns the tensor itself.
    """
    _add_torch_six()
    for name, kind in (("float", float), ("int", int), ("bool", bool), ("object", object)):
        if name not in vars(np):  # removed in NumPy 1.24
            setattr(np, name, kind)
    if not torch.cuda.is_available():  # Atten4Vis/CAE moves a table to its input's device by .cuda(device)
        torch.Tensor.cuda = _identity


# Imported by Atten4Vis/CAE for its tokenizers, CLIP and logs; neither its network nor its loss uses them.
UNUSED_PACKAGES = frozenset({"attr", "attrs", "einops", "ftfy", "pkg_resources", "regex", "requests", "tensorboardX"})


def stand_in(packages: frozenset[str] = UNUSED_PACKAGES) -> None:
    """Let `import` succeed for those of `packages` that are not installed, and for submodules that installed ones lack.

    The names in these modules are `_Nothing` objects, with which no tensor can be computed.
    """
    sys.meta_path.append(_Finder(packages))


class _Nothing:
    """Stand-in for any function or class; as a decorator it returns the decorated object, in other calls itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        decorates = len(args) == 1 and not kwargs and isinstance(args[0], (type, types.FunctionType))
        return args[0] if decorates else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __lt__(self, other: object) -> bool:  # for version checks on import
        return False


class _Package(types.ModuleType):
    """Empty package whose names are `_Nothing` objects."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import finder that supplies empty modules; it is the last in `sys.meta_path`, so installed packages win."""

    def __init__(self, packages: frozenset[str]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of an empty module if `fullname` lies in one of the packages, else None."""
        if fullname.partition(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        """Return an empty module for the spec."""
        return _Package(spec.name)

    def exec_module(self, module: Any) -> None:
        """Do nothing."""


def _identity(tensor: Any, *_args: Any, **_kwargs: Any) -> Any:
    return tensor


def _add_torch_six() -> None:
    """Add the module `torch._six`, which timm 0.3.2 imports, if PyTorch has none; PyTorch 2.0 removed it."""
    if "torch._six" in sys.modules or hasattr(torch, "_six"):
        return
    six: Any = types.ModuleType("torch._six")
    six.container_abcs, six.string_classes, six.int_classes, six.inf = collections.abc, (str, bytes), int, math.inf
    sys.modules["torch._six"] = six


def accept_qk_scale() -> None:
    """Make the blocks of timm versions after 0.3.2 accept `qk_scale=None`, which facebookresearch/mae passes.

    For another value the patched block raises ValueError.
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
