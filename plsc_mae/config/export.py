"""Options of `plsc-mae export`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from plsc_mae.config.features import SIZE_HELP, missing
from plsc_mae.config.inference import TrainedClassifierOptions
from plsc_mae.config.schema import in_group, option
from plsc_mae.config.weights import HeadsOptions

_reconstruction = in_group("Reconstruction")


@dataclass(kw_only=True, frozen=True)
class ExportConfig(TrainedClassifierOptions, HeadsOptions):
    """Options of `export`."""

    target: Literal["inference", "onnx", "paddleseg", "paddledet", "paddleclas", "timm", "huggingface"] | None = option(
        None, "program or library that will use the network"
    )
    model_path: str = option("", "checkpoint of plsc_mae or of another code base", metavar="FILE")
    save_path: str = option("", "folder for the network and the files that show its use", metavar="DIR")
    what: Literal["encoder", "classifier", "reconstruction"] | None = option(
        None, "part to export [the classifier if the checkpoint has one and the target takes it, else the encoder]"
    )
    input_size: tuple[int, ...] | None = option(None, SIZE_HELP, within="[1, inf)")
    mask_ratio: float | None = _reconstruction(
        None, "MAE and others: fraction of hidden patches [the checkpoint's]", within="(0, 1)"
    )
    num_mask_patches: int | None = _reconstruction(
        None, "CAE: number of hidden patches [the checkpoint's]", within="[1, inf)"
    )
    verify: bool = option(True, "load the result in the target and compare its outputs with the network's")
    tolerance: float = option(
        1e-5, "largest difference that verification accepts, relative to the largest output", within="[0, inf)"
    )

    def _contradictions(self) -> Iterator[str]:
        yield from missing(self, "target", "model_path", "save_path")
        for name in ("mask_ratio", "num_mask_patches"):
            if getattr(self, name) is not None and self.what != "reconstruction":
                yield f"--{name} has no effect without --what reconstruction; leave it out"
