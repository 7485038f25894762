"""Options of supervised training on a pre-trained encoder: fine-tuning and probing.

Names follow facebookresearch/mae main_finetune.py and main_linprobe.py, Atten4Vis/CAE, PLSC task/ssl/cae,
BUPT-PRIV/MAE-priv and pengzhiliang/MAE-pytorch. Presets are in the file of each method.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from plsc_mae.config.schema import Retired, in_group
from plsc_mae.config.training import TrainingConfig

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
# The defaults of linear probing by LARS (facebookresearch/mae), which other methods share.
LARS_PROBE = {
    "batch_size": 512,
    "epochs": 90,
    "warmup_epochs": 10.0,
    "opt": "lars",
    "opt_betas": (0.9, 0.999),
    "blr": 0.1,
    "weight_decay": 0.0,
    "drop_path": 0.0,
}

_classifier = in_group("Classifier")
_labels = in_group("Labels")
_evaluation = in_group("Evaluation")
_augmentation = in_group("Augmentation")
_finetuning = in_group("Fine-tuning")
_probe = in_group("Probe")
_parallelism = in_group("Parallelism and memory")


@dataclass(kw_only=True, frozen=True)
class ClassifyConfig(TrainingConfig):
    """Options that fine-tuning and probing share."""

    frequent: ClassVar[tuple[str, ...]] = ("finetune", *TrainingConfig.frequent, "nb_classes", "global_pool", "eval")
    aliases: ClassVar[dict[str, str]] = {
        **TrainingConfig.aliases,
        "use_mean_pooling": "global_pool",
        "eval_only": "eval",  # LiBai
    }
    negations: ClassVar[dict[str, str]] = {"cls_token": "global_pool", "use_cls": "global_pool"}
    retired: ClassVar[dict[str, Retired]] = {
        **TrainingConfig.retired,
        "resplit": Retired("no implementation reads it", takes_value=False),
        "clip_norm": Retired("no implementation reads it; use --clip_grad"),
        "model_ema_force_cpu": Retired("the averaged weights stay on the training device", takes_value=False),
        "imagenet_default_mean_and_std": Retired("ImageNet's statistics are the default", False, granted=True),
    }

    finetune: str = _classifier(
        "",
        "checkpoint of pre-training to start from; one of plsc_mae gives its sizes too [random weights]",
        metavar="FILE",
    )
    nb_classes: int | None = _classifier(None, "number of classes [as in the data]", within="[1, inf)")
    classes: str = _classifier(
        "",
        "text file with the class names of the classifier given by --resume with --eval or by --finetune, one per line "
        "in the order of its outputs [those in the checkpoint]",
        metavar="FILE",
    )
    global_pool: bool = _classifier(True, "classify the mean of the patch tokens; else the class token")
    drop_path: float = _classifier(0.1, "stochastic depth rate of the last block", within="[0, 1)", metavar="RATE")

    task: Literal["classification", "multilabel", "regression"] | None = _labels(
        None,
        "kind of labels: a class per image; several labels of 0 or 1; numbers. The latter two come from train.csv and "
        "val.csv in DATA_PATH, or from CSV files [classification; with --eval, the checkpoint's]",
    )
    label_columns: tuple[str, ...] | None = _labels(
        None, "columns of the CSV files that are labels [all after the first, which has the paths]", metavar="NAME"
    )
    train_fraction: float = _labels(
        1.0,
        "share of the training images of every class to train on, chosen by --seed; at least one image per class",
        within="(0, 1]",
        metavar="SHARE",
    )
    balance_classes: bool = _labels(
        False,
        "draw every class equally often, in an epoch of the same length; checkpoint-best.pd then has the best "
        "test_balanced_acc",
    )

    data_set: Literal["IMNET", "image_folder", "CIFAR"] = _evaluation(
        "IMNET", "IMNET, image_folder: image folders or list files; CIFAR: its binary version in DATA_PATH"
    )
    eval_data_path: str = _evaluation("", "folder or list file of validation images [DATA_PATH/val]", metavar="PATH")
    eval: bool = _evaluation(False, "evaluate the checkpoint given by --resume or --finetune, then exit")
    eval_set: (
        Literal["imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2", "imagenet-real", "imagenet-c", "shared"]
        | None
    ) = _evaluation(
        None,
        "with --eval: the published set of ImageNet-1k in EVAL_DATA_PATH or DATA_PATH, whose rule for classes applies; "
        "shared: any set, evaluated on the classes that it shares with the classifier",
    )
    real_labels: str = _evaluation(
        "", "labels of --eval_set imagenet-real [real.json in the folder of the images]", metavar="FILE"
    )
    save_path: str = _evaluation(
        "", "with --eval: folder for metrics.json, tables (CSV) and evaluation.png", metavar="DIR"
    )
    dist_eval: bool = _evaluation(
        True, "divide the validation images among the processes; else every process evaluates all of them"
    )
    disable_eval_during_finetuning: bool = _evaluation(False, "train without evaluation")
    crop_pct: float | None = _evaluation(
        None,
        "resize the shorter side to input size / crop_pct before the center crop [224/256 up to 224, else 1]",
        within="(0, 1]",
    )
    imagenet_inception_mean_and_std: bool = _evaluation(
        False, "normalize images by mean and std 0.5 instead of ImageNet's statistics"
    )

    crop_scale: tuple[float, float] = _augmentation(
        (0.08, 1.0), "smallest and largest fraction of the image area in a crop of training", within="(0, 1]"
    )

    pipeline_parallel: int = _parallelism(1, "pipeline stages, each with its own processes", within="[1, inf)")
    micro_batches: int | None = _parallelism(
        None, "micro-batches into which a batch is divided for the pipeline [2 per stage]", within="[1, inf)"
    )

    @property
    def label_task(self) -> str:
        """Value of --task, or "classification" without it; an evaluation uses the kind in the checkpoint instead."""
        return self.task or "classification"

    @property
    def stages(self) -> int:
        """Number of pipeline stages."""
        return self.pipeline_parallel

    @property
    def probe(self) -> str:
        """Kind of probe; "none" in fine-tuning."""
        return "none"

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.micro_batches is not None and self.pipeline_parallel == 1:
            yield "--micro_batches divides a batch for a pipeline; give --pipeline_parallel with it"
        if self.probe != "none" and self.batch_size == 1 and not self.eval:
            yield (
                "--batch_size 1 is too small for a probe: its batch norm takes mean and variance over the images of a "
                "batch in one process; give --batch_size 2 or more, better 16"
            )
        if self.eval and not (self.resume or self.finetune):
            yield "--eval needs a classifier to evaluate: --resume FILE"
        if self.classes and not self.eval and (self.probe != "none" or not self.finetune):
            yield (
                "--classes names the outputs of a trained classifier, but this run starts without one: leave it out or "
                "give --eval or, in fine-tuning, --finetune FILE with it; the classes of a list file are named by "
                "classes.txt beside it"
            )
        if self.eval and self.disable_eval_during_finetuning:
            yield "--eval and --disable_eval_during_finetuning cannot be combined; leave one of them out"
        yield from self._label_contradictions()
        yield from self._evaluation_contradictions()

    def _label_contradictions(self) -> Iterator[str]:
        """Yield a sentence for each option that does not fit the kind of labels."""
        if self.label_task != "classification":
            for name in ("nb_classes", "classes", "balance_classes", "eval_set"):
                if getattr(self, name):
                    yield f"--{name} is about classes, but --task {self.task} has none; leave it out"
            if self.data_set == "CIFAR":
                yield f"--data_set CIFAR has classes only; leave out --task {self.task}"
        elif self.label_columns and not self.eval:
            yield "--label_columns chooses labels of --task multilabel or regression; give --task with it"

    def _evaluation_contradictions(self) -> Iterator[str]:
        """Yield a sentence for each option that --eval or --eval_set rules out, or that needs one of them."""
        for name in ("eval_set", "real_labels", "save_path"):
            if getattr(self, name) and not self.eval:
                yield f"--{name} has no effect without --eval; add --eval --resume FILE, or leave it out"
        if self.real_labels and self.eval_set != "imagenet-real":
            yield "--real_labels has no effect without --eval_set imagenet-real"
        if self.eval_set and self.data_set == "CIFAR":
            yield f"--eval_set {self.eval_set} needs a folder of images; leave out --data_set CIFAR"
        if self.eval and self.train_fraction < 1:
            yield "--train_fraction has no effect with --eval, which does not train; give --train_fraction 1"


@dataclass(kw_only=True, frozen=True)
class FinetuneConfig(ClassifyConfig):
    """Options of fine-tuning."""

    phase: ClassVar[str] = "finetune"
    frequent: ClassVar[tuple[str, ...]] = (*ClassifyConfig.frequent, "layer_decay", "mixup", "cutmix")

    layer_decay: float = _finetuning(
        0.75, "factor of the learning rate from each layer to the one before it", within="(0, 1]", metavar="RATE"
    )
    model_ema: bool = _finetuning(False, "also keep and evaluate a moving average of the weights")
    model_ema_decay: float = _finetuning(0.9999, "decay of the moving average per update", within="[0, 1)")

    color_jitter: float | None = _augmentation(
        None, "strength of color jitter, used with --aa none [no jitter]", within="[0, inf)"
    )
    aa: str | None = _augmentation(RAND_AUGMENT, "RandAugment policy; none: no RandAugment", metavar="POLICY")
    train_interpolation: Literal["bicubic", "bilinear", "random"] = _augmentation(
        "bicubic", "filter of the crop; random: bilinear or bicubic for each image"
    )
    smoothing: float = _augmentation(0.1, "label smoothing", within="[0, 1)")
    reprob: float = _augmentation(0.25, "probability of random erasing", within="[0, 1]", metavar="P")
    remode: Literal["pixel", "rand", "const"] = _augmentation(
        "pixel", "content of erased boxes: noise per pixel, one random color, zeros"
    )
    recount: int = _augmentation(1, "largest number of boxes to erase in an image", within="[1, inf)")
    mixup: float = _augmentation(0.0, "alpha of mixup; 0: no mixup", within="[0, inf)", metavar="ALPHA")
    cutmix: float = _augmentation(0.0, "alpha of CutMix; 0: no CutMix", within="[0, inf)", metavar="ALPHA")
    cutmix_minmax: tuple[float, float] | None = _augmentation(
        None, "smallest and largest side of CutMix's boxes as shares of the image; replaces --cutmix", within="[0, 1]"
    )
    mixup_prob: float = _augmentation(1.0, "probability that a batch is mixed", within="[0, 1]", metavar="P")
    mixup_switch_prob: float = _augmentation(
        0.5, "probability of CutMix instead of mixup if both are on", within="[0, 1]", metavar="P"
    )
    mixup_mode: Literal["batch", "pair", "elem"] = _augmentation(
        "batch", "draw the mixing once per batch, per pair or per image"
    )

    @property
    def decay_relative_positions(self) -> bool:
        """True if weight decay acts on the relative position tables."""
        return True

    @property
    def rand_augment(self) -> str | None:
        """Policy of RandAugment, or None without RandAugment."""
        return self.aa


@dataclass(kw_only=True, frozen=True)
class ProbeOptions(ClassifyConfig):
    """Options of the probe itself, shared by `linprobe` and by fine-tuning that can also probe (CAE)."""

    linear_type: Literal["standard", "attentive", "attentive_no_parameter"] = _probe(
        "standard",
        "standard: batch norm and a linear layer; attentive: the same after learned attention over all tokens; "
        "attentive_no_parameter: after attention without parameters",
    )
    linear_depth: int = _probe(1, "attention blocks of the attentive probe", within="[1, inf)")

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.linear_depth != 1 and self.probe != "attentive":
            yield (
                f"--linear_depth {self.linear_depth} counts the blocks of --linear_type attentive; this run trains "
                f"{'all weights' if self.probe == 'none' else f'--linear_type {self.probe}'}"
            )


@dataclass(kw_only=True, frozen=True)
class LinprobeConfig(ProbeOptions):
    """Options of `linprobe`, which always probes frozen features; base of each method's class."""

    phase: ClassVar[str] = "linprobe"
    frequent: ClassVar[tuple[str, ...]] = (*ClassifyConfig.frequent, "linear_type", "cache_features", "lr_sweep")
    retired: ClassVar[dict[str, Retired]] = {
        **ClassifyConfig.retired,
        "enable_linear_eval": Retired("this command always probes", takes_value=False, granted=True),
    }

    cache_features: bool = _probe(
        False, "encode the evaluation crop of every image once and train on these features: fast, but no augmentation"
    )
    lr_sweep: tuple[float, ...] | None = _probe(
        None,
        "train one linear layer for each of these rates, in the units of --blr or --lr, in one run",
        within="(0, inf)",
        metavar="RATE",
    )

    @property
    def probe(self) -> str:
        """Kind of probe."""
        return self.linear_type

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        if self.lr_sweep and self.label_task != "classification":
            yield f"--lr_sweep compares accuracies, but --task {self.task} has none; give one --lr or --blr"
        for name in ("cache_features", "lr_sweep"):
            if getattr(self, name) and self.linear_type == "attentive":
                yield f"--{name} needs features that do not change; --linear_type attentive trains the pooling"
        for name in ("crop_scale", "crop_ratio"):
            if self.cache_features and getattr(self, name) != getattr(type(self), name):
                yield (
                    f"--{name} has no effect with --cache_features, which encodes the evaluation crop of every image; "
                    "leave one of them out"
                )
        if self.lr_sweep and (self.clip_grad is not None or self.eval):
            other = "--eval" if self.eval else "--clip_grad"
            yield f"--lr_sweep and {other} cannot be combined: the sweep trains several classifiers at once"
        if self.lr_sweep and (self.blr if self.lr is None else self.lr) == 0:
            yield "--lr_sweep scales the schedule of --blr or --lr, which is 0; give a positive rate"


@dataclass(kw_only=True, frozen=True)
class RegularizationOptions:
    """Options of dropout and of the initial head (Atten4Vis/CAE, BUPT-PRIV/MAE-priv, MAE-pytorch)."""

    drop: float = _classifier(0.0, "dropout rate", within="[0, 1)", metavar="RATE")
    attn_drop_rate: float = _classifier(0.0, "dropout rate of attention weights", within="[0, 1)", metavar="RATE")
    init_scale: float = _classifier(0.001, "factor of the initial weights and biases of the head", within="[0, inf)")
