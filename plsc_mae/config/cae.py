"""Options of the context autoencoder (Chen et al. 2022): pre-training, fine-tuning and probing.

Sources: Atten4Vis/CAE tools/run_pretraining.py and run_class_finetuning.py, PLSC task/ssl/cae. Where the two disagree
on a default, ours is the one that takes effect in Atten4Vis/CAE; docs/reference/cae.md lists the differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from plsc_mae.config.classify import (
    LARS_PROBE,
    RAND_AUGMENT,
    FinetuneConfig,
    LinprobeConfig,
    ProbeOptions,
    RegularizationOptions,
)
from plsc_mae.config.schema import Retired, in_group
from plsc_mae.config.training import DEEPSPEED, PretrainConfig, UpdateScheduleOptions

_CAE_V2 = "it belongs to CAE v2, which plsc_mae does not have"
_NO_BIAS_TABLE = "the pre-training network has no relative position bias; fine-tuning may"

_masks = in_group("CAE masks")
_views = in_group("CAE views: one crop at two sizes, for the network and for the tokenizer")
_targets = in_group("CAE targets and losses")
_network = in_group("CAE network")
_classifier = in_group("CAE classifier")
_probe = in_group("Probe")


@dataclass(kw_only=True, frozen=True)
class CAEConfig(UpdateScheduleOptions, PretrainConfig):
    """Pre-training of Atten4Vis/CAE and PLSC."""

    method: ClassVar[str] = "cae"
    models: ClassVar[tuple[str, ...]] = ("cae_*",)
    frequent: ClassVar[tuple[str, ...]] = (
        *PretrainConfig.frequent,
        "num_mask_patches",
        "discrete_vae_weight_path",
        "target_mode",
    )
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
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "cae_base_patch16_224_8k_vocab",
        "epochs": 300,
        "lr": 5e-4,
        "blr": None,
        "min_lr": 1e-5,
        "warmup_epochs": 5.0,
        "opt_betas": (0.9, 0.999),
        "save_ckpt_freq": 50,
        "auto_resume": True,
        "print_freq": 10,
    }

    mask_generator: Literal["block", "random"] = _masks(
        "block", "block: hide rectangles as BEiT does; random: hide single patches"
    )
    num_mask_patches: int | None = _masks(
        None, "exact number of patches hidden by the block generator [98]", within="[1, inf)"
    )
    min_mask_patches_per_block: int = _masks(16, "smallest rectangle, in patches", within="[1, inf)")
    max_mask_patches_per_block: int | None = _masks(
        None, "largest rectangle, in patches [--num_mask_patches]", within="[1, inf)"
    )
    ratio_mask_patches: float | None = _masks(
        None, "fraction of patches hidden by the random generator, which requires it", within="(0, 1)"
    )

    second_input_size: tuple[int, ...] | None = _views(
        None, "side of the tokenizer's view in pixels, 8 pixels per patch [112 at 224]", within="[8, inf)"
    )
    crop_min_size: float = _views(0.08, "smallest fraction of the image area in a crop", within="(0, 1]")
    crop_max_size: float = _views(1.0, "largest fraction of the image area in a crop", within="(0, 1]")
    train_interpolation: Literal["bicubic", "bilinear", "random"] = _views(
        "bicubic", "filter of the network's view; random: bilinear or bicubic for each image"
    )
    second_interpolation: Literal["lanczos", "bicubic", "bilinear"] = _views(
        "lanczos", "filter of the tokenizer's view"
    )
    color_jitter: float = _views(0.0, "strength of brightness, contrast and saturation jitter", within="[0, inf)")
    imagenet_default_mean_and_std: bool = _views(
        False, "normalize the network's view by ImageNet's mean and std, else by 0.5 and 0.5"
    )

    target_mode: Literal["clusterID", "rgb", "random"] = _targets(
        "clusterID", "clusterID: tokens of the dVAE; rgb: pixels; random: the index of the nearest random vector"
    )
    discrete_vae_type: Literal["dall-e", "random_init", "to_tensor"] = _targets(
        "dall-e",
        "tokenizer; random_init: frozen random weights, for trials; to_tensor: no tokenizer, for pixel targets",
    )
    discrete_vae_weight_path: str | None = _targets(None, "folder or file of the DALL-E dVAE's weights", metavar="PATH")
    discrete_vae_seed: int = _targets(0, "seed of random_init weights and of random vectors", within="[0, inf)")
    discrete_vae_hidden: int = _targets(256, "width n_hid of the random_init dVAE", within="[4, inf)")
    discrete_vae_dtype: Literal["auto", "float16", "float32"] = _targets(
        "auto", "arithmetic of the tokenizer; auto: float16 on GPU like the original, float32 on CPU"
    )
    target_path: str | None = _targets(
        None, "file of the random vectors of --target_mode random, an array pixels x classes [drawn]", metavar="FILE"
    )
    normalized_pixel: Literal["layernorm", "none", "patch", "channel"] = _targets(
        "layernorm",
        "normalization of pixel targets: layernorm: per patch with biased variance; patch: with unbiased variance; "
        "channel: per channel",
    )
    denorm: bool = _targets(False, "take pixel targets from the image in [0, 1] instead of the normalized image")
    dual_loss_weight: float = _targets(2.0, "weight of the alignment loss", within="[0, inf)", metavar="WEIGHT")
    dual_loss_type: Literal["mse", "kld"] = _targets("mse", "alignment loss: squared error, or KL of softmaxes")
    dual_path_ema: float = _targets(
        0.0,
        "decay of the encoder's moving average, which computes the alignment target; 0: the encoder itself does",
        within="[0, 1)",
        metavar="DECAY",
    )

    model_type: Literal["cae"] = _network("cae", "generation of CAE")
    drop_path: float = _network(
        0.0, "stochastic depth rate of the last block of each stack", within="[0, 1)", metavar="RATE"
    )
    layer_scale_init_value: float = _network(
        0.1, "initial layer scale of the encoder; 1e-5 for large; 0: no layer scale", within="[0, inf)", metavar="SCALE"
    )
    sincos_pos_emb: bool = _network(True, "fixed sin-cos positions")
    abs_pos_emb: bool = _network(False, "learned positions, which replace the sin-cos positions")
    regressor_depth: int = _network(4, "regressor blocks", within="[1, inf)")
    num_decoder_self_attention: int = _network(4, "decoder blocks", within="[0, inf)")
    decoder_embed_dim: int = _network(768, "width of regressor and decoder", within="[1, inf)")
    decoder_num_heads: int = _network(12, "attention heads of regressor and decoder", within="[1, inf)")
    decoder_num_classes: int | None = _network(
        None, "size of the prediction [the tokenizer's vocabulary, 8192; pixels of a patch for rgb]", within="[2, inf)"
    )
    decoder_layer_scale_init_value: float = _network(
        0.1, "initial layer scale of regressor and decoder", within="[0, inf)", metavar="SCALE"
    )
    rescale_init: bool = _network(
        False, "normal initialization with rescaled residual branches, instead of xavier-uniform"
    )

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.crop_min_size > self.crop_max_size:
            yield f"crop_min_size ({self.crop_min_size:g}) exceeds crop_max_size ({self.crop_max_size:g})"
        if not (self.sincos_pos_emb or self.abs_pos_emb):
            yield "positions are needed: leave --sincos_pos_emb on, or give --abs_pos_emb"
        is_random = self.mask_generator == "random"
        if is_random != (self.ratio_mask_patches is not None) or (is_random and self.num_mask_patches is not None):
            yield (
                "--ratio_mask_patches belongs to --mask_generator random, which requires it, and --num_mask_patches to "
                f"--mask_generator block; this run has --mask_generator {self.mask_generator}, --ratio_mask_patches "
                f"{self.ratio_mask_patches} and --num_mask_patches {self.num_mask_patches}"
            )
        if self.discrete_vae_type == "random_init" and self.discrete_vae_weight_path:
            yield (
                "--discrete_vae_weight_path and --discrete_vae_type random_init cannot be combined; "
                "--discrete_vae_type dall-e takes the weights of the file"
            )
        if self.discrete_vae_type == "to_tensor" and self.target_mode == "clusterID":
            yield (
                "--discrete_vae_type to_tensor has no tokens for --target_mode clusterID; use rgb or random, or a dVAE"
            )


@dataclass(kw_only=True, frozen=True)
class CAEClassifierOptions(RegularizationOptions):
    """Options of a classifier on CAE's encoder."""

    rel_pos_bias: bool = _classifier(True, "relative position bias in every block")
    sin_pos_emb: bool = _classifier(True, "fixed sin-cos positions")
    abs_pos_emb: bool = _classifier(False, "learned positions, which replace the sin-cos positions")
    layer_scale_init_value: float = _classifier(
        0.1,
        "initial layer scale; 1e-5 for large; 0: no layer scale; values of a checkpoint take precedence",
        within="[0, inf)",
        metavar="SCALE",
    )
    disable_weight_decay_on_rel_pos_bias: bool = _classifier(False, "do not decay the relative position tables")


_NEGATIONS = {
    **FinetuneConfig.negations,
    "disable_rel_pos_bias": "rel_pos_bias",
    "disable_sin_pos_emb": "sin_pos_emb",
}


@dataclass(kw_only=True, frozen=True)
class CAEFinetuneConfig(CAEClassifierOptions, UpdateScheduleOptions, ProbeOptions, FinetuneConfig):
    """Fine-tuning of Atten4Vis/CAE or, with --enable_linear_eval, probing."""

    method: ClassVar[str] = "cae"
    models: ClassVar[tuple[str, ...]] = ("cae_*",)
    negations: ClassVar[dict[str, str]] = _NEGATIONS
    retired: ClassVar[dict[str, Retired]] = {**FinetuneConfig.retired, **DEEPSPEED}
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "cae_base_patch16_224",
        "epochs": 30,
        "warmup_epochs": 5.0,
        "lr": 5e-4,
        "blr": None,
        "min_lr": 1e-6,
        "opt_betas": (0.9, 0.999),
        "layer_decay": 0.9,
        "color_jitter": 0.4,
        "save_ckpt_freq": 5,
        "auto_resume": True,
    }

    enable_linear_eval: bool = _probe(False, "train a probe of --linear_type on frozen features instead")

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.linear_type != "standard" and not self.enable_linear_eval:
            yield f"--linear_type {self.linear_type} is for probes; give --enable_linear_eval too"

    @property
    def probe(self) -> str:
        """Kind of probe; "none" without --enable_linear_eval."""
        return self.linear_type if self.enable_linear_eval else "none"

    @property
    def rand_augment(self) -> str | None:
        """Policy of RandAugment, None for no RandAugment; a probe uses it only if --aa differs from the default."""
        return None if self.enable_linear_eval and self.aa == RAND_AUGMENT else self.aa

    @property
    def decay_relative_positions(self) -> bool:
        """True unless --disable_weight_decay_on_rel_pos_bias exempts the relative position tables from weight decay."""
        return not self.disable_weight_decay_on_rel_pos_bias


@dataclass(kw_only=True, frozen=True)
class CAELinprobeConfig(CAEClassifierOptions, LinprobeConfig):
    """Linear probing of Atten4Vis/CAE and PLSC."""

    method: ClassVar[str] = "cae"
    models: ClassVar[tuple[str, ...]] = CAEFinetuneConfig.models
    negations: ClassVar[dict[str, str]] = _NEGATIONS
    defaults: ClassVar[Mapping[str, Any]] = {**LARS_PROBE, "model": "cae_base_patch16_224", "save_ckpt_freq": 50}


CONFIGS = (CAEConfig, CAEFinetuneConfig, CAELinprobeConfig)
