"""Options of SimMIM with a ViT (Xie et al. 2022; microsoft/SimMIM): pre-training, fine-tuning and probing.

Defaults of pre-training and fine-tuning are those of the original's configs/vit_base__800ep, which states learning
rates per 512 images. Here `blr` is per 256 images; `warmup_lr` and `min_lr` are absolute, with the values that result
for the original's 2048 images per update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from plsc_mae.config.classify import LARS_PROBE, FinetuneConfig, LinprobeConfig
from plsc_mae.config.schema import Retired, in_group
from plsc_mae.config.training import PretrainConfig, TrainingConfig

_simmim = in_group("SimMIM")
_optimization = in_group("Optimization")


@dataclass(kw_only=True, frozen=True)
class WarmupRateOptions(TrainingConfig):
    """Option of the learning rate from which the warm-up starts."""

    warmup_lr: float = _optimization(
        1e-6, "learning rate at the start of the warm-up", within="[0, inf)", metavar="RATE"
    )

    @property
    def first_rate(self) -> float:
        """Learning rate at the start of the warm-up."""
        return self.warmup_lr


def _without_warmup_lr(retired: Mapping[str, Retired]) -> dict[str, Retired]:
    return {flag: reason for flag, reason in retired.items() if flag != "warmup_lr"}


@dataclass(kw_only=True, frozen=True)
class LayerScaleOptions:
    """Option of the layer scale of a SimMIM encoder."""

    layer_scale_init_value: float = _simmim(
        0.1,
        "initial layer scale; 0: no layer scale; values of a checkpoint take precedence",
        within="[0, inf)",
        metavar="SCALE",
    )


@dataclass(kw_only=True, frozen=True)
class SimMIMConfig(LayerScaleOptions, WarmupRateOptions, PretrainConfig):
    """Pre-training of microsoft/SimMIM with a ViT (main_simmim.py)."""

    method: ClassVar[str] = "simmim"
    models: ClassVar[tuple[str, ...]] = ("pretrain_simmim_*",)
    frequent: ClassVar[tuple[str, ...]] = (*PretrainConfig.frequent, "mask_ratio", "mask_patch_size")
    retired: ClassVar[dict[str, Retired]] = _without_warmup_lr(PretrainConfig.retired)
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "pretrain_simmim_base_patch16_224",
        "batch_size": 128,
        "epochs": 800,
        "warmup_epochs": 10.0,
        "blr": 5e-5,
        "warmup_lr": 2e-6,
        "min_lr": 2e-5,
        "opt_betas": (0.9, 0.999),
        "clip_grad": 5.0,
        "save_ckpt_freq": 5,
        "auto_resume": True,
    }

    mask_ratio: float = _simmim(
        0.6, "fraction of mask cells that are hidden; their number is rounded up", within="(0, 1)"
    )
    mask_patch_size: int = _simmim(
        32,
        "side of a mask cell in pixels, a multiple of the patch side; a cell is hidden as a whole",
        within="[1, inf)",
    )
    crop_scale: tuple[float, float] = _simmim(
        (0.67, 1.0), "smallest and largest fraction of the image area in a crop", within="(0, 1]"
    )
    drop_path: float = _simmim(0.1, "stochastic depth rate of the last block", within="[0, 1)", metavar="RATE")
    lr_scheduler: Literal["multistep", "cosine"] = _optimization(
        "multistep",
        "learning rate after the warm-up; multistep: constant with drops; cosine: half a cosine to --min_lr",
    )
    multisteps: tuple[int, ...] | None = _optimization(
        None, "epochs at which multistep drops the learning rate [7/8 of the run]", within="[1, inf)", metavar="EPOCH"
    )
    lr_gamma: float = _optimization(
        0.1, "factor of the learning rate at each drop of multistep", within="(0, 1]", metavar="FACTOR"
    )

    @property
    def mask_cell(self) -> int:
        """Side in pixels of the cells that a mask hides as a whole."""
        return self.mask_patch_size

    @property
    def drop_epochs(self) -> tuple[int, ...]:
        """Epochs at which multistep drops the learning rate."""
        return (self.epochs * 7 // 8,) if self.multisteps is None else self.multisteps

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.multisteps is None:
            return
        if self.lr_scheduler != "multistep":
            yield f"--multisteps has no effect with --lr_scheduler {self.lr_scheduler}; leave one out"
        if list(self.multisteps) != sorted(set(self.multisteps)):
            yield f"--multisteps {' '.join(map(str, self.multisteps))} must rise from epoch to epoch"


@dataclass(kw_only=True, frozen=True)
class SimMIMFinetuneConfig(LayerScaleOptions, WarmupRateOptions, FinetuneConfig):
    """Fine-tuning of microsoft/SimMIM with a ViT (main_finetune.py)."""

    method: ClassVar[str] = "simmim"
    models: ClassVar[tuple[str, ...]] = ("simmim_*",)
    retired: ClassVar[dict[str, Retired]] = _without_warmup_lr(FinetuneConfig.retired)
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "simmim_base_patch16_224",
        "batch_size": 128,
        "epochs": 100,
        "warmup_epochs": 20.0,
        "blr": 6.25e-4,
        "min_lr": 1e-6,
        "opt_betas": (0.9, 0.999),
        "clip_grad": 5.0,
        "layer_decay": 0.65,
        "mixup": 0.8,
        "cutmix": 1.0,
        "auto_resume": True,
    }


@dataclass(kw_only=True, frozen=True)
class SimMIMLinprobeConfig(LayerScaleOptions, LinprobeConfig):
    """Linear probing of a SimMIM encoder with the optimizer of MAE, as the original publishes no code for it."""

    method: ClassVar[str] = "simmim"
    models: ClassVar[tuple[str, ...]] = SimMIMFinetuneConfig.models
    defaults: ClassVar[Mapping[str, Any]] = {**LARS_PROBE, "model": "simmim_base_patch16_224"}


CONFIGS = (SimMIMConfig, SimMIMFinetuneConfig, SimMIMLinprobeConfig)
