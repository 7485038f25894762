"""The methods, one module each and loaded by name; `plsc_mae.config.CONFIGS` lists their options."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from plsc_mae.config import PRETRAIN, ClassifyConfig, PretrainConfig
from plsc_mae.methods.contract import ClassifierRecipe, Method


def load_method(name: str) -> Method[PretrainConfig]:
    """Import `plsc_mae.methods.<name>` and return its METHOD, for pre-training."""
    return importlib.import_module(f"plsc_mae.methods.{name}").METHOD


def load_methods() -> Iterator[Method[PretrainConfig]]:
    """Yield the METHOD of every pre-training method, in the order of `plsc_mae.config.PRETRAIN`."""
    return map(load_method, PRETRAIN)


def load_recipe(name: str) -> ClassifierRecipe[ClassifyConfig]:
    """Import `plsc_mae.methods.<name>` and return its CLASSIFIER, for fine-tuning and probing."""
    return importlib.import_module(f"plsc_mae.methods.{name}").CLASSIFIER
