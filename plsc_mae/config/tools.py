"""Options of commands that do not train; those of `weights`, `plan` and `parity` have their own modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from plsc_mae.config.pixels import BANDS, IN_CHANS, PICTURE_BANDS, PixelOptions
from plsc_mae.config.schema import in_group, option
from plsc_mae.config.weights import NetworkOptions
from plsc_mae.errors import ConfigError

_encoder = in_group("Encoder")
_images = in_group("Images")
_pictures = in_group("Pictures")
_classifier = in_group("Trained classifier")
_few = in_group("Few labels")
_DEVICE = "device; auto: a GPU if there is one"
SIZE_HELP = "image side in pixels, or height and width [the checkpoint's]"
_HEADS = "attention heads of the encoder, if the file does not determine them"
WORKERS_HELP = "loader processes per process [up to 10, limited by the CPU cores]"
_IMAGES = "an image, or a folder or archive of images (its val/, if there is one)"


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
    img_path: str = option("", _IMAGES, metavar="PATH")
    save_path: str = option("./reconstruction", "folder for one PNG panel per image", metavar="DIR")
    input_size: tuple[int, ...] | None = option(None, SIZE_HELP)
    mask_ratio: float | None = option(
        None, "MAE and others: fraction of hidden patches [the checkpoint's]", within="(0, 1)"
    )
    num_mask_patches: int | None = option(
        None, "CAE: patches hidden by block masks [the checkpoint's]", within="[1, inf)"
    )
    second_input_size: tuple[int, ...] | None = option(None, "CAE: side of the tokenizer's view [the checkpoint's]")
    discrete_vae_weight_path: str | None = option(
        None, "CAE: folder or file of the DALL-E dVAE's weights [the checkpoint's]", metavar="PATH"
    )
    num_heads: int | None = option(None, _HEADS, within="[1, inf)")
    decoder_num_heads: int | None = option(None, "attention heads of the decoder, likewise", within="[1, inf)")
    norm_pix_loss: bool | None = option(None, "MAE: training used normalized targets [the checkpoint's]")
    patch_stats: Literal["original", "visible"] | None = option(
        None,
        "MAE with norm_pix_loss: take mean and std of hidden patches from the original image, or from visible "
        "neighbors [original]",
    )
    picture_bands: tuple[int, ...] | None = option(None, PICTURE_BANDS, within="[1, inf)", metavar="BAND")
    max_images: int = option(64, "largest number of images to draw from a folder", within="[1, inf)")
    seed: int = option(0, "seed of the masks", within="[0, inf)")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", _DEVICE)

    def __post_init__(self) -> None:
        _require(self, "model_path", "img_path")


@dataclass(kw_only=True, frozen=True)
class DoctorConfig:
    """Options of `doctor`."""

    data_path: str = option("", "image folder or list file to check too", metavar="PATH")
    in_chans: int | None = option(None, IN_CHANS, within="[1, inf)")
    bands: tuple[int, ...] | None = option(None, BANDS, within="[1, inf)", metavar="BAND")
    output_dir: str = option("", "output folder to check for write access")
    distributed: bool = option(False, "check the processes of paddle.distributed.launch too")
    gpu: bool = option(
        False,
        "compute on the GPUs too, for at most 3 minutes: kernels, copies, attention, mixed precision, determinism, "
        "speed, collectives; without a GPU, these checks test themselves on the CPU",
    )
    report: str | None = option(None, "report file of --gpu [gpu-report.json]", metavar="FILE")

    def __post_init__(self) -> None:
        if self.report is not None and not self.gpu:
            raise ConfigError("--report has no effect without --gpu: only the GPU checks write a report")


@dataclass(kw_only=True, frozen=True)
class ConfigsConfig:
    """Options of `configs`, which lists recipes or prints one."""

    recipe: str = option(
        "",
        "recipe to print; or folder, pattern or part of a name of recipes to list, for example '*linprobe*' [all]",
    )


@dataclass(kw_only=True, frozen=True)
class PlotConfig:
    """Options of `plot`."""

    run_dir: str = option("", "output folder of the run")
    metrics: tuple[str, ...] = option(("loss",), "names in train.jsonl to draw in one picture", metavar="NAME")
    save_path: str | None = option(
        None, "PNG file to write [RUN_DIR/METRIC.png, after the first metric]", metavar="FILE"
    )

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise ConfigError("name the run's output folder: plsc-mae plot RUN_DIR")


@dataclass(kw_only=True, frozen=True)
class ReportConfig(PixelOptions, NetworkOptions):
    """Options of `report`."""

    run_dir: str = option("", "output folder of the run", metavar="DIR")
    save_path: str = option("", "HTML file to write [RUN_DIR/report.html]", metavar="FILE")
    img_path: str = option(
        "", f"images for the pictures of attention and tokens: {_IMAGES} [the run's]", metavar="PATH"
    )
    picture_bands: tuple[int, ...] | None = option(None, PICTURE_BANDS, within="[1, inf)", metavar="BAND")
    max_images: int = option(
        4, "number of these images; 0 leaves the pictures out and loads no network", within="[0, inf)"
    )
    panel_path: str = option("", "PNG file to write the pictures of attention and tokens to as well", metavar="FILE")
    tables: tuple[str, ...] = option((), "tables of `compare` to include, .md or .json", metavar="FILE")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", _DEVICE)

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise ConfigError("name the run's output folder: plsc-mae report RUN_DIR")


@dataclass(kw_only=True, frozen=True)
class RunsConfig:
    """Options of `runs`."""

    run_dirs: tuple[str, ...] = option((), "output folders of the runs", metavar="DIR")
    save_path: str = option("runs.html", "HTML file to write", metavar="FILE")

    def __post_init__(self) -> None:
        if not self.run_dirs:
            raise ConfigError("name the runs' output folders: plsc-mae runs RUN_DIR RUN_DIR")


@dataclass(kw_only=True, frozen=True)
class BoardConfig:
    """Options of `board`, which serves VisualDL pages of runs."""

    first_port: ClassVar[int] = 8040  # VisualDL's default

    runs: tuple[str, ...] = option((), "output folders of runs, or folders of several runs", metavar="DIR")
    port: int | None = option(None, "port of the server [the first free one from 8040 on]", within="[1, 65535]")
    host: str = option("localhost", "address to listen on; 0.0.0.0: all, so that other machines can see the pages")
    language: Literal["auto", "en", "zh"] = option("auto", "language of the pages; auto: the locale's, else English")

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("name the output folders of runs: plsc-mae board DIR...")


@dataclass(kw_only=True, frozen=True)
class EncoderConfig(PixelOptions, NetworkOptions):
    """Options of the tools that open an encoder."""

    model_path: str = _encoder("", "checkpoint of pre-training", metavar="FILE")
    input_size: tuple[int, ...] | None = _encoder(None, SIZE_HELP, within="[1, inf)")
    num_heads: int | None = _encoder(None, _HEADS, within="[1, inf)")
    random_weights: bool = _encoder(False, "use random weights in a network of the checkpoint's sizes, as a baseline")
    seed: int = _encoder(0, "seed of the random weights", within="[0, inf)")
    device: Literal["auto", "cpu", "gpu", "cuda"] = _encoder("auto", _DEVICE)

    def __post_init__(self) -> None:
        _require(self, "model_path")


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
    """Options of the tools that compute features."""

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
    nb_knn: tuple[int, ...] = option((10, 20, 100, 200), "numbers of neighbors", within="[1, inf)")
    temperature: float = option(0.07, "temperature T of the votes exp(cosine / T)", within="(0, inf)")
    pool: Literal["mean", "cls"] | None = option(None, "mean of the patch tokens, or class token [mean]")
    use_cls_token: bool | None = option(None, "MAE-priv's name for --pool cls; its opposite is --pool mean")
    pixels: bool = option(False, "compare raw pixels at --input_size instead of features, without --model_path")
    save_path: str = option(
        "",
        "folder to save the features to, which stay on the disk instead of in memory, so that the same command "
        "continues after a kill; accuracies are appended to output.txt",
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

    def __post_init__(self) -> None:
        if self.pool and self.use_cls_token not in (None, self.pool == "cls"):
            raise ConfigError(f"--pool {self.pool} contradicts use_cls_token {self.use_cls_token}; give one of them")
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
                    raise ConfigError(f"--load_path has its features already; leave --{name} out")
            if self.num_pictures:
                raise ConfigError("--load_path has no images for --num_pictures; pass --data_path and --model_path")
            return
        if self.num_pictures and not self.save_path:
            raise ConfigError("--num_pictures needs --save_path, the folder of the picture")
        if not self.data_path:
            raise ConfigError("--data_path is required: a folder with train/ and val/")
        if not self.pixels:
            super().__post_init__()
        elif self.model_path or self.random_weights:
            raise ConfigError("--pixels uses no network; leave --model_path and --random_weights out")
        elif self.input_size is None:
            raise ConfigError("--pixels needs --input_size, the side to which all images are resized")


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

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "data_path")
        if not self.shots and not self.fractions:
            raise ConfigError("--shots none leaves nothing to evaluate; give --fractions with it")
        if self.save_path and not self.save_path.endswith((".csv", ".json")):
            raise ConfigError(f"--save_path {self.save_path}: expected a file that ends in .csv or .json")


@dataclass(kw_only=True, frozen=True)
class CompareConfig(FewLabelOptions, NetworkOptions, ViewConfig):
    """Options of `compare`."""

    model_path: tuple[str, ...] = option((), "checkpoints of pre-training", metavar="FILE")
    input_size: tuple[int, ...] | None = option(None, SIZE_HELP, within="[1, inf)")
    num_heads: int | None = option(None, "attention heads of the encoders, if a file does not determine them")
    data_path: str = option("", "folder with train/ and val/, or a list file of the training images", metavar="PATH")
    eval_data_path: str = option("", "folder or list file of the validation images [DATA_PATH/val]", metavar="PATH")
    pixels: int | None = option(
        None, "also compare raw pixels of images resized to this side, in pixels", within="[1, inf)", metavar="SIDE"
    )
    random_weights: bool = option(False, "also compare encoders with random weights, of every checkpoint's sizes")
    seeds: tuple[int, ...] = option(
        (0,), "seeds of the random weights; several give mean and range", within="[0, inf)", metavar="SEED"
    )
    nb_knn: int = option(10, "number of neighbors", within="[1, inf)")
    pool: Literal["mean", "cls"] = option("mean", "mean of the patch tokens, or class token")
    norm: bool = option(False, "apply the encoder's final norm to the tokens")
    save_path: str = option("", "file of the table: .md, or .json with the numbers of every seed", metavar="FILE")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", _DEVICE)

    def __post_init__(self) -> None:
        if not self.data_path:
            raise ConfigError("--data_path is required: a folder with train/ and val/")
        if not self.model_path and not self.pixels:
            raise ConfigError("nothing to compare; name checkpoints with --model_path, or --pixels SIDE")
        if not self.model_path and self.random_weights:
            raise ConfigError("--random_weights takes its sizes from checkpoints; name them with --model_path")
        if self.save_path and not self.save_path.endswith((".md", ".json")):
            raise ConfigError(f"--save_path {self.save_path}: expected a file that ends in .md or .json")


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
    nb_knn: int = option(20, "number of neighbors", within="[1, inf)")
    norm: bool = _encoder(True, "apply the encoder's final norm to the tokens")
    save_path: str = option("./segmentation", "folder for predictions.png, results.json and results.csv", metavar="DIR")
    num_pictures: int = option(8, "validation images in the picture, evenly spaced; 0: no picture", within="[0, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "data_path")


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
        _require(self, "data_path")


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
    picture_bands: tuple[int, ...] | None = _pictures(None, PICTURE_BANDS, within="[1, inf)", metavar="BAND")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "save_path")
        if not self.save_path.endswith((".npz", ".safetensors", ".parquet")):
            raise ConfigError(
                f"--save_path {self.save_path}: expected a file that ends in .npz, .safetensors or .parquet"
            )
        for name in ("num_pictures", "map"):
            if getattr(self, name) and set(self.tokens) == {"patch"}:
                raise ConfigError(f"--{name} needs one vector per image; add cls or mean to --tokens")


@dataclass(kw_only=True, frozen=True)
class TrainedClassifierOptions(NetworkOptions):
    """Options that complete the checkpoint of a trained classifier."""

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

    img_path: str = option("", _IMAGES, metavar="PATH")
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

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "img_path")
        if self.category_index and self.random_weights:
            raise ConfigError("--category_index needs a trained classifier; leave --random_weights out")
        for name in ("classes", "global_pool"):
            if not self.category_index and getattr(self, name) not in ("", None):
                raise ConfigError(f"--{name} has no effect without --category_index: attention alone needs no classes")


@dataclass(kw_only=True, frozen=True)
class PredictConfig(PixelOptions, TrainedClassifierOptions):
    """Options of `predict`."""

    model_path: str = option("", "checkpoint of fine-tuning or probing", metavar="FILE")
    img_path: str = option("", _IMAGES, metavar="PATH")
    topk: int = option(5, "number of most probable classes to show", within="[1, inf)")
    save_path: str = option(
        "", "also write the classes to this file: .jsonl (a line per image), .json (a list) or .csv", metavar="FILE"
    )
    input_size: tuple[int, ...] | None = option(None, SIZE_HELP, within="[1, inf)")
    num_heads: int | None = option(None, _HEADS, within="[1, inf)")
    batch_size: int = option(64, "images per process and batch", within="[1, inf)")
    num_workers: int | None = option(None, WORKERS_HELP, within="[0, inf)")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", _DEVICE)

    def __post_init__(self) -> None:
        _require(self, "model_path", "img_path")
        if self.save_path and not self.save_path.endswith((".jsonl", ".json", ".csv")):
            raise ConfigError(f"--save_path {self.save_path}: expected a file that ends in .jsonl, .json or .csv")


def _require(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name):
            raise ConfigError(f"--{name} is required")
