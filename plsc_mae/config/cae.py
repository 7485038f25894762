"""CAE's own options (Chen et al. 2022; Atten4Vis/CAE tools/run_pretraining.py, PLSC task/ssl/cae/main_pretrain.py).

Where the two disagree on a default it is that of Atten4Vis/CAE as it takes effect there; docs/cae.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from plsc_mae.config.schema import Retired, option, redefault
from plsc_mae.config.training import EncoderSizeOptions, PretrainConfig, UpdateScheduleOptions
from plsc_mae.errors import ConfigError

_CAE_V2 = "it belongs to CAE v2, which is not in this suite"
_NO_BIAS_TABLE = "the pre-training network has no relative position bias; fine-tuning may"


@dataclass(kw_only=True, frozen=True)
class CAEMaskOptions:
    """CAE masks: which patches are hidden."""

    mask_generator: Literal["block", "random"] = option("block", "hide rectangles (BEiT), or patches at random")
    num_mask_patches: int | None = option(
        None, "hidden patches of the block generator, exactly [98]", within="[1, inf)"
    )
    min_mask_patches_per_block: int = option(16, "smallest rectangle, in patches", within="[1, inf)")
    max_mask_patches_per_block: int | None = option(
        None, "largest rectangle, in patches; --num_mask_patches when not given", within="[1, inf)"
    )
    ratio_mask_patches: float | None = option(None, "hidden share of the random generator", within="(0, 1)")


@dataclass(kw_only=True, frozen=True)
class CAEViewOptions:
    """CAE views: one crop at two sizes, for the network and for the tokenizer."""

    second_input_size: tuple[int, ...] | None = option(
        None, "side of the tokenizer's view in pixels, 8 per patch [112 at 224]", within="[8, inf)"
    )
    crop_min_size: float = option(0.08, "smallest share of the image area a crop may take", within="(0, 1]")
    crop_max_size: float = option(1.0, "largest share of the image area a crop may take", within="(0, 1]")
    train_interpolation: Literal["bicubic", "bilinear", "random"] = option(
        "bicubic", "filter of the network's view; random: bilinear or bicubic for each image"
    )
    second_interpolation: Literal["lanczos", "bicubic", "bilinear"] = option(
        "lanczos", "filter of the tokenizer's view"
    )
    color_jitter: float = option(0.0, "strength of brightness, contrast and saturation jitter", within="[0, inf)")
    imagenet_default_mean_and_std: bool = option(
        False, "normalize the network's view by ImageNet's mean and std, else by 0.5 and 0.5"
    )


@dataclass(kw_only=True, frozen=True)
class CAETargetOptions:
    """CAE targets: what is predicted of hidden patches, and the losses."""

    target_mode: Literal["clusterID", "rgb", "random"] = option(
        "clusterID", "tokens of the dVAE, pixels, or the nearest of random vectors"
    )
    discrete_vae_type: Literal["dall-e", "random_init", "to_tensor"] = option(
        "dall-e", "tokenizer; random_init: frozen random weights, for trying out; to_tensor: none, for pixel targets"
    )
    discrete_vae_weight_path: str | None = option(None, "folder or file of the DALL-E dVAE's weights")
    discrete_vae_seed: int = option(0, "seed of random_init weights and of random vectors", within="[0, inf)")
    discrete_vae_hidden: int = option(256, "width n_hid of the random_init dVAE", within="[4, inf)")
    discrete_vae_dtype: Literal["auto", "float16", "float32"] = option(
        "auto", "arithmetic of the tokenizer; auto: float16 on GPU as the original, float32 on CPU"
    )
    target_path: str | None = option(
        None, "file of the random vectors of --target_mode random, [pixels, classes]; drawn when not given"
    )
    normalized_pixel: Literal["layernorm", "none", "patch", "channel"] = option(
        "layernorm", "how pixel targets are normalized: by patch with biased or unbiased variance, or by channel"
    )
    denorm: bool = option(False, "take pixel targets from the image in [0, 1] instead of the normalized one")
    dual_loss_weight: float = option(2.0, "weight of the alignment loss", within="[0, inf)")
    dual_loss_type: Literal["mse", "kld"] = option("mse", "alignment loss: squared error, or KL of softmaxes")
    dual_path_ema: float = option(
        0.0, "decay of the averaged encoder that makes the alignment target; 0: the encoder itself", within="[0, 1)"
    )


@dataclass(kw_only=True, frozen=True)
class CAENetworkOptions(EncoderSizeOptions):
    """CAE network: sizes and initialization; unset encoder sizes are the named model's."""

    model_type: Literal["cae"] = option("cae", "generation of CAE")
    drop_path: float = option(0.0, "stochastic depth rate of the last block of each stack", within="[0, 1)")
    layer_scale_init_value: float = option(
        0.1, "initial layer scale of the encoder; 1e-5 for large, 0 for none", within="[0, inf)"
    )
    sincos_pos_emb: bool = option(True, "fixed sin-cos positions")
    abs_pos_emb: bool = option(False, "learned positions, in place of the sin-cos ones")
    regressor_depth: int = option(4, "regressor blocks", within="[1, inf)")
    num_decoder_self_attention: int = option(4, "decoder blocks", within="[0, inf)")
    decoder_embed_dim: int = option(768, "width of regressor and decoder", within="[1, inf)")
    decoder_num_heads: int = option(12, "attention heads of regressor and decoder", within="[1, inf)")
    decoder_num_classes: int | None = option(
        None, "size of the prediction [the tokenizer's vocabulary, 8192; pixels of a patch for rgb]", within="[2, inf)"
    )
    decoder_layer_scale_init_value: float = option(
        0.1, "initial layer scale of regressor and decoder", within="[0, inf)"
    )
    rescale_init: bool = option(
        False, "keep the normal initialization with rescaled residual branches instead of xavier-uniform"
    )


@dataclass(kw_only=True, frozen=True)
class CAEConfig(
    CAEMaskOptions, CAEViewOptions, CAETargetOptions, CAENetworkOptions, UpdateScheduleOptions, PretrainConfig
):
    """Context autoencoder pre-training."""

    method: ClassVar[str] = "cae"
    models: ClassVar[tuple[str, ...]] = ("cae_*",)
    aliases: ClassVar[dict[str, str]] = {
        **PretrainConfig.aliases,
        "align_loss_weight": "dual_loss_weight",
        "decoder_depth": "num_decoder_self_attention",
        "fix_init_weight": "rescale_init",
    }
    retired: ClassVar[dict[str, Retired]] = {
        **PretrainConfig.retired,
        "rel_pos_bias": Retired(_NO_BIAS_TABLE, takes_value=False),
        "disable_rel_pos_bias": Retired(_NO_BIAS_TABLE, takes_value=False),
        "save_ckpt_toBPFS_freq": Retired("it copies to a file system of the authors"),
        "dvae_num_layers": Retired("the depth of the DALL-E tokenizer is fixed"),
        "num_out_dim": Retired(_CAE_V2),
        "latent_alignment_loss_weight": Retired(_CAE_V2),
    }

    model: str = redefault(PretrainConfig, "model", "cae_base_patch16_224_8k_vocab")
    epochs: int = redefault(PretrainConfig, "epochs", 300)
    lr: float | None = redefault(PretrainConfig, "lr", 5e-4)
    blr: float | None = redefault(PretrainConfig, "blr", None)
    min_lr: float = redefault(PretrainConfig, "min_lr", 1e-5)
    warmup_epochs: float = redefault(PretrainConfig, "warmup_epochs", 5.0)
    opt_betas: tuple[float, float] = redefault(PretrainConfig, "opt_betas", (0.9, 0.999))
    save_ckpt_freq: int = redefault(PretrainConfig, "save_ckpt_freq", 50)
    auto_resume: bool = redefault(PretrainConfig, "auto_resume", True)
    print_freq: int = redefault(PretrainConfig, "print_freq", 10)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_min_size > self.crop_max_size:
            raise ConfigError(f"crop_min_size ({self.crop_min_size:g}) exceeds crop_max_size ({self.crop_max_size:g})")
        if not (self.sincos_pos_emb or self.abs_pos_emb):
            raise ConfigError("positions are needed: leave --sincos_pos_emb on, or give --abs_pos_emb")
        is_random = self.mask_generator == "random"
        if is_random != (self.ratio_mask_patches is not None) or (is_random and self.num_mask_patches is not None):
            raise ConfigError(
                "--mask_generator random takes --ratio_mask_patches and nothing else does; block masks take "
                "--num_mask_patches"
            )
        if self.discrete_vae_type == "random_init" and self.discrete_vae_weight_path:
            raise ConfigError(
                "--discrete_vae_weight_path and --discrete_vae_type random_init exclude each other; for the weights of "
                "the file take --discrete_vae_type dall-e"
            )
        if self.discrete_vae_type == "to_tensor" and self.target_mode == "clusterID":
            raise ConfigError(
                "--discrete_vae_type to_tensor has no tokens for --target_mode clusterID; use rgb or random, or a dVAE"
            )
