"""Options of the commands that apply a trained network to images: `reconstruct`, `explain` and `predict`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from plsc_mae.config.features import (
    DEVICE_HELP,
    HEADS_HELP,
    IMAGES_HELP,
    SIZE_HELP,
    WORKERS_HELP,
    EncoderConfig,
    missing,
)
from plsc_mae.config.pixels import PICTURE_BANDS, PixelOptions
from plsc_mae.config.schema import in_group, option
from plsc_mae.config.weights import NetworkOptions

_classifier = in_group("Trained classifier")


@dataclass(kw_only=True, frozen=True)
class ReconstructConfig(PixelOptions, NetworkOptions):
    """Options of `reconstruct`, which accepts a config file of pre-training too, as MAE-priv's tool does."""

    training_file: ClassVar[str] = "pretrain"
    aliases: ClassVar[dict[str, str]] = {"normlize_target": "norm_pix_loss"}

    model_path: str = option("", "checkpoint with encoder and decoder", metavar="FILE")
    other_models: tuple[str, ...] = option(
        (),
        "further checkpoints of the same method, such as those of other epochs: the panels compare their predictions "
        "of the same hidden patches",
        metavar="FILE",
    )
    img_path: str = option("", IMAGES_HELP, metavar="PATH")
    save_path: str = option("./reconstruction", "folder for one PNG panel per image", metavar="DIR")
    input_size: tuple[int, ...] | None = option(None, SIZE_HELP, within="[1, inf)")
    mask_ratio: float | None = option(
        None, "MAE and others: fraction of hidden patches [the checkpoint's]", within="(0, 1)"
    )
    num_mask_patches: int | None = option(
        None, "CAE: patches hidden by block masks [the checkpoint's]", within="[1, inf)"
    )
    second_input_size: tuple[int, ...] | None = option(
        None, "CAE: side of the tokenizer's view [the checkpoint's]", within="[1, inf)"
    )
    discrete_vae_weight_path: str | None = option(
        None, "CAE: folder or file of the DALL-E dVAE's weights [the checkpoint's]", metavar="PATH"
    )
    num_heads: int | None = option(None, HEADS_HELP, within="[1, inf)")
    decoder_num_heads: int | None = option(
        None, "attention heads of the decoder, if the file does not determine them", within="[1, inf)"
    )
    norm_pix_loss: bool | None = option(None, "MAE: training used normalized targets [the checkpoint's]")
    patch_stats: Literal["original", "visible"] | None = option(
        None,
        "MAE with norm_pix_loss: take mean and std of hidden patches from the original image, or from visible "
        "neighbors [original]",
    )
    picture_bands: tuple[int, ...] | None = option(None, PICTURE_BANDS, within="[1, inf)", metavar="BAND")
    max_images: int = option(64, "largest number of images to draw from a folder", within="[1, inf)")
    seed: int = option(0, "seed of the masks", within="[0, inf)")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", DEVICE_HELP)

    def _contradictions(self) -> Iterator[str]:
        yield from missing(self, "model_path", "img_path")


@dataclass(kw_only=True, frozen=True)
class TrainedClassifierOptions(NetworkOptions):
    """Options of a trained classifier."""

    classes: str = _classifier(
        "", "text file with one class name per line [the checkpoint's names, or numbers]", metavar="FILE"
    )
    global_pool: bool | None = _classifier(
        None, "classify the mean of the patch tokens; else the class token [as in the checkpoint]"
    )


@dataclass(kw_only=True, frozen=True)
class ExplainConfig(TrainedClassifierOptions, EncoderConfig):
    """Options of `explain`, which accepts a config file of fine-tuning too, as MAE-priv's tool does."""

    training_file: ClassVar[str] = "finetune"
    aliases: ClassVar[dict[str, str]] = {"finetune": "model_path", "image_path": "img_path"}

    img_path: str = option("", IMAGES_HELP, metavar="PATH")
    save_path: str = option("./attention", "folder for one PNG panel per image", metavar="DIR")
    category_index: str = option(
        "",
        "also draw the evidence for a class: its number or name, or 'predicted'; needs a trained classifier",
        metavar="CLASS",
    )
    head_fusion: tuple[Literal["mean", "max", "min"], ...] = option(
        ("max",), "reductions of a layer's heads to one map; one rollout is drawn for each"
    )
    discard_ratio: float = option(
        0.9,
        "fraction of each layer's attention weights, the smallest ones, to set to 0",
        within="[0, 1)",
        metavar="RATIO",
    )
    layer_index: int | None = option(None, "single layer to roll out, from 0; -1 is the last [all layers]")
    pool: Literal["cls", "mean"] | None = option(
        None,
        "attention of the class token, or mean over the patch tokens [the classifier's pooling with "
        "--category_index, else cls]",
    )
    heads: bool = option(False, "also draw every head of the last layer")
    picture_bands: tuple[int, ...] | None = option(None, PICTURE_BANDS, within="[1, inf)", metavar="BAND")
    literal: bool = option(False, "reproduce MAE-priv's numbers, which divide columns by the sums of rows")
    max_images: int = option(64, "largest number of images to draw from a folder", within="[1, inf)")

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        yield from missing(self, "img_path")
        if self.category_index and self.random_weights:
            yield "--category_index needs a trained classifier; leave --random_weights out"
        for name in ("classes", "global_pool"):
            if not self.category_index and getattr(self, name) not in ("", None):
                yield f"--{name} has no effect without --category_index: attention alone needs no classes"


@dataclass(kw_only=True, frozen=True)
class PredictConfig(PixelOptions, TrainedClassifierOptions):
    """Options of `predict`."""

    model_path: str = option("", "checkpoint of fine-tuning or probing", metavar="FILE")
    img_path: str = option("", IMAGES_HELP, metavar="PATH")
    topk: int = option(5, "number of most probable classes to show", within="[1, inf)")
    save_path: str = option(
        "", "also write the classes to this file: .jsonl (a line per image), .json (a list) or .csv", metavar="FILE"
    )
    input_size: tuple[int, ...] | None = option(None, SIZE_HELP, within="[1, inf)")
    num_heads: int | None = option(None, HEADS_HELP, within="[1, inf)")
    batch_size: int = option(64, "images per process and batch", within="[1, inf)")
    num_workers: int | None = option(None, WORKERS_HELP, within="[0, inf)")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", DEVICE_HELP)

    def _contradictions(self) -> Iterator[str]:
        yield from missing(self, "model_path", "img_path")
        if self.save_path and not self.save_path.endswith((".jsonl", ".json", ".csv")):
            yield f"--save_path {self.save_path}: expected a file that ends in .jsonl, .json or .csv"
