"""Options of BUPT-PRIV/MAE-priv: pre-training, fine-tuning and probing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from plsc_mae.config.classify import FinetuneConfig, LinprobeConfig, RegularizationOptions
from plsc_mae.config.mae_pytorch import BeitStylePretrainConfig, MAEPytorchFinetuneConfig
from plsc_mae.config.schema import Retired, in_group
from plsc_mae.config.training import DEEPSPEED, WANDB, UpdateScheduleOptions

_mae_priv = in_group("MAE-priv")
# A classifier of MAE-priv has a class token only if it classifies that token.
_NEGATIONS = {**FinetuneConfig.negations, "use_cls_token": "global_pool"}


@dataclass(kw_only=True, frozen=True)
class MAEPrivConfig(BeitStylePretrainConfig):
    """Pre-training of BUPT-PRIV/MAE-priv: learning rate per 256 images, optional class token."""

    method: ClassVar[str] = "mae_priv"
    # Only the sizes that MAE-pytorch lacks; the others need `method: mae_priv`.
    models: ClassVar[tuple[str, ...]] = (
        "pretrain_mae_tiny_patch16_224",
        "pretrain_mae_huge_patch14_224",
        "pretrain_mae_giant_patch14_224",
    )
    aliases: ClassVar[dict[str, str]] = {**BeitStylePretrainConfig.aliases, "use_cls_token": "class_token"}
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "pretrain_mae_base_patch16_224",
        "epochs": 300,
        "lr": 1.5e-4,
        "blr": None,
        "min_lr": 1e-5,
        "crop_scale": (0.08, 1.0),
        "norm_pix_loss": True,
        "auto_resume": True,
    }

    class_token: bool = _mae_priv(
        True, "give the encoder a class token (use_cls_token in MAE-priv); the decoder does not receive it"
    )
    batched_shuffle: bool = _mae_priv(True, "hide the same patches in all images of a process's batch")
    hflip: float = _mae_priv(0.5, "probability of a horizontal flip", within="[0, 1]", metavar="P")
    imagenet_inception_mean_and_std: bool = _mae_priv(
        False, "normalize images by mean and std 0.5 instead of ImageNet's statistics"
    )


@dataclass(kw_only=True, frozen=True)
class MAEPrivFinetuneConfig(RegularizationOptions, UpdateScheduleOptions, FinetuneConfig):
    """Fine-tuning of BUPT-PRIV/MAE-priv: learning rate per 256 images, optional class token."""

    method: ClassVar[str] = "mae_priv"
    models: ClassVar[tuple[str, ...]] = ()  # its model names select MAE-pytorch
    lr_per_256: ClassVar[bool] = True
    negations: ClassVar[dict[str, str]] = _NEGATIONS
    retired: ClassVar[dict[str, Retired]] = MAEPytorchFinetuneConfig.retired
    defaults: ClassVar[Mapping[str, Any]] = {
        **MAEPytorchFinetuneConfig.defaults,
        "reprob": 0.0,
        "global_pool": False,
    }


@dataclass(kw_only=True, frozen=True)
class MAEPrivLinprobeConfig(RegularizationOptions, UpdateScheduleOptions, LinprobeConfig):
    """Linear probing of BUPT-PRIV/MAE-priv: batch norm replaces the final norm, learning rate per 256 images."""

    method: ClassVar[str] = "mae_priv"
    models: ClassVar[tuple[str, ...]] = MAEPytorchFinetuneConfig.models
    lr_per_256: ClassVar[bool] = True
    negations: ClassVar[dict[str, str]] = _NEGATIONS
    retired: ClassVar[dict[str, Retired]] = {**LinprobeConfig.retired, **DEEPSPEED, **WANDB}
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "vit_base_patch16_224",
        "batch_size": 2048,
        "epochs": 90,
        "warmup_epochs": 10.0,
        "lr": 0.1,
        "blr": None,
        "min_lr": 1e-6,
        "opt": "sgd",
        "opt_betas": (0.9, 0.999),
        "weight_decay": 0.0,
        "global_pool": False,
        "drop_path": 0.0,
        "auto_resume": True,
    }


CONFIGS = (MAEPrivConfig, MAEPrivFinetuneConfig, MAEPrivLinprobeConfig)
