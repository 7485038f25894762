"""plsc_mae: masked image modeling in PaddlePaddle. Names are loaded on first use, so importing the package is fast.

The import sets the environment variables of `plsc_mae.runtime`, so import it before Paddle. It also loads Pillow's
binary: Paddle 2.6.2 exports functions of zlib, and a Pillow loaded later calls them and crashes when it writes a PNG.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from plsc_mae.runtime import apply_cpu_settings

__version__ = "0.1.0"

if TYPE_CHECKING:
    from plsc_mae.api import embed, export, train
    from plsc_mae.config.resolve import load_config
    from plsc_mae.models.registry import create_model, list_models

_LAZY = {
    "embed": "plsc_mae.api",
    "create_model": "plsc_mae.models.registry",
    "list_models": "plsc_mae.models.registry",
    "load_config": "plsc_mae.config.resolve",
}
_SUBMODULES = ("weights", "masking", "losses", "optim", "models", "data", "analysis")
_VERBS = ("train", "export")  # packages that can be called, see `plsc_mae.verbs`
__all__ = ["__version__", "create_model", "embed", "export", "list_models", "load_config", "train"]

apply_cpu_settings()
with contextlib.suppress(ImportError):  # interpreters of `plsc-mae parity --reference` need no Pillow
    import PIL._imaging  # noqa: F401


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBMODULES + _VERBS:
        return importlib.import_module(f"plsc_mae.{name}")
    raise AttributeError(f"module 'plsc_mae' has no attribute {name!r}")
