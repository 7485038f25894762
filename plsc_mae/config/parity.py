"""Options of `plsc-mae parity`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plsc_mae.config.schema import option
from plsc_mae.errors import ConfigError

BOTH_METHODS = ("mae_vit_base_patch16", "cae_base_patch16_224_8k_vocab")


@dataclass(kw_only=True, frozen=True)
class ParityConfig:
    """Parity: compare a network with an oracle and with the originals' code, layer by layer."""

    checkpoint: str = option("", "file of pre-training whose network is checked with its weights")
    model: tuple[str, ...] = option(BOTH_METHODS, "networks of pre-training to check with random weights")
    dialect: str = option("", "implementation that is meant by a name which several have: mae_pytorch [this], mae_priv")
    random: int | None = option(
        None, "seed of weights and images [0]; a checkpoint keeps its weights", within="[0, inf)"
    )
    reference: str = option(
        "", "checkout of facebookresearch/mae or Atten4Vis/CAE, or huggingface: also compare with that code"
    )
    python: str = option("", "interpreter that has torch, and transformers or timm, for --reference [this one]")
    steps: int = option(3, "optimizer updates to compare", within="[1, 1000]")
    batch_size: int = option(2, "images", within="[1, inf)")
    tolerance: float = option(1e-5, "largest difference of a layer, relative to its largest value", within="(0, 1)")
    save_path: str = option("", "report to write: a .json or .md file, or a folder for parity.json and parity.md")
    num_heads: int | None = option(None, "encoder heads of a foreign file of unpublished width", within="[1, inf)")
    decoder_num_heads: int | None = option(None, "its decoder heads", within="[1, inf)")
    amp: bool = option(False, "run our network in mixed precision, on GPU; needs a larger --tolerance")
    amp_dtype: Literal["auto", "float16", "bfloat16"] = option("auto", "arithmetic of --amp")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", "where our network computes")

    def __post_init__(self) -> None:
        if self.checkpoint and self.model != BOTH_METHODS:
            raise ConfigError("--checkpoint tells its network itself; leave --model out")
        if self.checkpoint and self.dialect:
            raise ConfigError("--checkpoint tells its implementation itself; leave --dialect out")
        if self.python and not self.reference:
            raise ConfigError("--python is for the code that --reference names; name that, too")
