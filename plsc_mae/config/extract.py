"""Options of `plsc-mae extract` and `plsc_mae.embed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plsc_mae.config.schema import in_group, option
from plsc_mae.config.tools import FeatureConfig, require_options
from plsc_mae.errors import ConfigError

_encoder = in_group("Encoder")
_images = in_group("Images")
_pictures = in_group("Pictures")


@dataclass(kw_only=True, frozen=True)
class EmbedConfig(FeatureConfig):
    """Options of `plsc_mae.embed`: those of `extract` without the file."""

    data_path: str = option("", "image folder (its val/, if there is one) or list file", metavar="PATH")
    split: str = option("val", "subfolder of the image folder to use, if it exists", metavar="NAME")
    layers: tuple[int, ...] = option((-1,), "blocks after which to take tokens; 0: before the first; -1: the last")
    tokens: tuple[Literal["cls", "mean", "patch"], ...] = option(
        ("cls", "mean"), "cls: class token; mean: mean of the patch tokens; patch: all patch tokens"
    )
    norm: bool = _encoder(True, "apply the encoder's final norm to the tokens")
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = _images("bicubic", "filter of the resize")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_options(self, "data_path")


@dataclass(kw_only=True, frozen=True)
class ExtractConfig(EmbedConfig):
    """Options of `extract`."""

    save_path: str = option("", "file to write, .npz, .safetensors or .parquet", metavar="FILE")
    num_pictures: int = _pictures(
        0, "images to draw with their ten nearest neighbors, to SAVE_PATH's name-neighbors.png", within="[0, inf)"
    )
    map: tuple[Literal["pca", "tsne", "umap"], ...] = _pictures(
        (), "maps of the features to draw with thumbnails, to SAVE_PATH's name-METHOD.png"
    )
    map_images: int = _pictures(1000, "largest number of images in a map, evenly spaced", within="[3, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_options(self, "save_path")
        if not self.save_path.endswith((".npz", ".safetensors", ".parquet")):
            raise ConfigError(
                f"--save_path {self.save_path}: expected a file that ends in .npz, .safetensors or .parquet"
            )
        for name in ("num_pictures", "map"):
            if getattr(self, name) and set(self.tokens) == {"patch"}:
                raise ConfigError(f"--{name} needs one vector per image; add cls or mean to --tokens")
