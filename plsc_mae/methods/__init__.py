"""The pre-training methods, one module each, loaded by name."""

from __future__ import annotations

import importlib

from plsc_mae.methods.base import Method


def load_method(name: str) -> Method:
    """Import `plsc_mae.methods.<name>` and return its METHOD."""
    return importlib.import_module(f"plsc_mae.methods.{name}").METHOD
