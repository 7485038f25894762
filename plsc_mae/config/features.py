"""Options of the commands that compute features of an encoder: `knn`, `fewshot`, `compare`, `segprobe`, `extract`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from plsc_mae.config.pixels import PICTURE_BANDS, PixelOptions
from plsc_mae.config.schema import in_group, option
from plsc_mae.config.weights import NetworkOptions

_encoder = in_group("Encoder")
_images = in_group("Images")
_pictures = in_group("Pictures")
_few = in_group("Few labels")
# Help texts of options that other commands have too.
DEVICE_HELP = "device; auto: a GPU if there is one"
SIZE_HELP = "image side in pixels, or height and width [the checkpoint's]"
HEADS_HELP = "attention heads of the encoder, if the file does not determine them"
WORKERS_HELP = "loader processes per process [up to 10, limited by the CPU cores]"
IMAGES_HELP = "an image, a folder or archive of images (its val/, if there is one), or a list file"


@dataclass(kw_only=True, frozen=True)
class EncoderConfig(PixelOptions, NetworkOptions):
    """Options of an encoder and of its images."""

    model_path: str = _encoder("", "checkpoint of pre-training", metavar="FILE")
    input_size: tuple[int, ...] | None = _encoder(None, SIZE_HELP, within="[1, inf)")
    num_heads: int | None = _encoder(None, HEADS_HELP, within="[1, inf)")
    random_weights: bool = _encoder(False, "use random weights in a network of the checkpoint's sizes, as a baseline")
    seed: int = _encoder(0, "seed of the random weights", within="[0, inf)")
    device: Literal["auto", "cpu", "gpu", "cuda"] = _encoder("auto", DEVICE_HELP)

    def _contradictions(self) -> Iterator[str]:
        yield from missing(self, "model_path")


@dataclass(kw_only=True, frozen=True)
class BatchConfig(PixelOptions):
    """Options of reading, resizing and batching images."""

    interpolation: Literal["bilinear", "bicubic", "lanczos"] = _images("bilinear", "filter of the resize")
    batch_size: int = _images(64, "images per process and batch", within="[1, inf)")
    num_workers: int | None = _images(None, WORKERS_HELP, within="[0, inf)")


@dataclass(kw_only=True, frozen=True)
class ViewConfig(BatchConfig):
    """Options of resizing, cropping and batching images."""

    crop_pct: float = _images(
        0.875,
        "resize the shorter side to input size / crop_pct before the center crop: 224 / 0.875 = 256",
        within="(0, 1]",
    )


@dataclass(kw_only=True, frozen=True)
class FeatureConfig(ViewConfig, EncoderConfig):
    """Options that `knn`, `fewshot`, `extract` and `plsc_mae.embed` share."""

    data_path: str = option("", "image folder or list file", metavar="PATH")
    norm: bool = _encoder(False, "apply the encoder's final norm to the tokens")
    dtype: Literal["float32", "float16"] = option(
        "float32", "type of the stored features; float16 takes half the memory and disk"
    )


@dataclass(kw_only=True, frozen=True)
class KNNConfig(FeatureConfig):
    """Options of `knn`, which accepts a config file of fine-tuning too, as MAE-priv's tool does."""

    training_file: ClassVar[str] = "finetune"
    aliases: ClassVar[dict[str, str]] = {"finetune": "model_path"}

    data_path: str = option(
        "", "folder with train/ (the bank) and val/ (the queries), or a list file of the bank", metavar="PATH"
    )
    eval_data_path: str = option("", "folder or list file of the queries [DATA_PATH/val]", metavar="PATH")
    nb_knn: tuple[int, ...] | None = option(
        None, "numbers of neighbors [those of 10 20 100 200 that the bank has]", within="[1, inf)"
    )
    temperature: float = option(0.07, "temperature T of the votes exp(cosine / T)", within="(0, inf)")
    pool: Literal["mean", "cls"] | None = option(None, "mean of the patch tokens, or class token [mean]")
    use_cls_token: bool | None = option(None, "MAE-priv's name for --pool cls; its opposite is --pool mean")
    pixels: bool = option(False, "compare raw pixels at --input_size instead of features, without --model_path")
    save_path: str = option(
        "",
        "folder for the features, which are then kept on disk and not in memory, so that the same command continues "
        "after a kill; accuracies are appended to its output.txt",
        metavar="DIR",
    )
    num_pictures: int = option(
        0, "queries to draw with their ten nearest neighbors, to SAVE_PATH/neighbors.png", within="[0, inf)"
    )
    picture_bands: tuple[int, ...] | None = option(None, PICTURE_BANDS, within="[1, inf)", metavar="BAND")
    load_path: str = option("", "folder of an earlier --save_path, to reuse its features", metavar="DIR")

    @property
    def pooled(self) -> Literal["mean", "cls"]:
        """Pooling of the tokens: "mean" or "cls"."""
        return self.pool or ("cls" if self.use_cls_token else "mean")

    def _contradictions(self) -> Iterator[str]:
        if self.pool and self.use_cls_token not in (None, self.pool == "cls"):
            yield f"--pool {self.pool} contradicts use_cls_token {self.use_cls_token}; give one of them"
        if self.load_path:
            for name in (
                "model_path",
                "model_key",
                "model_prefix",
                "data_path",
                "eval_data_path",
                "pixels",
                "random_weights",
            ):
                if getattr(self, name):
                    yield f"--load_path has its features already; leave --{name} out"
            if self.num_pictures:
                yield "--load_path has no images for --num_pictures; pass --data_path and --model_path"
            return
        if self.num_pictures and not self.save_path:
            yield "--num_pictures needs --save_path, the folder of the picture"
        if not self.data_path:
            yield "--data_path is required: a folder with train/ and val/"
        if not self.pixels:
            yield from super()._contradictions()
        elif self.model_path or self.random_weights:
            yield "--pixels uses no network; leave --model_path and --random_weights out"
        elif self.input_size is None:
            yield "--pixels needs --input_size, the side to which all images are resized"


@dataclass(kw_only=True, frozen=True)
class FewLabelOptions:
    """Options of evaluation with few labels."""

    shots: tuple[int, ...] | None = _few(
        None, "numbers of labeled training images per class, for example 1 2 5 10 [none]", within="[1, inf)"
    )
    fractions: tuple[float, ...] | None = _few(
        None, "labeled shares of the training images of every class, for example 0.01 0.1 [none]", within="(0, 1]"
    )
    label_seeds: tuple[int, ...] = _few(
        (0, 1, 2, 3, 4), "seeds of the choices of labeled images", within="[0, inf)", metavar="SEED"
    )


@dataclass(kw_only=True, frozen=True)
class FewshotConfig(FewLabelOptions, FeatureConfig):
    """Options of `fewshot`."""

    data_path: str = option(
        "",
        "folder with train/ (labels are taken from it) and val/, or a list file of the training images",
        metavar="PATH",
    )
    eval_data_path: str = option("", "folder or list file of the validation images [DATA_PATH/val]", metavar="PATH")
    shots: tuple[int, ...] | None = _few(
        (1, 2, 5, 10), "numbers of labeled training images per class; none: no such row", within="[1, inf)"
    )
    pool: Literal["mean", "cls"] = option("mean", "mean of the patch tokens, or class token")
    save_path: str = option("", "file of the accuracies of every seed, .csv or .json", metavar="FILE")

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        yield from missing(self, "data_path")
        if not self.shots and not self.fractions:
            yield "--shots none leaves nothing to evaluate; give --fractions with it"
        if self.save_path and not self.save_path.endswith((".csv", ".json")):
            yield f"--save_path {self.save_path}: expected a file that ends in .csv or .json"


@dataclass(kw_only=True, frozen=True)
class CompareConfig(FewLabelOptions, NetworkOptions, ViewConfig):
    """Options of `compare`."""

    model_path: tuple[str, ...] = option((), "checkpoints of pre-training", metavar="FILE")
    input_size: tuple[int, ...] | None = option(None, SIZE_HELP, within="[1, inf)")
    num_heads: int | None = option(
        None, "attention heads of the encoders, if a file does not determine them", within="[1, inf)"
    )
    data_path: str = option("", "folder with train/ and val/, or a list file of the training images", metavar="PATH")
    eval_data_path: str = option("", "folder or list file of the validation images [DATA_PATH/val]", metavar="PATH")
    pixels: int | None = option(
        None, "also compare raw pixels of images resized to this side, in pixels", within="[1, inf)", metavar="SIDE"
    )
    random_weights: bool = option(False, "also compare encoders with random weights, of every checkpoint's sizes")
    seeds: tuple[int, ...] = option(
        (0,), "seeds of the random weights; several give mean and range", within="[0, inf)", metavar="SEED"
    )
    nb_knn: int | None = option(None, "number of neighbors [10, or fewer for fewer images]", within="[1, inf)")
    pool: Literal["mean", "cls"] = option("mean", "mean of the patch tokens, or class token")
    norm: bool = option(False, "apply the encoder's final norm to the tokens")
    save_path: str = option("", "file of the table: .md, or .json with the numbers of every seed", metavar="FILE")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", DEVICE_HELP)

    def _contradictions(self) -> Iterator[str]:
        if not self.data_path:
            yield "--data_path is required: a folder with train/ and val/"
        if not self.model_path and not self.pixels:
            yield "nothing to compare; name checkpoints with --model_path, or --pixels SIDE"
        elif not self.model_path and self.random_weights:
            yield "--random_weights takes its sizes from checkpoints; name them with --model_path"
        if self.save_path and not self.save_path.endswith((".md", ".json")):
            yield f"--save_path {self.save_path}: expected a file that ends in .md or .json"


@dataclass(kw_only=True, frozen=True)
class SegprobeConfig(BatchConfig, EncoderConfig):
    """Options of `segprobe`."""

    data_path: str = option(
        "", "folder with images/train, images/val, masks/train and masks/val; masks are PNGs of indices", metavar="DIR"
    )
    classes: str = option(
        "",
        "text file with one class name per line, for index 0, 1, ... [DATA_PATH/classes.txt, else numbers]",
        metavar="FILE",
    )
    ignore_index: tuple[int, ...] = option((255,), "indices of pixels without a class", within="[0, inf)")
    max_train_images: int = option(
        1000, "largest number of training images, evenly spaced; all validation images are used", within="[1, inf)"
    )
    max_train_patches: int = option(
        50000, "largest number of their patches to fit, drawn at random with --seed", within="[2, inf)"
    )
    nb_knn: int | None = option(None, "number of neighbors [20, or fewer for fewer patches]", within="[1, inf)")
    norm: bool = _encoder(True, "apply the encoder's final norm to the tokens")
    save_path: str = option("./segmentation", "folder for predictions.png, results.json and results.csv", metavar="DIR")
    num_pictures: int = option(8, "validation images in the picture, evenly spaced; 0: no picture", within="[0, inf)")

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        yield from missing(self, "data_path")


@dataclass(kw_only=True, frozen=True)
class EmbedConfig(FeatureConfig):
    """Options of `plsc_mae.embed`; `extract` has options of files and pictures too."""

    data_path: str = option("", "image folder (its val/, if there is one) or list file", metavar="PATH")
    split: str = option("val", "subfolder of the image folder to use, if it exists", metavar="NAME")
    layers: tuple[int, ...] = option((-1,), "blocks after which to take tokens; 0: before the first; -1: the last")
    tokens: tuple[Literal["cls", "mean", "patch"], ...] = option(
        ("cls", "mean"), "cls: class token; mean: mean of the patch tokens; patch: all patch tokens"
    )
    norm: bool = _encoder(True, "apply the encoder's final norm to the tokens")
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = _images("bicubic", "filter of the resize")

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        yield from missing(self, "data_path")


@dataclass(kw_only=True, frozen=True)
class ExtractConfig(EmbedConfig):
    """Options of `extract`."""

    save_path: str = option("", "file to write, .npz, .safetensors or .parquet", metavar="FILE")
    num_pictures: int = _pictures(
        0, "images to draw with their ten nearest neighbors, in STEM-neighbors.png beside SAVE_PATH", within="[0, inf)"
    )
    map: tuple[Literal["pca", "tsne", "umap"], ...] = _pictures(
        (), "maps of the features to draw with thumbnails, in STEM-METHOD.png beside SAVE_PATH"
    )
    map_images: int = _pictures(1000, "largest number of images in a map, evenly spaced", within="[3, inf)")
    picture_bands: tuple[int, ...] | None = _pictures(None, PICTURE_BANDS, within="[1, inf)", metavar="BAND")

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        yield from missing(self, "save_path")
        if self.save_path and not self.save_path.endswith((".npz", ".safetensors", ".parquet")):
            yield f"--save_path {self.save_path}: expected a file that ends in .npz, .safetensors or .parquet"
        for name in ("num_pictures", "map"):
            if getattr(self, name) and set(self.tokens) == {"patch"}:
                yield f"--{name} needs one vector per image; add cls or mean to --tokens"


def missing(config: object, *names: str) -> Iterator[str]:
    """Yield a sentence for each of the options `names` that has no value."""
    for name in names:
        if not getattr(config, name):
            yield f"--{name} is required"
