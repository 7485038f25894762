"""Options of the commands that do not train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plsc_mae.config.schema import option
from plsc_mae.errors import ConfigError


@dataclass(kw_only=True, frozen=True)
class ReconstructConfig:
    """Reconstruct: redraw what a mask hides, with a pre-trained model."""

    model_path: str = option("", "checkpoint with encoder and decoder")
    img_path: str = option("", "an image, or a folder of images")
    save_path: str = option("./reconstruction", "folder for one PNG panel per image")
    input_size: tuple[int, ...] | None = option(None, "image side, or height and width [the checkpoint's]")
    mask_ratio: float | None = option(None, "MAE: share of hidden patches [the checkpoint's]", within="(0, 1)")
    num_mask_patches: int | None = option(
        None, "CAE: patches hidden by block masks [the checkpoint's]", within="[1, inf)"
    )
    second_input_size: tuple[int, ...] | None = option(None, "CAE: side of the tokenizer's view [the checkpoint's]")
    discrete_vae_weight_path: str | None = option(
        None, "CAE: folder or file of the DALL-E dVAE's weights [the checkpoint's]"
    )
    num_heads: int | None = option(None, "encoder heads of a foreign file of unpublished width", within="[1, inf)")
    decoder_num_heads: int | None = option(None, "its decoder heads", within="[1, inf)")
    norm_pix_loss: bool | None = option(None, "MAE: whether targets were normalized [the checkpoint's]")
    patch_stats: Literal["original", "visible"] | None = option(
        None, "norm-pix MAE: mean and std of hidden patches from the original [this], or from visible neighbours"
    )
    max_images: int = option(64, "most images taken from a folder", within="[1, inf)")
    seed: int = option(0, "seed of the masks", within="[0, inf)")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", "where to compute")

    def __post_init__(self) -> None:
        for name in ("model_path", "img_path"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is required")


@dataclass(kw_only=True, frozen=True)
class DemoDataConfig:
    """Demo data: a small labelled JPEG folder whose classes are shapes."""

    path: str = option("", "folder to make")
    image_size: int = option(64, "image side in pixels", within="[16, 1024]")
    train_per_class: int = option(400, "training images per class", within="[1, inf)")
    val_per_class: int = option(80, "validation images per class", within="[1, inf)")
    seed: int = option(0, "seed of the drawings", within="[0, inf)")

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("name the folder to make: plsc-mae demo-data DIR")


@dataclass(kw_only=True, frozen=True)
class RandomTokenizerConfig:
    """Random tokenizer: a dVAE of random weights, whose tokens mean nothing."""

    path: str = option("", "folder to write encoder_weight.pd and decoder_weight.pd to")
    seed: int = option(0, "seed of the weights", within="[0, inf)")
    n_hid: int = option(256, "width of the first group of blocks, a multiple of 4", within="[4, inf)")
    vocab_size: int = option(8192, "number of tokens", within="[2, inf)")

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("name the folder to write to: plsc-mae random-tokenizer DIR")
        if self.n_hid % 4:
            raise ConfigError(f"--n_hid must be a multiple of 4, got {self.n_hid}")


@dataclass(kw_only=True, frozen=True)
class DoctorConfig:
    """Doctor: what this machine and installation are, and what is amiss."""


@dataclass(kw_only=True, frozen=True)
class PlotConfig:
    """Plot: curves of a run."""

    run_dir: str = option("", "output folder of the run")
    metrics: tuple[str, ...] = option(("loss",), "names in train.jsonl to draw, in one picture")
    save_path: str | None = option(None, "PNG file to write [RUN_DIR/METRIC.png, by the first one's name]")

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise ConfigError("name the run's output folder: plsc-mae plot RUN_DIR")
