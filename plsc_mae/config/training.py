"""The options every training run has, one class per part of the run, in the order of the data flow.

Defaults are those of facebookresearch/mae unless a method or phase says otherwise (`redefault`). Names are the
historical ones of facebookresearch/mae, PLSC and CAE, because people paste those commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from plsc_mae.config.schema import Retired, option
from plsc_mae.errors import ConfigError

_LAUNCHER = "paddle.distributed.launch starts the processes and tells each its rank"
_WANDB = "Weights & Biases is not used; log.txt, train.jsonl and VisualDL have the numbers"
_SUBMITIT = "it belongs to submitit's Slurm launcher; see docs/parallelism.md for the launch line"

# Flags of BUPT-PRIV/MAE-priv and pengzhiliang/MAE-pytorch for services that are not used here.
DEEPSPEED = {"enable_deepspeed": Retired("DeepSpeed is PyTorch's", takes_value=False)}
WANDB = {
    "log_wandb": Retired(_WANDB, takes_value=False),
    "no_log_wandb": Retired(_WANDB, takes_value=False),
    "wandb_project": Retired(_WANDB),
    "wandb_entity": Retired(_WANDB),
}


@dataclass(kw_only=True, frozen=True)
class RunConfig:
    """Run: where it writes, how it continues."""

    output_dir: str = option("./output_dir", "folder for checkpoints, config.yaml, log.txt and train.jsonl")
    log_dir: str | None = option(None, "folder for VisualDL records; the output folder when not given")
    exp_name: str = option("", "prefix of the checkpoint names: {exp_name}_checkpoint-{epoch}.pd")
    device: Literal["auto", "cpu", "gpu", "cuda"] = option("auto", "where to compute; auto: a GPU if there is one")
    seed: int = option(0, "seed of the weights, the order, the crops and the masks", within="[0, inf)")
    resume: str = option("", "checkpoint file to continue from")
    auto_resume: bool = option(
        False, "continue from the newest valid checkpoint in the output folder, if there is one; --resume goes first"
    )
    start_epoch: int = option(0, "first epoch of a run that resumes nothing", within="[0, inf)")
    save_ckpt_freq: int = option(20, "epochs between checkpoints; the last epoch is always saved", within="[1, inf)")
    save_ckpt_steps: int = option(
        0, "also save checkpoint-latest.pd every so many optimizer steps; 0 does not", within="[0, inf)"
    )
    max_train_step: int | None = option(
        None, "stop after so many optimizer steps and save; the schedule still spans --epochs", within="[1, inf)"
    )
    save_ckpt: bool = option(True, "write checkpoints")
    keep_last: int = option(
        0, "keep so many of the newest numbered checkpoints and remove older ones; 0 keeps all", within="[0, inf)"
    )
    nan_policy: Literal["stop", "skip", "rollback"] = option(
        "stop",
        "when loss or gradients are not finite: stop; skip that update; or rollback: take the weights of the newest "
        "checkpoint and leave out the images since",
    )
    print_freq: int = option(20, "iterations between log lines", within="[1, inf)")


@dataclass(kw_only=True, frozen=True)
class DataConfig:
    """Data: which images, how they are read."""

    data_path: str = option("", "image folder (DIR/train/CLASS/*.jpg, DIR/CLASS/*.jpg or DIR/*.jpg) or list file")
    input_size: tuple[int, ...] = option((224,), "image side in pixels, or height and width", within="[1, inf)")
    image_backend: Literal["pil", "opencv"] = option(
        "pil", "decoder and resizer: pil equals the originals' pixels, opencv is faster"
    )
    bad_image: Literal["error", "skip"] = option("error", "what to do with an image that cannot be decoded")
    num_workers: int | None = option(
        None, "loader processes per training process; up to 10, by the cores at hand, when not given", within="[0, inf)"
    )
    worker_timeout: float = option(
        300.0, "seconds a loader process may take to read one image; 0: any time", within="[0, inf)"
    )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.input_size[0], self.input_size[-1]


@dataclass(kw_only=True, frozen=True)
class OptimConfig:
    """Optimization: batch, learning rate, optimizer, mixed precision."""

    batch_size: int = option(64, "images per process and iteration", within="[1, inf)")
    accum_iter: int = option(1, "iterations whose gradients are accumulated into one optimizer step", within="[1, inf)")
    epochs: int = option(400, "passes over the data", within="[1, inf)")
    warmup_epochs: float = option(40.0, "epochs of linear warm-up from 0", within="[0, inf)")
    blr: float | None = option(
        1e-3, "base learning rate per 256 images: lr = blr * effective batch / 256", within="[0, inf)"
    )
    lr: float | None = option(None, "absolute learning rate; replaces blr", within="[0, inf)")
    min_lr: float = option(0.0, "learning rate at the end of the cosine", within="[0, inf)")
    opt: Literal["adamw", "sgd", "lars", "lars_priv"] = option(
        "adamw", "optimizer; sgd: with Nesterov momentum; lars_priv: LARS as BUPT-PRIV/MAE-priv has it"
    )
    opt_betas: tuple[float, float] = option((0.9, 0.95), "AdamW betas", within="[0, 1)")
    opt_eps: float = option(1e-8, "AdamW epsilon", within="(0, inf)")
    momentum: float = option(0.9, "momentum of sgd and lars", within="[0, 1)")
    weight_decay: float = option(0.05, "weight decay; 1-D parameters and biases have none", within="[0, inf)")
    clip_grad: float | None = option(
        None, "largest global L2 norm of the gradient; not clipped when not given", within="(0, inf)"
    )
    amp: bool = option(True, "mixed precision on GPU")
    amp_level: Literal["O1", "O2"] = option(
        "O1", "O1: weights in float32; O2: weights in 16 bits, with float32 copies in the optimizer"
    )
    amp_dtype: Literal["auto", "float16", "bfloat16"] = option(
        "auto", "auto: bfloat16 where the GPU has it, else float16 with dynamic loss scaling"
    )


@dataclass(kw_only=True, frozen=True)
class ParallelOptions:
    """Parallelism: how the processes share the network, and what is computed twice to save memory."""

    tensor_parallel: int = option(
        1,
        "processes that share the heads and hidden columns of every block; the others share the data",
        within="[1, inf)",
    )
    sharding_stage: int = option(
        0,
        "ZeRO: what the processes share out: 1 optimizer state, 2 gradients too, 3 weights too; 0 nothing",
        within="[0, 3]",
    )
    recompute: bool = option(
        False, "compute the blocks' activations again in the backward pass instead of keeping them"
    )


@dataclass(kw_only=True, frozen=True)
class EncoderSizeOptions:
    """Encoder sizes that replace the named model's."""

    patch_size: int | None = option(None, "patch side in pixels", within="[1, inf)")
    embed_dim: int | None = option(None, "encoder width", within="[1, inf)")
    depth: int | None = option(None, "encoder blocks", within="[1, inf)")
    num_heads: int | None = option(None, "encoder attention heads", within="[1, inf)")
    mlp_ratio: float | None = option(None, "hidden width of the MLPs over the width of their block", within="(0, inf)")


@dataclass(kw_only=True, frozen=True)
class NormOptions:
    """Layer norms that differ from those of the named model."""

    norm_eps: float | None = option(
        None, "eps of the blocks' layer norms [1e-6]; 1e-5 for weights trained by LiBai", within="(0, 1)"
    )


@dataclass(kw_only=True, frozen=True)
class UpdateScheduleOptions:
    """Schedule by updates (Atten4Vis/CAE, BUPT-PRIV/MAE-priv, MAE-pytorch)."""

    warmup_steps: int = option(-1, "updates of linear warm-up; replaces --warmup_epochs when positive")
    weight_decay_end: float | None = option(
        None, "weight decay at the end of a cosine from --weight_decay; constant when not given", within="[0, inf)"
    )


@dataclass(kw_only=True, frozen=True)
class TrainingConfig(ParallelOptions, OptimConfig, DataConfig, RunConfig):
    """What every training run has; a method's config for a phase extends it.

    Attributes:
        method: whose recipe it is.
        phase: the kind of training.
        models: shell patterns of the model names that mean this method.
        lr_per_256: whether `lr` is a rate per 256 images that scales with the batch, as `blr` does.
    """

    method: ClassVar[str] = ""
    phase: ClassVar[str] = ""
    models: ClassVar[tuple[str, ...]] = ()
    lr_per_256: ClassVar[bool] = False
    aliases: ClassVar[dict[str, str]] = {"update_freq": "accum_iter", "save_freq": "save_ckpt_freq"}
    negations: ClassVar[dict[str, str]] = {}
    retired: ClassVar[dict[str, Retired]] = {
        "world_size": Retired(_LAUNCHER),
        "local_rank": Retired(_LAUNCHER),
        "dist_url": Retired(_LAUNCHER),
        "dist_on_itp": Retired(_LAUNCHER, takes_value=False),
        "pin_mem": Retired("Paddle's loader decides about pinned memory itself", takes_value=False),
        "no_pin_mem": Retired("Paddle's loader decides about pinned memory itself", takes_value=False),
        "ngpus": Retired(_SUBMITIT),
        "nodes": Retired(_SUBMITIT),
        "timeout": Retired(_SUBMITIT),
        "job_dir": Retired(_SUBMITIT),
        "partition": Retired(_SUBMITIT),
        "use_volta32": Retired(_SUBMITIT, takes_value=False),
        "comment": Retired(_SUBMITIT),
        "warmup_lr": Retired("the warm-up starts from 0 in every implementation"),
        "enable_multi_print": Retired("the launcher writes a log for every process", takes_value=False),
        "debug": Retired("no implementation reads it", takes_value=False),
    }

    model: str = option("", "registered model name; it decides the method")

    def __post_init__(self) -> None:
        if len(self.input_size) > 2:
            raise ConfigError(f"input_size: expected one side or height and width, got {self.input_size}")
        if self.warmup_epochs > self.epochs:
            raise ConfigError(f"warmup_epochs ({self.warmup_epochs:g}) exceeds epochs ({self.epochs})")
        if self.lr is None and self.blr is None:
            raise ConfigError("a learning rate is needed: --lr, or --blr for one that scales with the batch")
        if self.lr is not None and self.blr is not None and type(self).blr is None:
            kind = "is per 256 images" if self.lr_per_256 else "is absolute"
            raise ConfigError(
                f"--blr has no effect beside --lr ({self.lr:g}): the learning rate of method '{self.method}' {kind}; "
                "give --lr alone, or --lr none --blr to scale it with the batch"
            )
        if self.start_epoch >= self.epochs:
            raise ConfigError(f"start_epoch ({self.start_epoch}) leaves nothing of {self.epochs} epochs to train")
        if self.amp_level == "O2" and self.opt != "adamw":
            raise ConfigError(f"--amp_level O2 keeps float32 copies of the weights in AdamW; --opt {self.opt} has none")
        if self.sharding_stage == 3 and self.clip_grad is not None:
            raise ConfigError("--sharding_stage 3 and --clip_grad exclude each other: nobody knows the norm there")
        if getattr(self, "weight_decay_end", None) is not None and self.weight_decay == 0:
            raise ConfigError("weight_decay_end needs a --weight_decay to start from; it is 0")


@dataclass(kw_only=True, frozen=True)
class PretrainConfig(TrainingConfig):
    """What every pre-training method shares."""

    phase: ClassVar[str] = "pretrain"

    vis_freq: int = option(20, "epochs between pictures of a fixed panel in VisualDL; 0 draws none", within="[0, inf)")
    online_probe: bool = option(
        False, "train a linear classifier on the features of every step, without touching the network; needs labels"
    )
    online_probe_lr: float = option(1e-3, "learning rate of the online probe (AdamW)", within="(0, inf)")
    knn_freq: int = option(
        0, "epochs between k-NN accuracies and measures of the features; 0: none; needs labels", within="[0, inf)"
    )
    knn_k: int = option(20, "neighbors that vote in it", within="[1, inf)")
    knn_max_images: int = option(
        20000, "most images of each set that are compared in it, chosen evenly from the classes", within="[1, inf)"
    )
    eval_data_path: str = option("", "its validation images: folder or list file [DATA_PATH/val]")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_data_path and not self.knn_freq:
            raise ConfigError("--eval_data_path has no effect without --knn_freq: pre-training evaluates nothing else")
