"""The config class of every phase and method. This package declares all options, and its import is fast.

From the rest of plsc_mae, its modules import only `errors` and `file_kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping

from plsc_mae.config import cae, mae, mae_priv, mae_pytorch, simmim
from plsc_mae.config.cae import CAEConfig
from plsc_mae.config.classify import ClassifyConfig, FinetuneConfig, LinprobeConfig
from plsc_mae.config.mae import MAEConfig
from plsc_mae.config.training import PretrainConfig, TrainingConfig

# A new method adds its CONFIGS here. The first method is the default; where a model name matches several methods, the
# first of them is chosen.
CONFIGS: tuple[type[TrainingConfig], ...] = (
    *mae.CONFIGS,
    *cae.CONFIGS,
    *mae_priv.CONFIGS,
    *mae_pytorch.CONFIGS,
    *simmim.CONFIGS,
)

PRETRAIN = {cls.method: cls for cls in CONFIGS if issubclass(cls, PretrainConfig)}
FINETUNE = {cls.method: cls for cls in CONFIGS if issubclass(cls, FinetuneConfig)}
LINPROBE = {cls.method: cls for cls in CONFIGS if issubclass(cls, LinprobeConfig)}
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
