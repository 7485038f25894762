"""Options of `plsc-mae parity`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from plsc_mae.config.schema import option
from plsc_mae.config.weights import NetworkOptions

BOTH_METHODS = ("mae_vit_base_patch16", "cae_base_patch16_224_8k_vocab")


@dataclass(kw_only=True, frozen=True)
class ParityConfig(NetworkOptions):
    """Options of `parity`, which compares networks layer by layer with an oracle and, if asked, with the original."""

    checkpoint: str = option("", "checkpoint of pre-training whose network and weights are checked", metavar="FILE")
    model: tuple[str, ...] = option(BOTH_METHODS, "pre-training networks to check with random weights", metavar="NAME")
    dialect: str = option(
        "",
        "code base to follow if the model name belongs to both mae_pytorch and mae_priv [mae_pytorch]",
        metavar="NAME",
    )
    random: int | None = option(
        None, "seed of images and, without --checkpoint, of weights [0]", within="[0, inf)", metavar="SEED"
    )
    reference: str = option(
        "",
        "checkout of facebookresearch/mae or Atten4Vis/CAE, or huggingface: also compare with that code",
        metavar="DIR",
    )
    python: str = option(
        "",
        "interpreter for --reference, with torch and transformers or timm [the one running this command]",
        metavar="FILE",
    )
    steps: int = option(3, "optimizer updates to compare", within="[1, 1000]")
    batch_size: int = option(2, "images", within="[1, inf)")
    tolerance: float = option(
        1e-5, "largest difference of a layer, divided by the layer's largest value", within="(0, 1)"
    )
    save_path: str = option(
        "", "report to write: a .json or .md file, or a folder for parity.json and parity.md", metavar="PATH"
    )
    num_heads: int | None = option(
        None, "attention heads of the encoder, if the file does not determine them", within="[1, inf)"
    )
    decoder_num_heads: int | None = option(
        None, "attention heads of the decoder, if the file does not determine them", within="[1, inf)"
    )
    amp: bool = option(False, "run plsc_mae's network in mixed precision, on GPU; needs a larger --tolerance")
    amp_dtype: Literal["auto", "float16", "bfloat16"] = option("auto", "data type of --amp")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", "device of plsc_mae's network")

    def _contradictions(self) -> Iterator[str]:
        if self.checkpoint and self.model != BOTH_METHODS:
            yield "--checkpoint determines the network; leave --model out"
        if self.checkpoint and self.dialect:
            yield "--checkpoint determines the implementation; leave --dialect out"
        for name in ("model_key", "model_prefix"):
            if getattr(self, name) and not self.checkpoint:
                yield f"--{name} chooses the network of a checkpoint; give --checkpoint with it"
        if self.python and not self.reference:
            yield "--python is the interpreter for the code of --reference; give --reference too"
