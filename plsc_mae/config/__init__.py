"""The vocabulary of the suite: every option, its default and its meaning. Imports nothing but the errors."""

from __future__ import annotations

from collections.abc import Mapping

from plsc_mae.config.cae import CAEConfig
from plsc_mae.config.classify import (
    CAEFinetuneConfig,
    CAELinprobeConfig,
    ClassifyConfig,
    FinetuneConfig,
    LinprobeConfig,
    MAEFinetuneConfig,
    MAELinprobeConfig,
    MAEPrivFinetuneConfig,
    MAEPrivLinprobeConfig,
    MAEPytorchFinetuneConfig,
)
from plsc_mae.config.mae import MAEConfig, MAEPrivConfig, MAEPytorchConfig
from plsc_mae.config.training import PretrainConfig, TrainingConfig

PRETRAIN: dict[str, type[PretrainConfig]] = {
    cls.method: cls for cls in (MAEConfig, CAEConfig, MAEPrivConfig, MAEPytorchConfig)
}
FINETUNE: dict[str, type[FinetuneConfig]] = {
    cls.method: cls for cls in (MAEFinetuneConfig, CAEFinetuneConfig, MAEPytorchFinetuneConfig, MAEPrivFinetuneConfig)
}
LINPROBE: dict[str, type[LinprobeConfig]] = {
    cls.method: cls for cls in (MAELinprobeConfig, CAELinprobeConfig, MAEPrivLinprobeConfig)
}
PHASES: dict[str, Mapping[str, type[TrainingConfig]]] = {
    "pretrain": PRETRAIN,
    "finetune": FINETUNE,
    "linprobe": LINPROBE,
}

__all__ = [
    "FINETUNE",
    "LINPROBE",
    "PHASES",
    "PRETRAIN",
    "CAEConfig",
    "ClassifyConfig",
    "FinetuneConfig",
    "LinprobeConfig",
    "MAEConfig",
    "PretrainConfig",
    "TrainingConfig",
]
