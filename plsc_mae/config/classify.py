"""Options of supervised training on a pre-trained encoder: fine-tuning and probing, with a preset per code base.

Names and defaults are those of facebookresearch/mae main_finetune.py and main_linprobe.py, Atten4Vis/CAE and PLSC
task/ssl/cae, BUPT-PRIV/MAE-priv and pengzhiliang/MAE-pytorch; docs/finetune.md has the differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from plsc_mae.config.schema import Retired, option, redefault
from plsc_mae.config.training import (
    DEEPSPEED,
    WANDB,
    EncoderSizeOptions,
    NormOptions,
    TrainingConfig,
    UpdateScheduleOptions,
)
from plsc_mae.errors import ConfigError

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
_RETIRED = {
    **TrainingConfig.retired,
    "resplit": Retired("no implementation acts on it", takes_value=False),
    "clip_norm": Retired("no implementation reads it; --clip_grad clips"),
    "model_ema_force_cpu": Retired("the averaged weights stay on the training device", takes_value=False),
    "imagenet_default_mean_and_std": Retired("ImageNet's statistics are the default", False, granted=True),
}


@dataclass(kw_only=True, frozen=True)
class ClassifierOptions(EncoderSizeOptions):
    """Classifier: its encoder, where that starts from, its head."""

    finetune: str = option("", "checkpoint of pre-training to start from; random weights when not given")
    model_key: str = option("", "key of its weights, as model_ema; several with | between [found by its content]")
    model_prefix: str = option("", "what its names begin with beside the encoder's own")
    nb_classes: int | None = option(None, "classes [those of the data]", within="[1, inf)")
    global_pool: bool = option(True, "classify the mean of the patch tokens; else the class token")
    drop_path: float = option(0.1, "stochastic depth rate of the last block", within="[0, 1)")


@dataclass(kw_only=True, frozen=True)
class EvaluationOptions:
    """Evaluation: which images, how they are shared out."""

    data_set: Literal["IMNET", "image_folder", "CIFAR"] = option(
        "IMNET", "IMNET, image_folder: image folders or list files; CIFAR: its binary version in --data_path"
    )
    eval_data_path: str = option("", "folder or list file of validation images [DATA_PATH/val]")
    eval: bool = option(False, "evaluate the classifier of --resume, or of --finetune, and stop")
    dist_eval: bool = option(
        True, "share the validation images out among the processes; else each of them evaluates them all"
    )
    disable_eval_during_finetuning: bool = option(False, "train without looking at validation images")
    crop_pct: float | None = option(
        None, "input size over the shorter side before the center crop [224/256 up to 224, else 1]", within="(0, 1]"
    )
    imagenet_inception_mean_and_std: bool = option(False, "normalize by 0.5 and 0.5 instead of ImageNet's statistics")


@dataclass(kw_only=True, frozen=True)
class AugmentationOptions:
    """Augmentation of fine-tuning."""

    color_jitter: float | None = option(
        None, "strength of color jitter, where there is no --aa; none when not given", within="[0, inf)"
    )
    aa: str | None = option(RAND_AUGMENT, "RandAugment, as rand-m9-mstd0.5-inc1; --aa none for none")
    train_interpolation: Literal["bicubic", "bilinear", "random"] = option(
        "bicubic", "filter of the crop; random: bilinear or bicubic for each image"
    )
    smoothing: float = option(0.1, "label smoothing", within="[0, 1)")
    reprob: float = option(0.25, "probability of random erasing", within="[0, 1]")
    remode: Literal["pixel", "rand", "const"] = option("pixel", "fill of erased boxes: noise, one color, zeros")
    recount: int = option(1, "most boxes that are erased", within="[1, inf)")
    mixup: float = option(0.0, "alpha of mixup; 0 for none", within="[0, inf)")
    cutmix: float = option(0.0, "alpha of CutMix; 0 for none", within="[0, inf)")
    cutmix_minmax: tuple[float, float] | None = option(
        None, "smallest and largest side of CutMix's boxes, as shares; instead of --cutmix", within="[0, 1]"
    )
    mixup_prob: float = option(1.0, "probability of mixing at all", within="[0, 1]")
    mixup_switch_prob: float = option(0.5, "probability of CutMix where there is mixup too", within="[0, 1]")
    mixup_mode: Literal["batch", "pair", "elem"] = option("batch", "draw once per batch, per pair, or per image")


@dataclass(kw_only=True, frozen=True)
class FinetuneOptions:
    """Fine-tuning: layer-wise learning rates, averaged weights."""

    layer_decay: float = option(0.75, "learning rate of a layer over that of the next", within="(0, 1]")
    model_ema: bool = option(False, "also keep and evaluate a moving average of the weights")
    model_ema_decay: float = option(0.9999, "share of the average that an update keeps", within="[0, 1)")


@dataclass(kw_only=True, frozen=True)
class ProbeOptions:
    """Probe: what is trained on frozen features."""

    linear_type: Literal["standard", "attentive", "attentive_no_parameter"] = option(
        "standard", "batch norm and a linear layer; or behind attention over all tokens, learned or without parameters"
    )
    linear_depth: int = option(1, "attention blocks of the attentive probe", within="[1, inf)")


@dataclass(kw_only=True, frozen=True)
class FrozenFeatureOptions:
    """Frozen features: what need not be computed twice."""

    cache_features: bool = option(
        False, "encode every image once, by the evaluation crop, and train on that: fast, but without augmentation"
    )
    lr_sweep: tuple[float, ...] | None = option(
        None,
        "train a linear layer for each of these rates, in the units of --blr or --lr, in one run",
        within="(0, inf)",
    )


@dataclass(kw_only=True, frozen=True)
class RegularizationOptions:
    """Dropout (Atten4Vis/CAE, BUPT-PRIV/MAE-priv, MAE-pytorch)."""

    drop: float = option(0.0, "dropout rate", within="[0, 1)")
    attn_drop_rate: float = option(0.0, "dropout rate of attention weights", within="[0, 1)")
    init_scale: float = option(0.001, "factor of the fresh head's weights and biases", within="[0, inf)")


@dataclass(kw_only=True, frozen=True)
class CAEClassifierOptions(RegularizationOptions):
    """CAE classifier: positions and layer scale."""

    rel_pos_bias: bool = option(True, "a relative position bias in every block")
    sin_pos_emb: bool = option(True, "fixed sin-cos positions")
    abs_pos_emb: bool = option(False, "learned positions, in place of the sin-cos ones")
    layer_scale_init_value: float = option(
        0.1, "initial layer scale; 1e-5 for large, 0 for none; a checkpoint's own take its place", within="[0, inf)"
    )
    disable_weight_decay_on_rel_pos_bias: bool = option(False, "do not decay the relative position tables")


@dataclass(kw_only=True, frozen=True)
class PipelineOptions:
    """Pipeline: how processes share the blocks of a classifier."""

    pipeline_parallel: int = option(1, "stages of blocks, each in processes of its own", within="[1, inf)")
    micro_batches: int | None = option(
        None, "parts of a batch that follow each other through the pipeline [2 per stage]", within="[1, inf)"
    )


@dataclass(kw_only=True, frozen=True)
class ClassifyConfig(EvaluationOptions, PipelineOptions, ClassifierOptions, TrainingConfig):
    """What fine-tuning and probing share."""

    aliases: ClassVar[dict[str, str]] = {**TrainingConfig.aliases, "use_mean_pooling": "global_pool"}
    negations: ClassVar[dict[str, str]] = {"cls_token": "global_pool", "use_cls": "global_pool"}
    retired: ClassVar[dict[str, Retired]] = _RETIRED

    opt_betas: tuple[float, float] = redefault(TrainingConfig, "opt_betas", (0.9, 0.999))

    @property
    def probe(self) -> str:
        """What is trained on frozen features; "none" when everything is."""
        return "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self, "linear_depth", 1) != 1 and self.probe != "attentive":
            raise ConfigError(
                "--linear_depth counts the blocks of --linear_type attentive, which is not what is trained"
            )
        if self.micro_batches is not None and self.pipeline_parallel == 1:
            raise ConfigError("--micro_batches are parts of a batch in a pipeline; give --pipeline_parallel with it")
        if self.eval and not (self.resume or self.finetune):
            raise ConfigError("--eval needs a classifier to evaluate: --resume FILE")
        if self.eval and self.disable_eval_during_finetuning:
            raise ConfigError("--eval and --disable_eval_during_finetuning exclude each other")


@dataclass(kw_only=True, frozen=True)
class FinetuneConfig(FinetuneOptions, AugmentationOptions, ClassifyConfig):
    """Fine-tuning of all weights."""

    phase: ClassVar[str] = "finetune"

    epochs: int = redefault(TrainingConfig, "epochs", 50)
    warmup_epochs: float = redefault(TrainingConfig, "warmup_epochs", 5.0)
    min_lr: float = redefault(TrainingConfig, "min_lr", 1e-6)

    @property
    def rand_augment(self) -> str | None:
        """The policy of RandAugment, None for none."""
        return self.aa


@dataclass(kw_only=True, frozen=True)
class LinprobeConfig(FrozenFeatureOptions, ProbeOptions, ClassifyConfig):
    """Probing of frozen features."""

    phase: ClassVar[str] = "linprobe"
    retired: ClassVar[dict[str, Retired]] = {
        **_RETIRED,
        "enable_linear_eval": Retired("probing is all that this command does", takes_value=False, granted=True),
    }

    batch_size: int = redefault(TrainingConfig, "batch_size", 512)
    epochs: int = redefault(TrainingConfig, "epochs", 90)
    warmup_epochs: float = redefault(TrainingConfig, "warmup_epochs", 10.0)
    opt: Literal["adamw", "sgd", "lars", "lars_priv"] = redefault(TrainingConfig, "opt", "lars")
    blr: float | None = redefault(TrainingConfig, "blr", 0.1)
    weight_decay: float = redefault(TrainingConfig, "weight_decay", 0.0)
    global_pool: bool = redefault(ClassifierOptions, "global_pool", False)
    drop_path: float = redefault(ClassifierOptions, "drop_path", 0.0)

    @property
    def probe(self) -> str:
        """The kind of probe."""
        return self.linear_type

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cache_features", "lr_sweep"):
            if getattr(self, name) and self.linear_type == "attentive":
                raise ConfigError(
                    f"--{name} needs features that do not change; --linear_type attentive trains the pooling"
                )
        if self.lr_sweep and (self.clip_grad is not None or self.eval):
            other = "--eval" if self.eval else "--clip_grad"
            raise ConfigError(
                f"--lr_sweep and {other} exclude each other: the sweep trains several classifiers at once"
            )
        if self.lr_sweep and (self.blr if self.lr is None else self.lr) == 0:
            raise ConfigError("--lr_sweep multiplies the schedule of --blr or --lr, which is 0")


# ---------------------------------------------------------------------------------------------------- presets


@dataclass(kw_only=True, frozen=True)
class MAEFinetuneConfig(NormOptions, FinetuneConfig):
    """Fine-tuning as facebookresearch/mae does it."""

    method: ClassVar[str] = "mae"
    models: ClassVar[tuple[str, ...]] = ("vit_*_patch1[46]", "maevit_*")

    model: str = redefault(TrainingConfig, "model", "vit_large_patch16")


@dataclass(kw_only=True, frozen=True)
class MAELinprobeConfig(NormOptions, LinprobeConfig):
    """Linear probing as facebookresearch/mae does it."""

    method: ClassVar[str] = "mae"
    models: ClassVar[tuple[str, ...]] = MAEFinetuneConfig.models

    model: str = redefault(TrainingConfig, "model", "vit_large_patch16")


_CAE_NEGATIONS = {
    **ClassifyConfig.negations,
    "disable_rel_pos_bias": "rel_pos_bias",
    "disable_sin_pos_emb": "sin_pos_emb",
}


@dataclass(kw_only=True, frozen=True)
class CAEFinetuneConfig(CAEClassifierOptions, ProbeOptions, UpdateScheduleOptions, FinetuneConfig):
    """Fine-tuning as Atten4Vis/CAE does it; with --enable_linear_eval, probing by its augmentation and optimizers."""

    method: ClassVar[str] = "cae"
    models: ClassVar[tuple[str, ...]] = ("cae_*",)
    negations: ClassVar[dict[str, str]] = _CAE_NEGATIONS
    retired: ClassVar[dict[str, Retired]] = {**_RETIRED, **DEEPSPEED}

    model: str = redefault(TrainingConfig, "model", "cae_base_patch16_224")
    epochs: int = redefault(TrainingConfig, "epochs", 30)
    lr: float | None = redefault(TrainingConfig, "lr", 5e-4)
    blr: float | None = redefault(TrainingConfig, "blr", None)
    layer_decay: float = redefault(FinetuneOptions, "layer_decay", 0.9)
    color_jitter: float | None = redefault(AugmentationOptions, "color_jitter", 0.4)
    save_ckpt_freq: int = redefault(TrainingConfig, "save_ckpt_freq", 5)
    auto_resume: bool = redefault(TrainingConfig, "auto_resume", True)
    enable_linear_eval: bool = option(False, "train a probe of --linear_type on frozen features instead")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linear_type != "standard" and not self.enable_linear_eval:
            raise ConfigError(f"--linear_type {self.linear_type} is for probes; give --enable_linear_eval with it")

    @property
    def probe(self) -> str:
        """The kind of probe, if probing is asked for."""
        return self.linear_type if self.enable_linear_eval else "none"

    @property
    def rand_augment(self) -> str | None:
        """The policy of RandAugment; a probe has none unless another one than the default is given."""
        return None if self.enable_linear_eval and self.aa == RAND_AUGMENT else self.aa


@dataclass(kw_only=True, frozen=True)
class CAELinprobeConfig(CAEClassifierOptions, LinprobeConfig):
    """Linear probing as Atten4Vis/CAE and PLSC do it."""

    method: ClassVar[str] = "cae"
    models: ClassVar[tuple[str, ...]] = CAEFinetuneConfig.models
    negations: ClassVar[dict[str, str]] = _CAE_NEGATIONS

    model: str = redefault(TrainingConfig, "model", "cae_base_patch16_224")
    global_pool: bool = redefault(ClassifierOptions, "global_pool", True)
    save_ckpt_freq: int = redefault(TrainingConfig, "save_ckpt_freq", 50)


_BEIT_RETIRED = {**_RETIRED, **DEEPSPEED, **WANDB}
# Its networks have a class token where one is classified, and else none.
_PRIV_NEGATIONS = {**ClassifyConfig.negations, "use_cls_token": "global_pool"}


@dataclass(kw_only=True, frozen=True)
class MAEPytorchFinetuneConfig(RegularizationOptions, UpdateScheduleOptions, FinetuneConfig):
    """Fine-tuning as pengzhiliang/MAE-pytorch does it: no class token, learning rate per 256 images."""

    method: ClassVar[str] = "mae_pytorch"
    models: ClassVar[tuple[str, ...]] = ("vit_*_patch*_[0-9]*",)
    lr_per_256: ClassVar[bool] = True
    retired: ClassVar[dict[str, Retired]] = _BEIT_RETIRED

    model: str = redefault(TrainingConfig, "model", "vit_base_patch16_224")
    epochs: int = redefault(TrainingConfig, "epochs", 30)
    lr: float | None = redefault(TrainingConfig, "lr", 1e-3)
    blr: float | None = redefault(TrainingConfig, "blr", None)
    color_jitter: float | None = redefault(AugmentationOptions, "color_jitter", 0.4)
    mixup: float = redefault(AugmentationOptions, "mixup", 0.8)
    cutmix: float = redefault(AugmentationOptions, "cutmix", 1.0)
    auto_resume: bool = redefault(TrainingConfig, "auto_resume", True)


@dataclass(kw_only=True, frozen=True)
class MAEPrivFinetuneConfig(MAEPytorchFinetuneConfig):
    """Fine-tuning as BUPT-PRIV/MAE-priv does it: learning rate per 256 images, class token by choice."""

    method: ClassVar[str] = "mae_priv"
    models: ClassVar[tuple[str, ...]] = ()  # its names are MAE-pytorch's too
    negations: ClassVar[dict[str, str]] = _PRIV_NEGATIONS

    global_pool: bool = redefault(ClassifierOptions, "global_pool", False)
    reprob: float = redefault(AugmentationOptions, "reprob", 0.0)


@dataclass(kw_only=True, frozen=True)
class MAEPrivLinprobeConfig(RegularizationOptions, UpdateScheduleOptions, LinprobeConfig):
    """Linear probing as BUPT-PRIV/MAE-priv does it: batch norm in place of the final norm, rate per 256 images."""

    method: ClassVar[str] = "mae_priv"
    models: ClassVar[tuple[str, ...]] = MAEPytorchFinetuneConfig.models
    lr_per_256: ClassVar[bool] = True
    negations: ClassVar[dict[str, str]] = _PRIV_NEGATIONS
    retired: ClassVar[dict[str, Retired]] = {**_BEIT_RETIRED, **LinprobeConfig.retired}

    model: str = redefault(TrainingConfig, "model", "vit_base_patch16_224")
    batch_size: int = redefault(TrainingConfig, "batch_size", 2048)
    lr: float | None = redefault(TrainingConfig, "lr", 0.1)
    blr: float | None = redefault(TrainingConfig, "blr", None)
    min_lr: float = redefault(TrainingConfig, "min_lr", 1e-6)
    opt: Literal["adamw", "sgd", "lars", "lars_priv"] = redefault(TrainingConfig, "opt", "sgd")
    auto_resume: bool = redefault(TrainingConfig, "auto_resume", True)
