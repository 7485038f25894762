"""The methods, one module each, loaded by name."""

from __future__ import annotations

import importlib

from plsc_mae.methods.base import ClassifierRecipe, Method


def load_method(name: str) -> Method:
    """Import `plsc_mae.methods.<name>` and return its METHOD, which pre-trains."""
    return importlib.import_module(f"plsc_mae.methods.{name}").METHOD


def load_recipe(name: str) -> ClassifierRecipe:
    """Import `plsc_mae.methods.<name>` and return its CLASSIFIER, which fine-tunes and probes."""
    return importlib.import_module(f"plsc_mae.methods.{name}").CLASSIFIER
