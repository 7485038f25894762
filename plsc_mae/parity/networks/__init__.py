"""Networks that `plsc-mae parity` can check, one module each.

A module defines `CASE`, the class of its cases, and `ORIGINALS`, the original implementations of its networks.
`methods.contract.Method.parity` is the name of the module for a method.
"""

from __future__ import annotations

import importlib
from typing import Any

from plsc_mae.config import PretrainConfig
from plsc_mae.errors import ConfigError
from plsc_mae.methods import load_method, load_methods
from plsc_mae.parity.cases import AnyCase
from plsc_mae.parity.originals import Original


def case_class(trained: PretrainConfig) -> type[AnyCase]:
    """Return the class of the cases for the method of `trained`.

    Raises:
        ConfigError: the method has no oracle.
    """
    name = load_method(trained.method).parity
    if not name:
        raise ConfigError(f"method '{trained.method}' has no oracle; name a model of another method")
    return _module(name).CASE


def originals() -> tuple[Original, ...]:
    """Return the original implementations of all networks."""
    names = dict.fromkeys(method.parity for method in load_methods() if method.parity)
    return tuple(original for name in names for original in _module(name).ORIGINALS)


def _module(name: str) -> Any:
    return importlib.import_module(f"plsc_mae.parity.networks.{name}")
