"""Options of `demo-data` and `random-tokenizer`, which write inputs to try the commands with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plsc_mae.config.schema import option
from plsc_mae.errors import ConfigError


@dataclass(kw_only=True, frozen=True)
class DemoDataConfig:
    """Options of `demo-data`, which draws a small labeled JPEG folder."""

    path: str = option("", "folder to write to", metavar="DIR")
    image_size: int = option(64, "image side in pixels", within="[16, 1024]")
    train_per_class: int = option(400, "training images per class", within="[1, inf)")
    val_per_class: int = option(80, "validation images per class", within="[1, inf)")
    seed: int = option(0, "seed of the drawings", within="[0, inf)")
    kind: Literal["shapes", "objects"] = option(
        "shapes", "shapes: to measure features; objects: to look at reconstructions"
    )
    masks: bool = option(False, "also draw masks for `segprobe`; images are then below DIR/images, masks DIR/masks")

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("name the folder to write to: plsc-mae demo-data DIR")


@dataclass(kw_only=True, frozen=True)
class RandomTokenizerConfig:
    """Options of `random-tokenizer`, which writes a dVAE with random weights."""

    path: str = option("", "folder to write encoder_weight.pd and decoder_weight.pd to", metavar="DIR")
    seed: int = option(0, "seed of the weights", within="[0, inf)")
    n_hid: int = option(256, "width of the first group of blocks, a multiple of 4", within="[4, inf)")
    vocab_size: int = option(8192, "number of tokens", within="[2, inf)")

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("name the folder to write to: plsc-mae random-tokenizer DIR")
        if self.n_hid % 4:
            raise ConfigError(f"--n_hid must be a multiple of 4, got {self.n_hid}")
