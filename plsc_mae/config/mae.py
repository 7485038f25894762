"""MAE's own options (He et al. 2022; facebookresearch/mae main_pretrain.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from plsc_mae.config.schema import option, redefault
from plsc_mae.config.sections import EncoderSizeOptions, PretrainConfig


@dataclass(kw_only=True, frozen=True)
class MAEOptions(EncoderSizeOptions):
    """MAE: mask, crop, target, decoder sizes."""

    mask_ratio: float = option(0.75, "share of the patches hidden from the encoder", within="(0, 1)")
    crop_scale: tuple[float, float] = option((0.2, 1.0), "shares of the image area a crop may take", within="(0, 1]")
    norm_pix_loss: bool = option(False, "normalize every target patch by its own mean and variance")
    drop_path: float | None = option(None, "stochastic depth rate of the last encoder block", within="[0, 1)")
    decoder_embed_dim: int | None = option(None, "decoder width", within="[1, inf)")
    decoder_depth: int | None = option(None, "decoder blocks", within="[1, inf)")
    decoder_num_heads: int | None = option(None, "decoder attention heads", within="[1, inf)")


@dataclass(kw_only=True, frozen=True)
class MAEConfig(MAEOptions, PretrainConfig):
    """Masked autoencoder pre-training."""

    method: ClassVar[str] = "mae"
    models: ClassVar[tuple[str, ...]] = ("mae_*",)

    model: str = redefault(PretrainConfig, "model", "mae_vit_large_patch16")
