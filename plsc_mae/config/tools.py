"""Options of the commands that do not train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from plsc_mae.config.cae import CAEConfig
from plsc_mae.config.classify import MAEPrivFinetuneConfig
from plsc_mae.config.mae import MAEConfig, MAEPrivConfig, MAEPytorchConfig
from plsc_mae.config.schema import option, redefault, vocabulary
from plsc_mae.errors import ConfigError

_PRETRAIN = (MAEConfig, CAEConfig, MAEPrivConfig, MAEPytorchConfig)


@dataclass(kw_only=True, frozen=True)
class ReconstructConfig:
    """Reconstruct: redraw what a mask hides, with a pre-trained model."""

    aliases: ClassVar[dict[str, str]] = {"normlize_target": "norm_pix_loss"}
    # A config of pre-training may be given, as to MAE-priv's pictures, which take what they know of it.
    passed_over: ClassVar[frozenset[str]] = frozenset().union(*map(vocabulary, _PRETRAIN))

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
        None, "norm-pix MAE: mean and std of hidden patches from the original [this], or from visible neighbors"
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
    """Demo data: a small labeled JPEG folder whose classes are shapes."""

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

    data_path: str = option("", "image folder or list file to look at too")
    output_dir: str = option("", "output folder to try to write to")
    distributed: bool = option(False, "look at the processes of paddle.distributed.launch too")


@dataclass(kw_only=True, frozen=True)
class PlotConfig:
    """Plot: curves of a run."""

    run_dir: str = option("", "output folder of the run")
    metrics: tuple[str, ...] = option(("loss",), "names in train.jsonl to draw, in one picture")
    save_path: str | None = option(None, "PNG file to write [RUN_DIR/METRIC.png, by the first one's name]")

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise ConfigError("name the run's output folder: plsc-mae plot RUN_DIR")


@dataclass(kw_only=True, frozen=True)
class EncoderConfig:
    """Encoder: whose features or attention are looked at."""

    model_path: str = option("", "checkpoint of pre-training")
    input_size: tuple[int, ...] | None = option(
        None, "image side, or height and width [the checkpoint's]", within="[1, inf)"
    )
    num_heads: int | None = option(None, "heads of a foreign file of unpublished width", within="[1, inf)")
    random_weights: bool = option(False, "take the checkpoint's sizes only: what the network gives without training")
    seed: int = option(0, "seed of random weights", within="[0, inf)")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", "where to compute")

    def __post_init__(self) -> None:
        if not self.model_path:
            raise ConfigError("--model_path is required")


@dataclass(kw_only=True, frozen=True)
class ViewConfig:
    """Views: how images are brought to the size of the network, and in what batches."""

    crop_pct: float = option(
        0.875, "input size over the shorter side before the center crop; 0.875 is 224 of 256", within="(0, 1]"
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = option("bilinear", "filter of the resize")
    batch_size: int = option(64, "images per process and batch", within="[1, inf)")
    num_workers: int | None = option(
        None, "loader processes per process; up to 10, by the cores at hand, when not given", within="[0, inf)"
    )


@dataclass(kw_only=True, frozen=True)
class FeatureConfig(ViewConfig, EncoderConfig):
    """Features: of which images, from where in the encoder."""

    data_path: str = option("", "image folder or list file")
    norm: bool = option(False, "apply the encoder's final norm to the tokens")


@dataclass(kw_only=True, frozen=True)
class KNNConfig(FeatureConfig):
    """k-NN: classify validation images by their nearest neighbors among the training images."""

    aliases: ClassVar[dict[str, str]] = {"finetune": "model_path"}
    # A fine-tuning config may be given, as to MAE-priv's k-NN, which takes what it knows of it.
    passed_over: ClassVar[frozenset[str]] = vocabulary(MAEPrivFinetuneConfig)

    data_path: str = option("", "folder with train/ (the bank) and val/ (the queries), or a list file of the bank")
    eval_data_path: str = option("", "folder or list file of the queries [DATA_PATH/val]")
    nb_knn: tuple[int, ...] = option((10, 20, 100, 200), "numbers of neighbors", within="[1, inf)")
    temperature: float = option(0.07, "T of the votes exp(cosine / T)", within="(0, inf)")
    pool: Literal["mean", "cls"] | None = option(None, "mean of the patch tokens, or the class token [mean]")
    use_cls_token: bool | None = option(None, "MAE-priv's name of --pool cls, or, when false, of --pool mean")
    pixels: bool = option(False, "compare raw pixels at --input_size instead of features; takes no --model_path")
    save_path: str = option("", "folder to keep the features in, and to append the accuracies to output.txt")
    load_path: str = option("", "folder of an earlier --save_path: use its features, compute none")

    @property
    def pooled(self) -> Literal["mean", "cls"]:
        """What is compared: "mean" or "cls"."""
        return self.pool or ("cls" if self.use_cls_token else "mean")

    def __post_init__(self) -> None:
        if self.pool and self.use_cls_token not in (None, self.pool == "cls"):
            raise ConfigError(f"--pool {self.pool} and --use_cls_token {self.use_cls_token} contradict each other")
        if self.load_path:
            for name in ("model_path", "data_path", "eval_data_path", "pixels", "random_weights"):
                if getattr(self, name):
                    raise ConfigError(f"--load_path has its features already; leave --{name} out")
            return
        if not self.data_path:
            raise ConfigError("--data_path is required: a folder with train/ and val/")
        if not self.pixels:
            super().__post_init__()
        elif self.model_path or self.random_weights:
            raise ConfigError("--pixels uses no network; leave --model_path and --random_weights out")
        elif self.input_size is None:
            raise ConfigError("--pixels needs --input_size, the side that all pictures are brought to")


@dataclass(kw_only=True, frozen=True)
class CompareConfig(ViewConfig):
    """Compare: k-NN and linear accuracy of the features of several encoders, random weights and raw pixels."""

    model_path: tuple[str, ...] = option((), "checkpoints of pre-training")
    data_path: str = option("", "folder with train/ and val/, or a list file of the training images")
    eval_data_path: str = option("", "folder or list file of the validation images [DATA_PATH/val]")
    pixels: int | None = option(
        None, "also compare raw pixels of pictures brought to this side, in pixels", within="[1, inf)"
    )
    random_weights: bool = option(False, "also compare encoders of random weights, of every checkpoint's sizes")
    seeds: tuple[int, ...] = option((0,), "seeds of the random weights; of several, mean and range", within="[0, inf)")
    nb_knn: int = option(10, "number of neighbors", within="[1, inf)")
    pool: Literal["mean", "cls"] = option("mean", "mean of the patch tokens, or the class token")
    norm: bool = option(False, "apply the encoder's final norm to the tokens")
    save_path: str = option("", "file to write the table to: .md, or .json with every seed's number")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", "where to compute")

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
class ExtractConfig(FeatureConfig):
    """Extract: write the features of images to a file."""

    data_path: str = option("", "image folder, of which val/ if there is one, or list file")
    split: str = option("val", "subfolder of the image folder to take, if it is there")
    layers: tuple[int, ...] = option((-1,), "blocks after which to take tokens; 0 before the first, -1 the last")
    tokens: tuple[Literal["cls", "mean", "patch"], ...] = option(
        ("cls", "mean"), "class token, mean of the patch tokens, or all patch tokens: any of cls mean patch"
    )
    norm: bool = redefault(FeatureConfig, "norm", True)
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = redefault(FeatureConfig, "interpolation", "bicubic")
    save_path: str = option("", "file to write, .npz or .safetensors")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("data_path", "save_path"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is required")
        if not self.save_path.endswith((".npz", ".safetensors")):
            raise ConfigError(f"--save_path {self.save_path}: expected a file that ends in .npz or .safetensors")


@dataclass(kw_only=True, frozen=True)
class TrainedClassifierOptions:
    """Trained classifier: what its checkpoint does not tell."""

    model_key: str = option("", "key of the weights in it, as model_ema [found by its content]")
    classes: str = option("", "text file with the name of a class on every line [the checkpoint's names, or numbers]")
    global_pool: bool | None = option(
        None, "whether the mean of the patch tokens is classified, or else the class token [as the file tells]"
    )


@dataclass(kw_only=True, frozen=True)
class ExplainConfig(TrainedClassifierOptions, EncoderConfig):
    """Explain: draw which patches an encoder attends to."""

    aliases: ClassVar[dict[str, str]] = {"finetune": "model_path", "image_path": "img_path"}
    passed_over: ClassVar[frozenset[str]] = vocabulary(MAEPrivFinetuneConfig)

    img_path: str = option("", "an image, or a folder of images")
    save_path: str = option("./attention", "folder for one PNG panel per image")
    category_index: str = option(
        "", "of a trained classifier: number or name of the class whose evidence is drawn, or predicted"
    )
    head_fusion: Literal["mean", "max", "min"] = option("max", "how the heads of a layer become one map")
    discard_ratio: float = option(0.9, "share of each layer's smallest weights set to 0", within="[0, 1)")
    layer_index: int | None = option(None, "roll out this layer alone, from 0; -1 is the last [all layers]")
    pool: Literal["cls", "mean"] | None = option(
        None, "attention of the class token, or of the patch tokens on average [what --category_index pools, else cls]"
    )
    heads: bool = option(False, "also draw every head of the last layer")
    literal: bool = option(False, "MAE-priv's numbers, which divide columns by the sums of rows")
    max_images: int = option(64, "most images taken from a folder", within="[1, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.img_path:
            raise ConfigError("--img_path is required")
        if self.category_index and self.random_weights:
            raise ConfigError("--category_index needs a trained classifier; leave --random_weights out")
        for name in ("model_key", "classes", "global_pool"):
            if not self.category_index and getattr(self, name) not in ("", None):
                raise ConfigError(f"--{name} has no effect without --category_index: attention alone needs no classes")


@dataclass(kw_only=True, frozen=True)
class PredictConfig(TrainedClassifierOptions):
    """Predict: classify images by a trained classifier."""

    model_path: str = option("", "checkpoint of fine-tuning or probing")
    img_path: str = option("", "an image, or a folder of images")
    topk: int = option(5, "most probable classes that are told", within="[1, inf)")
    save_path: str = option("", "also write them to this file: .jsonl (a line per image), .json (a list) or .csv")
    input_size: tuple[int, ...] | None = option(
        None, "image side, or height and width [the checkpoint's]", within="[1, inf)"
    )
    num_heads: int | None = option(None, "heads of a foreign file of unpublished width", within="[1, inf)")
    batch_size: int = option(64, "images per process and batch", within="[1, inf)")
    num_workers: int | None = option(
        None, "loader processes per process; up to 10, by the cores at hand, when not given", within="[0, inf)"
    )
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", "where to compute")

    def __post_init__(self) -> None:
        for name in ("model_path", "img_path"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is required")
        if self.save_path and not self.save_path.endswith((".jsonl", ".json", ".csv")):
            raise ConfigError(f"--save_path {self.save_path}: expected a file that ends in .jsonl, .json or .csv")
