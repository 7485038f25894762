"""Options of the masked autoencoder (He et al. 2022; facebookresearch/mae): pre-training, fine-tuning, probing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from plsc_mae.config.classify import LARS_PROBE, FinetuneConfig, LinprobeConfig
from plsc_mae.config.schema import in_group
from plsc_mae.config.training import NormOptions, PretrainConfig

_autoencoder = in_group("Masked autoencoder")


@dataclass(kw_only=True, frozen=True)
class AutoencoderOptions:
    """Options of masked autoencoders."""

    mask_ratio: float = _autoencoder(0.75, "fraction of patches hidden from the encoder", within="(0, 1)")
    crop_scale: tuple[float, float] = _autoencoder(
        (0.2, 1.0), "smallest and largest fraction of the image area in a crop", within="(0, 1]"
    )
    norm_pix_loss: bool = _autoencoder(False, "normalize every target patch by its own mean and variance")
    drop_path: float | None = _autoencoder(
        None, "stochastic depth rate of the last encoder block [0]", within="[0, 1)", metavar="RATE"
    )
    decoder_embed_dim: int | None = _autoencoder(None, "decoder width [that of --model]", within="[1, inf)")
    decoder_depth: int | None = _autoencoder(None, "decoder blocks [those of --model]", within="[1, inf)")
    decoder_num_heads: int | None = _autoencoder(None, "decoder attention heads [those of --model]", within="[1, inf)")


@dataclass(kw_only=True, frozen=True)
class AutoencoderConfig(AutoencoderOptions, PretrainConfig):
    """Pre-training options that MAE, MAE-priv and MAE-pytorch share."""


@dataclass(kw_only=True, frozen=True)
class MAEConfig(NormOptions, AutoencoderConfig):
    """Pre-training of facebookresearch/mae (main_pretrain.py)."""

    method: ClassVar[str] = "mae"
    models: ClassVar[tuple[str, ...]] = ("mae_*",)
    frequent: ClassVar[tuple[str, ...]] = (*PretrainConfig.frequent, "mask_ratio", "norm_pix_loss")
    defaults: ClassVar[Mapping[str, Any]] = {"model": "mae_vit_large_patch16"}

    train_positions: bool = _autoencoder(
        False, "train the position tables, starting from sin-cos values, as LiBai does"
    )


@dataclass(kw_only=True, frozen=True)
class MAEFinetuneConfig(NormOptions, FinetuneConfig):
    """Fine-tuning of facebookresearch/mae (main_finetune.py)."""

    method: ClassVar[str] = "mae"
    models: ClassVar[tuple[str, ...]] = ("vit_*_patch1[46]", "maevit_*")
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "vit_large_patch16",
        "epochs": 50,
        "warmup_epochs": 5.0,
        "min_lr": 1e-6,
        "opt_betas": (0.9, 0.999),
    }


@dataclass(kw_only=True, frozen=True)
class MAELinprobeConfig(NormOptions, LinprobeConfig):
    """Linear probing of facebookresearch/mae (main_linprobe.py)."""

    method: ClassVar[str] = "mae"
    models: ClassVar[tuple[str, ...]] = MAEFinetuneConfig.models
    defaults: ClassVar[Mapping[str, Any]] = {**LARS_PROBE, "model": "vit_large_patch16", "global_pool": False}


CONFIGS = (MAEConfig, MAEFinetuneConfig, MAELinprobeConfig)
