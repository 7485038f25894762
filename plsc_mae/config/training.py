"""Options of every training run, and of every pre-training run.

Options that facebookresearch/mae has too are declared with the default of its pre-training, except for the device,
paths and the number of workers. Where a method's phase has other defaults, the table `defaults` of its config class has
them, for example in config/cae.py. Names follow facebookresearch/mae, PLSC and Atten4Vis/CAE.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from plsc_mae.config import pixels
from plsc_mae.config.schema import Retired, in_group, refuse_mistakes, set_defaults

_LAUNCHER = "`plsc-mae launch` starts the processes and sets the rank of each"
_WANDB = "--logger wandb records the run in Weights & Biases, in the project WANDB_PROJECT of the account WANDB_ENTITY"
_SUBMITIT = "it belongs to submitit's Slurm launcher; see docs/scale-out.md for the launch line"

# Flags of other code bases for DeepSpeed and Weights & Biases.
DEEPSPEED = {"enable_deepspeed": Retired("DeepSpeed needs PyTorch", takes_value=False)}
WANDB = {
    "log_wandb": Retired(_WANDB, takes_value=False),
    "no_log_wandb": Retired(_WANDB, takes_value=False),
    "wandb_project": Retired(_WANDB),
    "wandb_entity": Retired(_WANDB),
}

SHORT_RUN_WARMUP = 0.1  # warm-up of a run shorter than the default warm-up, as a share of the run

_run = in_group("Run")
_checkpoints = in_group("Checkpoints and resuming")
_data = in_group("Data")
_network = in_group("Encoder sizes (default: those of --model)")
_optimization = in_group("Optimization")
_precision = in_group("Precision")
_parallelism = in_group("Parallelism and memory")
_evaluation = in_group("Evaluation during pre-training")


@dataclass(kw_only=True, frozen=True)
class TrainingConfig:
    """Options of every training run; subclasses add those of phases and methods.

    Attributes:
        method: name of the method.
        phase: kind of training: "pretrain", "finetune" or "linprobe".
        models: shell patterns of the model names that select this method.
        lr_per_256: True if `lr` is a rate per 256 images, multiplied by effective batch / 256 as `blr` is.
        defaults: the options whose default differs from the declaration, with that default. Only classes of one
            method and phase have a table, so it is the complete preset.
        frequent: the frequent options on the first screen of the help.
        aliases: other names of options.
        negations: switches of other code bases that set the named option to the opposite value.
        retired: flags of other code bases that are accepted without effect.
        given: names of the options that the sources of `resolve` have set; None for a config that was built in Python.
    """

    method: ClassVar[str] = ""
    phase: ClassVar[str] = ""
    models: ClassVar[tuple[str, ...]] = ()
    lr_per_256: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}
    frequent: ClassVar[tuple[str, ...]] = (
        "model",
        "data_path",
        "output_dir",
        "epochs",
        "batch_size",
        "accum_iter",
        "blr",
        "lr",
        "auto_resume",
        "overwrite",
    )
    aliases: ClassVar[dict[str, str]] = {"update_freq": "accum_iter", "save_freq": "save_ckpt_freq"}
    negations: ClassVar[dict[str, str]] = {}
    retired: ClassVar[dict[str, Retired]] = {
        "world_size": Retired(_LAUNCHER),
        "local_rank": Retired(_LAUNCHER),
        "dist_url": Retired(_LAUNCHER),
        "dist_on_itp": Retired(_LAUNCHER, takes_value=False),
        "pin_mem": Retired("batches for a GPU are always copied from pinned memory", takes_value=False),
        "no_pin_mem": Retired("batches for a GPU are always copied from pinned memory", takes_value=False),
        "ngpus": Retired(_SUBMITIT),
        "nodes": Retired(_SUBMITIT),
        "timeout": Retired(_SUBMITIT),
        "job_dir": Retired(_SUBMITIT),
        "partition": Retired(_SUBMITIT),
        "use_volta32": Retired(_SUBMITIT, takes_value=False),
        "comment": Retired(_SUBMITIT),
        "warmup_lr": Retired("the warm-up of this run starts from 0"),
        "enable_multi_print": Retired("the launcher writes a log for every process", takes_value=False),
        "debug": Retired("no implementation reads it", takes_value=False),
    }

    given: frozenset[str] | None = field(default=None, compare=False, repr=False)

    model: str = _run("", "registered model name; selects the method too", metavar="NAME")
    output_dir: str = _run("./output_dir", "folder of checkpoints, config.yaml, log.txt and train.jsonl")
    log_dir: str | None = _run(None, "folder of the records for boards, see --logger [OUTPUT_DIR]")
    logger: tuple[Literal["visualdl", "tensorboard", "wandb"], ...] | None = _run(
        ("visualdl",),
        "boards that show the run: visualdl, tensorboard, wandb, several of them, or none",
        metavar="BOARD",
    )
    histograms: bool = _run(
        False, "show histograms of the parameters and gradients of every block at the end of every epoch"
    )
    exp_name: str = _run("", "prefix of checkpoint names: {exp_name}_checkpoint-{epoch}.pd", metavar="NAME")
    device: Literal["auto", "cpu", "gpu", "cuda"] = _run("auto", "device; auto: a GPU if there is one")
    seed: int = _run(0, "seed of weights, image order, crops and masks", within="[0, inf)")
    hang_timeout: float = _run(
        1800.0,
        "seconds without progress of the run, or without a report of a process, after which all processes write their "
        "stacks and exit with code 4; 0: unlimited",
        within="[0, inf)",
        metavar="SECONDS",
    )
    print_freq: int = _run(20, "iterations between log lines", within="[1, inf)")
    quiet: bool = _run(False, "print only results, warnings and errors; the files of OUTPUT_DIR are the same")
    json: bool = _run(False, "print a JSON object per line instead of text, see docs/console.md")

    resume: str = _checkpoints("", "checkpoint to resume from", metavar="FILE")
    auto_resume: bool = _checkpoints(
        False,
        "continue the run in OUTPUT_DIR from its newest valid checkpoint, if there is one; --resume and --overwrite "
        "take precedence",
    )
    overwrite: bool = _checkpoints(
        False, "start a new run in an OUTPUT_DIR that holds another; its files move to OUTPUT_DIR/previous-ID"
    )
    start_epoch: int = _checkpoints(0, "first epoch of a run that does not resume", within="[0, inf)")
    model_key: str = _checkpoints(
        "",
        "key of the network in the file of weights, for example model_ema or teacher; alternatives are separated by | "
        "[detected]",
        metavar="KEY",
    )
    model_prefix: str = _checkpoints(
        "",
        "prefix of the network's tensor names in the file of weights, which is removed; other tensors are ignored "
        "[detected]",
        metavar="PREFIX",
    )
    save_ckpt: bool = _checkpoints(True, "write checkpoints")
    save_ckpt_freq: int = _checkpoints(
        20, "epochs between checkpoints; the last epoch is always saved", within="[1, inf)"
    )
    save_ckpt_steps: int = _checkpoints(
        0, "optimizer steps between updates of checkpoint-latest.pd; 0: none", within="[0, inf)"
    )
    keep_last: int = _checkpoints(
        0, "numbered checkpoints to keep; older ones are removed; 0: keep all", within="[0, inf)"
    )
    max_train_step: int | None = _checkpoints(
        None, "optimizer steps after which to stop and save; the schedule still spans --epochs", within="[1, inf)"
    )
    nan_policy: Literal["stop", "skip", "rollback"] = _checkpoints(
        "stop",
        "response to a loss or gradient that is not finite: stop; skip the update; or rollback: reload the newest "
        "checkpoint and continue with the next images",
    )

    data_path: str = _data(
        "",
        "folder (DIR/train/CLASS/*.jpg, DIR/CLASS/*.jpg or DIR/*.jpg), list file, tar, zip or Parquet files",
        metavar="PATH",
    )
    input_size: tuple[int, ...] = _data((224,), "image side in pixels, or height and width", within="[1, inf)")
    crop_ratio: tuple[float, float] = _data(
        (3 / 4, 4 / 3), "smallest and largest width / height of a crop of training", within="(0, inf)"
    )
    image_backend: Literal["pil", "opencv"] = _data(
        "pil", "decoder and resizer: pil gives the pixels of the original code, opencv is faster"
    )
    bad_image: Literal["error", "skip"] = _data(
        "error",
        "response to an image that cannot be decoded: error ends the run; skip uses another image in training and "
        "leaves the image out of evaluation",
    )
    check_data: bool = _data(True, "check the headers of all image files before the first update")
    in_chans: int | None = _data(None, pixels.IN_CHANS, within=f"[1, {pixels.MAX_CHANNELS}]")
    bands: tuple[int, ...] | None = _data(None, pixels.BANDS, within="[1, inf)", metavar="BAND")
    pixel_range: tuple[str, ...] | None = _data(None, pixels.PIXEL_RANGE, metavar="VALUE")
    mean: tuple[float, ...] | None = _data(None, pixels.MEAN, metavar="VALUE")
    std: tuple[float, ...] | None = _data(None, pixels.STD, within="(0, inf)", metavar="VALUE")
    stats: str = _data("", pixels.STATS, metavar="FILE")
    tile: int = _data(0, pixels.TILE, within="[0, inf)", metavar="SIDE")
    num_workers: int | None = _data(
        None, "loader processes per training process [up to 10, limited by the CPU cores]", within="[0, inf)"
    )
    worker_timeout: float = _data(
        300.0, "seconds a loader process may take for one image; 0: unlimited", within="[0, inf)", metavar="SECONDS"
    )

    patch_size: int | None = _network(None, "patch side in pixels", within="[1, inf)")
    embed_dim: int | None = _network(None, "encoder width", within="[1, inf)")
    depth: int | None = _network(None, "encoder blocks", within="[1, inf)")
    num_heads: int | None = _network(None, "encoder attention heads", within="[1, inf)")
    mlp_ratio: float | None = _network(
        None, "hidden width of each MLP divided by the width of its block", within="(0, inf)"
    )

    batch_size: int = _optimization(64, "images per process and iteration", within="[1, inf)")
    accum_iter: int = _optimization(1, "iterations whose gradients form one optimizer step", within="[1, inf)")
    epochs: int = _optimization(400, "epochs to train", within="[1, inf)")
    warmup_epochs: float = _optimization(40.0, "epochs of linear warm-up", within="[0, inf)", metavar="N")
    blr: float | None = _optimization(
        1e-3, "base learning rate per 256 images: lr = blr * effective batch / 256", within="[0, inf)", metavar="RATE"
    )
    lr: float | None = _optimization(
        None,
        "learning rate, absolute unless the method defines it per 256 images; replaces --blr",
        within="[0, inf)",
        metavar="RATE",
    )
    min_lr: float = _optimization(0.0, "learning rate at the end of the cosine", within="[0, inf)", metavar="RATE")
    opt: Literal["adamw", "sgd", "lars", "lars_priv"] = _optimization(
        "adamw", "optimizer; sgd has Nesterov momentum; lars_priv is the LARS of BUPT-PRIV/MAE-priv"
    )
    opt_betas: tuple[float, float] = _optimization((0.9, 0.95), "AdamW betas", within="[0, 1)", metavar="BETA")
    opt_eps: float = _optimization(1e-8, "AdamW epsilon", within="(0, inf)")
    momentum: float = _optimization(0.9, "momentum of sgd and lars", within="[0, 1)")
    weight_decay: float = _optimization(
        0.05, "weight decay; 1-D parameters and biases are not decayed", within="[0, inf)"
    )
    clip_grad: float | None = _optimization(
        None, "largest global L2 norm of the gradient [no clipping]", within="(0, inf)", metavar="NORM"
    )

    amp: bool = _precision(True, "mixed precision on GPU")
    amp_level: Literal["O1", "O2"] = _precision(
        "O1", "O1: float32 weights; O2: 16-bit weights, with float32 copies in the optimizer"
    )
    amp_dtype: Literal["auto", "float16", "bfloat16"] = _precision(
        "auto", "auto: bfloat16 if the GPU supports it, else float16 with dynamic loss scaling"
    )

    deterministic: bool = _precision(
        False,
        "on GPU, use only kernels that give the same bits in every run: slower, and attention keeps its "
        "softmax weights in memory (not measured on a GPU yet); no change on CPU",
    )

    tensor_parallel: int = _parallelism(
        1,
        "processes that divide the heads and hidden columns of every block; groups of this size are data parallel",
        within="[1, inf)",
    )
    sharding_stage: int = _parallelism(
        0,
        "ZeRO stage: 1 shards the optimizer state, 2 also the gradients, 3 also the weights; 0 shards nothing",
        within="[0, 3]",
    )
    recompute: bool = _parallelism(
        False, "recompute the activations of the blocks in the backward pass instead of keeping them"
    )
    compile: bool = _parallelism(
        False,
        "trace the forward pass once and run it as a static program, with equal results up to rounding; off by default "
        "because its speed on GPUs has not been measured",
    )

    def __init_subclass__(cls) -> None:
        set_defaults(cls, cls.__dict__.get("defaults", {}))

    @classmethod
    def adapted_defaults(cls, given: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        """Return {option: (fitting value, sentence for the log or "")} for defaults that the given options rule out.

        The only such default is that of --warmup_epochs: if it exceeds the run, it becomes a tenth of the run.

        Args:
            given: the options that the user has set, by name.
        """
        epochs, default = given.get("epochs", cls.epochs), cls.warmup_epochs
        if "warmup_epochs" in given or default <= epochs:
            return {}
        warmup = epochs * SHORT_RUN_WARMUP
        return {
            "warmup_epochs": (
                warmup,
                f"the default warm-up of {default:g} epochs exceeds --epochs {epochs}: using a tenth of the "
                f"run, --warmup_epochs {warmup:g}",
            )
        }

    def sets(self, name: str) -> bool:
        """Return whether the user has set an option, to anything but None.

        In a config that was built in Python, the options that differ from their default count as set.
        """
        value = getattr(self, name)
        if value is None:
            return False
        return value != getattr(type(self), name) if self.given is None else name in self.given

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.input_size[0], self.input_size[-1]

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return self.in_chans or 3

    @property
    def is_rgb(self) -> bool:
        """True for images that are converted to 8-bit RGB."""
        return self.channels == 3 and not self.bands

    @property
    def given_rate(self) -> tuple[str, float]:
        """Option of the learning rate that the run follows, --lr or else --blr, and its value."""
        if self.lr is not None:
            return "--lr", self.lr
        assert self.blr is not None  # one of them is required
        return "--blr", self.blr

    @property
    def mask_cell(self) -> int:
        """Side in pixels of the cells that a mask hides as a whole, 1 in a run without --mask_patch_size."""
        return 1

    @property
    def stages(self) -> int:
        """Number of pipeline stages, 1 in a phase without --pipeline_parallel."""
        return 1

    @property
    def first_rate(self) -> float:
        """Learning rate at the start of the warm-up, 0 in a phase or method without --warmup_lr."""
        return 0.0

    def __post_init__(self) -> None:
        refuse_mistakes(self._contradictions())
        if self.bands:
            object.__setattr__(self, "in_chans", len(self.bands))

    def _contradictions(self) -> Iterator[str]:
        """Yield a sentence for each contradiction between options."""
        yield from pixels.input_size_contradictions(self.input_size)
        yield from pixels.channel_contradictions(self.in_chans, self.bands, self.mean, self.std)
        for name in ("crop_ratio", "crop_scale", "cutmix_minmax"):  # the last two: of some methods and phases
            low, high = getattr(self, name, None) or (0, 1)
            if low > high:
                yield f"--{name} {low:g} {high:g}: the smallest value exceeds the largest; swap them"
        if self.warmup_epochs > self.epochs:
            yield f"warmup_epochs ({self.warmup_epochs:g}) exceeds epochs ({self.epochs}); lower --warmup_epochs"
        if self.lr is None and self.blr is None:
            yield "a learning rate is needed: --lr, or --blr for one that scales with the batch"
        if self.lr is not None and self.blr is not None and type(self).blr is None:
            kind = "is per 256 images" if self.lr_per_256 else "is absolute"
            yield (
                f"--blr has no effect beside --lr ({self.lr:g}): the learning rate of method '{self.method}' {kind}; "
                "give --lr alone, or --lr none --blr to scale it with the batch"
            )
        if "/" in self.exp_name:
            yield (
                f"--exp_name {self.exp_name} contains '/': it is a prefix of file names; --output_dir sets the folder"
            )
        if self.quiet and self.json:
            yield "--quiet prints no progress and --json prints it as JSON; leave one of them out"
        if self.overwrite and self.resume:
            yield "--overwrite starts from the beginning and --resume from a checkpoint; leave one of them out"
        if self.start_epoch >= self.epochs:
            yield f"start_epoch ({self.start_epoch}) leaves nothing of --epochs {self.epochs} to train"
        if self.amp_level == "O2" and self.opt != "adamw":
            yield f"--amp_level O2 keeps float32 copies of the weights in AdamW; --opt {self.opt} has none"
        if self.compile:
            yield from self._compile_contradictions()
        if self.sharding_stage == 3 and self.clip_grad is not None:
            yield (
                "--sharding_stage 3 and --clip_grad cannot be combined: with sharded gradients the global norm is "
                "unavailable; use --sharding_stage 2"
            )

    def _compile_contradictions(self) -> Iterator[str]:
        """Yield a sentence if an option is set that --compile does not support."""
        options = {name: getattr(self, name, 1) for name in ("tensor_parallel", "pipeline_parallel")}
        conflicts = [f"--{name} {value}" for name, value in options.items() if value > 1]
        conflicts += [f"--sharding_stage {self.sharding_stage}"] if self.sharding_stage > 1 else []
        conflicts += ["--recompute"] if self.recompute else []
        if conflicts:
            yield (
                f"--compile cannot be combined with {' and '.join(conflicts)}; omit --compile or what conflicts with it"
            )


@dataclass(kw_only=True, frozen=True)
class UpdateScheduleOptions(TrainingConfig):
    """Options of a schedule that counts updates (Atten4Vis/CAE, BUPT-PRIV/MAE-priv, MAE-pytorch)."""

    warmup_steps: int = _optimization(-1, "updates of linear warm-up; replaces --warmup_epochs when positive")
    weight_decay_end: float | None = _optimization(
        None, "weight decay at the end of a cosine from --weight_decay [constant]", within="[0, inf)"
    )

    @classmethod
    def adapted_defaults(cls, given: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        """See `TrainingConfig.adapted_defaults`; the sentences are empty if --warmup_steps replaces --warmup_epochs."""
        adapted = super().adapted_defaults(given)
        if given.get("warmup_steps", cls.warmup_steps) > 0:
            return {name: (value, "") for name, (value, _) in adapted.items()}
        return adapted

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.weight_decay_end is not None and self.weight_decay == 0:
            yield "weight_decay_end needs a --weight_decay to start from; it is 0"


@dataclass(kw_only=True, frozen=True)
class PretrainConfig(TrainingConfig):
    """Options of every pre-training run."""

    phase: ClassVar[str] = "pretrain"
    frequent: ClassVar[tuple[str, ...]] = (*TrainingConfig.frequent, "initial_weights")

    initial_weights: str = _checkpoints(
        "",
        "weights to start from, of plsc_mae or of another code base; optimizer, schedule and epochs start fresh, and a "
        "resumed run does not read the file [random weights]",
        metavar="FILE",
    )
    vis_freq: int | None = _evaluation(
        None,
        "epochs between pictures of the same few images on the boards; 0: none [a tenth of --epochs]",
        within="[0, inf)",
        metavar="N",
    )
    picture_bands: tuple[int, ...] | None = _evaluation(None, pixels.PICTURE_BANDS, within="[1, inf)", metavar="BAND")
    online_probe: bool = _evaluation(
        False, "train a linear classifier on the features of every step, without changing the network; needs labels"
    )
    online_probe_lr: float = _evaluation(
        1e-3, "learning rate of the online probe (AdamW)", within="(0, inf)", metavar="RATE"
    )
    knn_freq: int = _evaluation(
        0, "epochs between k-NN evaluations and feature statistics; 0: none; needs labels", within="[0, inf)"
    )
    feature_freq: int = _evaluation(
        0,
        "epochs between measurements that need no labels: rank, uniformity and alignment of the features, and the loss "
        "beside those of trivial predictors; 0: none",
        within="[0, inf)",
        metavar="N",
    )
    knn_k: int | None = _evaluation(None, "k of the k-NN evaluation [20, or fewer for fewer images]", within="[1, inf)")
    knn_max_images: int = _evaluation(
        20000,
        "largest number of images of each set in the k-NN evaluation, balanced over the classes",
        within="[1, inf)",
    )
    eval_data_path: str = _evaluation(
        "",
        "folder or list file of validation images for --knn_freq [DATA_PATH/val] and --feature_freq [training images]",
        metavar="PATH",
    )

    @property
    def picture_epochs(self) -> int:
        """Epochs between pictures, 0 for none; by default a tenth of the run, at least 1."""
        return max(1, self.epochs // 10) if self.vis_freq is None else self.vis_freq

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.eval_data_path and not (self.knn_freq or self.feature_freq):
            yield (
                "--eval_data_path has no effect without --knn_freq or --feature_freq: pre-training evaluates nothing "
                "else"
            )


@dataclass(kw_only=True, frozen=True)
class NormOptions:
    """Epsilon of the layer norms in the blocks and, in a classifier, of the layer norm after the pooling, if any."""

    norm_eps: float | None = _network(
        None,
        "epsilon of the layer norms in the blocks and after the pooling of a classifier; weights trained by LiBai need "
        "1e-5 [1e-6]",
        within="(0, 1)",
    )
