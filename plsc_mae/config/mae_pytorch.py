"""Options of pengzhiliang/MAE-pytorch, and those of pre-training that BUPT-PRIV/MAE-priv shares with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from plsc_mae.config.classify import FinetuneConfig, RegularizationOptions
from plsc_mae.config.mae import AutoencoderConfig
from plsc_mae.config.schema import Retired
from plsc_mae.config.training import DEEPSPEED, WANDB, PretrainConfig, UpdateScheduleOptions


@dataclass(kw_only=True, frozen=True)
class BeitStylePretrainConfig(UpdateScheduleOptions, AutoencoderConfig):
    """Pre-training options common to MAE-pytorch and MAE-priv, both derived from BEiT's code."""

    lr_per_256: ClassVar[bool] = True
    frequent: ClassVar[tuple[str, ...]] = (*PretrainConfig.frequent, "mask_ratio", "norm_pix_loss")
    aliases: ClassVar[dict[str, str]] = {
        **PretrainConfig.aliases,
        "normlize_target": "norm_pix_loss",
        "decoder_dim": "decoder_embed_dim",
    }
    retired: ClassVar[dict[str, Retired]] = {
        **PretrainConfig.retired,
        **WANDB,
        "train_interpolation": Retired("crops are resized bilinearly; the original ignores the flag too"),
    }


@dataclass(kw_only=True, frozen=True)
class MAEPytorchConfig(BeitStylePretrainConfig):
    """Pre-training of pengzhiliang/MAE-pytorch: no class token, 1-D positions, learning rate per 256 images."""

    method: ClassVar[str] = "mae_pytorch"
    models: ClassVar[tuple[str, ...]] = ("pretrain_mae_*",)
    retired: ClassVar[dict[str, Retired]] = {
        **BeitStylePretrainConfig.retired,
        "color_jitter": Retired("no implementation applies it in pre-training"),
        "imagenet_default_mean_and_std": Retired("it is always on", takes_value=False, granted=True),
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "pretrain_mae_base_patch16_224",
        "epochs": 300,
        "lr": 1.5e-4,
        "blr": None,
        "min_lr": 1e-5,
        "opt_betas": (0.9, 0.999),
        "crop_scale": (0.08, 1.0),
        "norm_pix_loss": True,
        "auto_resume": True,
    }


@dataclass(kw_only=True, frozen=True)
class MAEPytorchFinetuneConfig(RegularizationOptions, UpdateScheduleOptions, FinetuneConfig):
    """Fine-tuning of pengzhiliang/MAE-pytorch: no class token, learning rate per 256 images."""

    method: ClassVar[str] = "mae_pytorch"
    models: ClassVar[tuple[str, ...]] = ("vit_*_patch*_[0-9]*",)
    lr_per_256: ClassVar[bool] = True
    retired: ClassVar[dict[str, Retired]] = {**FinetuneConfig.retired, **DEEPSPEED, **WANDB}
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "vit_base_patch16_224",
        "epochs": 30,
        "warmup_epochs": 5.0,
        "lr": 1e-3,
        "blr": None,
        "min_lr": 1e-6,
        "opt_betas": (0.9, 0.999),
        "color_jitter": 0.4,
        "mixup": 0.8,
        "cutmix": 1.0,
        "auto_resume": True,
    }


CONFIGS = (MAEPytorchConfig, MAEPytorchFinetuneConfig)
