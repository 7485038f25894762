"""The vocabulary of the suite: every option, its default and its meaning. Imports nothing but the errors."""

from __future__ import annotations

from plsc_mae.config.cae import CAEConfig
from plsc_mae.config.mae import MAEConfig
from plsc_mae.config.sections import PretrainConfig

PRETRAIN: dict[str, type[PretrainConfig]] = {cls.method: cls for cls in (MAEConfig, CAEConfig)}

__all__ = ["PRETRAIN", "CAEConfig", "MAEConfig", "PretrainConfig"]
