"""The targets of an export, one module each and loaded by name; `plsc_mae.config.export.Target` lists them."""

from __future__ import annotations

import importlib

from plsc_mae.export.targets.base import Target


def load_target(name: str) -> Target:
    """Import `plsc_mae.export.targets.<name>` and return its TARGET."""
    target: Target = importlib.import_module(f"plsc_mae.export.targets.{name}").TARGET
    return target
