"""Options of the masked autoencoders: He et al. 2022 (facebookresearch/mae main_pretrain.py) and two successors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from plsc_mae.config.schema import Retired, option, redefault
from plsc_mae.config.training import (
    WANDB,
    EncoderSizeOptions,
    NormOptions,
    PretrainConfig,
    UpdateScheduleOptions,
)


@dataclass(kw_only=True, frozen=True)
class AutoencoderOptions(EncoderSizeOptions):
    """Masked autoencoder: mask, target, decoder sizes."""

    mask_ratio: float = option(0.75, "share of the patches hidden from the encoder", within="(0, 1)")
    crop_scale: tuple[float, float] = option((0.2, 1.0), "shares of the image area a crop may take", within="(0, 1]")
    norm_pix_loss: bool = option(False, "normalize every target patch by its own mean and variance")
    drop_path: float | None = option(None, "stochastic depth rate of the last encoder block", within="[0, 1)")
    decoder_embed_dim: int | None = option(None, "decoder width", within="[1, inf)")
    decoder_depth: int | None = option(None, "decoder blocks", within="[1, inf)")
    decoder_num_heads: int | None = option(None, "decoder attention heads", within="[1, inf)")


@dataclass(kw_only=True, frozen=True)
class MAEConfig(NormOptions, AutoencoderOptions, PretrainConfig):
    """Masked autoencoder pre-training."""

    method: ClassVar[str] = "mae"
    models: ClassVar[tuple[str, ...]] = ("mae_*",)

    model: str = redefault(PretrainConfig, "model", "mae_vit_large_patch16")
    train_positions: bool = option(False, "train the position tables, from the computed ones, as LiBai does")


@dataclass(kw_only=True, frozen=True)
class _SuccessorConfig(UpdateScheduleOptions, AutoencoderOptions, PretrainConfig):
    """What pre-training of MAE-priv and of MAE-pytorch share."""

    lr_per_256: ClassVar[bool] = True
    aliases: ClassVar[dict[str, str]] = {
        **PretrainConfig.aliases,
        "normlize_target": "norm_pix_loss",
        "decoder_dim": "decoder_embed_dim",
    }
    retired: ClassVar[dict[str, Retired]] = {
        **PretrainConfig.retired,
        **WANDB,
        "train_interpolation": Retired("crops are resized bilinearly, whatever it says in the original too"),
    }

    model: str = redefault(PretrainConfig, "model", "pretrain_mae_base_patch16_224")
    epochs: int = redefault(PretrainConfig, "epochs", 300)
    lr: float | None = redefault(PretrainConfig, "lr", 1.5e-4)
    blr: float | None = redefault(PretrainConfig, "blr", None)
    min_lr: float = redefault(PretrainConfig, "min_lr", 1e-5)
    crop_scale: tuple[float, float] = redefault(AutoencoderOptions, "crop_scale", (0.08, 1.0))
    norm_pix_loss: bool = redefault(AutoencoderOptions, "norm_pix_loss", True)
    auto_resume: bool = redefault(PretrainConfig, "auto_resume", True)


@dataclass(kw_only=True, frozen=True)
class MAEPrivConfig(_SuccessorConfig):
    """Pre-training as BUPT-PRIV/MAE-priv does it: learning rate per 256 images, class token by choice."""

    method: ClassVar[str] = "mae_priv"
    # The sizes that MAE-pytorch lacks; the others need --method mae_priv or one of its configs.
    models: ClassVar[tuple[str, ...]] = (
        "pretrain_mae_tiny_patch16_224",
        "pretrain_mae_huge_patch14_224",
        "pretrain_mae_giant_patch14_224",
    )

    aliases: ClassVar[dict[str, str]] = {**_SuccessorConfig.aliases, "use_cls_token": "class_token"}

    class_token: bool = option(
        True, "give the encoder a class token (MAE-priv: use_cls_token); the decoder never sees it"
    )
    batched_shuffle: bool = option(True, "hide the same patches in all images of a process's batch")
    hflip: float = option(0.5, "probability of a horizontal flip", within="[0, 1]")
    imagenet_inception_mean_and_std: bool = option(
        False, "normalize images by mean and std 0.5 instead of ImageNet's statistics"
    )


@dataclass(kw_only=True, frozen=True)
class MAEPytorchConfig(_SuccessorConfig):
    """Pre-training as pengzhiliang/MAE-pytorch does it: no class token, 1-D positions, learning rate per 256 images."""

    method: ClassVar[str] = "mae_pytorch"
    models: ClassVar[tuple[str, ...]] = ("pretrain_mae_*",)
    retired: ClassVar[dict[str, Retired]] = {
        **_SuccessorConfig.retired,
        "color_jitter": Retired("no implementation applies it in pre-training"),
        "imagenet_default_mean_and_std": Retired("it is always on", takes_value=False, granted=True),
    }

    opt_betas: tuple[float, float] = redefault(PretrainConfig, "opt_betas", (0.9, 0.999))
