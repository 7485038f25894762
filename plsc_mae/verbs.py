"""Packages that can be called: `plsc_mae.train` is the training loop's package and a function of the Python API.

Python sets the attribute `plsc_mae.train` to the package when any of its modules is imported, so a function of the
same name would be replaced. Instead, the package itself is callable.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """A callable package; a call runs the function of the same name in `plsc_mae.api`."""

    @property
    def _function(self) -> Any:
        return getattr(importlib.import_module("plsc_mae.api"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._function(*args, **options)


def make_callable(package: str) -> None:
    """Make a package callable, for example "plsc_mae.train"; the package calls this when it is imported."""
    sys.modules[package].__class__ = _Verb
