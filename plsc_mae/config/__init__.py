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

# One row per method: its options for pre-training, fine-tuning and probing. A model's name means the first method
# whose `models` match it.
METHODS: tuple[tuple[type[PretrainConfig], type[FinetuneConfig] | None, type[LinprobeConfig] | None], ...] = (
    (MAEConfig, MAEFinetuneConfig, MAELinprobeConfig),
    (CAEConfig, CAEFinetuneConfig, CAELinprobeConfig),
    (MAEPrivConfig, MAEPrivFinetuneConfig, MAEPrivLinprobeConfig),
    (MAEPytorchConfig, MAEPytorchFinetuneConfig, None),
)
PRETRAIN: dict[str, type[PretrainConfig]] = {row[0].method: row[0] for row in METHODS}
FINETUNE: dict[str, type[FinetuneConfig]] = {row[1].method: row[1] for row in METHODS if row[1]}
LINPROBE: dict[str, type[LinprobeConfig]] = {row[2].method: row[2] for row in METHODS if row[2]}
PHASES: dict[str, Mapping[str, type[TrainingConfig]]] = {
    "pretrain": PRETRAIN,
    "finetune": FINETUNE,
    "linprobe": LINPROBE,
}

__all__ = [
    "FINETUNE",
    "LINPROBE",
    "METHODS",
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
