"""Supervised training of a classifier: fine-tuning of all weights, or a probe on frozen features.

Labels are classes, sets of labels or numbers; `label_kinds` has their losses and metrics.

The code bases differ in the network, its initial weights and the schedule (`ClassifierRecipe`, one per method), and in
options (plsc_mae/config).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

from plsc_mae.config import ClassifyConfig, FinetuneConfig, LinprobeConfig, TrainingConfig
from plsc_mae.data.classes import ClassOrder
from plsc_mae.data.classify import TINY_SIDE, FinetuneAugment, evaluation_transform, linear_probe_augment
from plsc_mae.data.decode import SourceImage
from plsc_mae.data.erasing import RandomErasing, erase
from plsc_mae.data.mixup import Mixup
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.randaugment import RandAugment
from plsc_mae.data.transfer import HOST_PREFIX
from plsc_mae.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
    ResizeCenterCrop,
    Sample,
    Transform,
)
from plsc_mae.errors import CheckpointError, ConfigError, flag
from plsc_mae.methods import load_recipe
from plsc_mae.methods.base import LABEL, OUTPUT, Batch, StepOutput, Task
from plsc_mae.methods.label_kinds import Classes, LabelKind, stored_kind
from plsc_mae.methods.memory_outline import FLOAT32, MemoryOutline, Stack
from plsc_mae.models import registry
from plsc_mae.models.classifier import AttentiveBlock, ImageClassifier
from plsc_mae.models.registry import ENCODER_OPTIONS, create_model, require_network
from plsc_mae.optim import (
    VIT_NO_DECAY,
    ParamGroup,
    Schedule,
    WeightAverage,
    layer_decay_groups,
    vit_layer,
    weight_decay_groups,
)
from plsc_mae.weights.reader import Checkpoint

CHANGED_CLASSES = (  # advice to the user whose classes changed between two starts of a run
    "resume with the classes it was trained on, or start another run with --finetune in another --output_dir"
)
AVERAGE = "model_ema"
MIX_SEED = HOST_PREFIX + "mix_seed"


class ClassifyTask(Task):
    """The task of predicting the labels of images.

    Args:
        model: the classifier.
        normalize: converts images to the classifier's floats.
        config: the options of the run.
        num_classes: number of outputs K.
        class_order: classes of the run, stored in checkpoints; None if they are unknown.
        kind: kind of the labels; None for classes.
    """

    def __init__(
        self,
        model: ImageClassifier,
        normalize: Normalize,
        config: ClassifyConfig,
        num_classes: int,
        class_order: ClassOrder | None = None,
        kind: LabelKind | None = None,
    ) -> None:
        super().__init__()
        self.model, self.normalize, self.config = model, normalize, config
        self.class_order = class_order or ClassOrder()
        self.kind = kind or Classes()
        if isinstance(self.kind, Classes) and isinstance(config, FinetuneConfig):
            self.kind.smoothing = config.smoothing
        self.score_names, self.constant_scores = self.kind.score_names, self.kind.constant_scores(num_classes)
        self.mixup = build_mixup(config, num_classes)
        self._selected: Tensor | None = None
        averaged = isinstance(config, FinetuneConfig) and config.model_ema
        self.average = WeightAverage(model, config.model_ema_decay) if averaged else None  # type: ignore[attr-defined]

    @paddle.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Return the batch for `forward`: images normalized, then erased and mixed if the batch has the draws for it.

        It is {"image": float [B, C, H, W], "target": class numbers [B], or float [B, K]}, or for cached features
        {"features": float [B, D], "target": the same}.
        """
        target = self.class_order.outputs_of(batch["label"])
        if "features" in batch:
            return {"features": batch["features"], "target": target}
        images = self.normalize(batch["image"])
        if "erase_boxes" in batch:
            images = erase(images, batch["erase_boxes"], batch["erase_noise"])
        if self.mixup is not None and MIX_SEED in batch:
            rng = np.random.default_rng(int(batch[MIX_SEED][0]))
            images, target = self.mixup(images, target, rng)
        return {"image": images, "target": target}

    def forward(self, batch: Batch) -> StepOutput:
        """Compute the loss of a batch that `prepare` returned."""
        return self.loss(self.logits(batch), batch["target"])

    def logits(self, batch: Batch) -> Any:
        """Return logits [B, K] for a batch that `prepare` returned; in a sweep a list of them, one per rate."""
        return self.model.classify(batch["features"]) if "features" in batch else self.model(batch["image"])

    def loss(self, logits: Tensor, target: Tensor) -> StepOutput:
        """Return the output for logits [B, K] and a target from `prepare`; the loss is also the only value to log."""
        loss = self.kind.loss(logits, target)
        return StepOutput(loss, {"loss": loss.detach()})

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """Return the result of `scores_of` for a batch of the loader."""
        return self.scores_of(self.logits(self.prepare(batch)), self.class_order.outputs_of(batch["label"]))

    def scores_of(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `LabelKind.scores` of logits [B, K] and labels, with the logits as `OUTPUT` and the labels as `LABEL`.

        After `select_outputs`, these are the logits of the selected outputs only.
        """
        if self._selected is not None:
            logits = paddle.index_select(logits, self._selected, axis=1)
        return {**self.kind.scores(logits, labels), OUTPUT: logits, LABEL: labels}

    def select_outputs(self, outputs: npt.NDArray[np.int64] | None) -> None:
        """Restrict `scores` to the outputs with indices `outputs` [C]; None lifts the restriction.

        Under the restriction, label i means the output `outputs[i]`.
        """
        self._selected = None if outputs is None else paddle.to_tensor(outputs)

    @property
    def gathers_outputs(self) -> bool:
        """True unless the labels are classes."""
        return self.kind.dense

    def metrics(self, outputs: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> dict[str, float]:
        """Return the metrics of a data set, see `LabelKind.metrics`."""
        return self.kind.metrics(outputs, labels)

    def schedule(self, config: TrainingConfig, lr: float, updates_per_epoch: int) -> Schedule:
        """Return the schedule of `Task.schedule`; in fine-tuning that of the recipe's `finetune_schedule`, if any."""
        make = load_recipe(config.method).finetune_schedule
        if make is None or not isinstance(config, FinetuneConfig):
            return super().schedule(config, lr, updates_per_epoch)
        return make(config, lr, updates_per_epoch)

    def param_groups(self, weight_decay: float) -> list[ParamGroup]:
        """Group the trainable parameters, in fine-tuning also by layer; vectors and biases have no weight decay.

        In fine-tuning, the encoder's class token, register tokens and position table have none either, nor have the
        relative position biases with --disable_weight_decay_on_rel_pos_bias.
        """
        named = list(self.model.named_parameters())
        if not isinstance(self.config, FinetuneConfig):
            return weight_decay_groups(named, weight_decay)
        depth, no_decay = len(self.model.encoder.blocks), set(VIT_NO_DECAY)
        if not self.config.decay_relative_positions:
            no_decay |= {name for name, _ in named if name.endswith("relative_position_bias_table")}
        layer_of = functools.partial(vit_layer, depth=depth)
        return layer_decay_groups(named, weight_decay, self.config.layer_decay, layer_of, depth + 2, no_decay)

    def after_step(self) -> None:
        """Update the averaged weights, if there are any."""
        if self.average is not None:
            self.average.update()

    def memory_outline(self, batch_size: int, *, gpu: bool) -> MemoryOutline:
        """Return the outline: the encoder over whole images, frozen in probes, and attentive blocks, if any."""
        model, encoder = self.model, self.model.encoder
        tokens, width, tuned = encoder.num_patches + encoder.num_prefix_tokens, encoder.embed_dim, model.probe == "none"
        images = FLOAT32 * batch_size * encoder.in_chans * encoder.img_size[0] * encoder.img_size[1]
        head = 2 * FLOAT32 * batch_size * (width + model.num_classes)
        # Attentive blocks normalize keys and values separately; in a pipeline only the last stage has them.
        attentive = [layer for layer in model.sublayers() if isinstance(layer, AttentiveBlock)]
        inputs = FLOAT32 * batch_size * tokens * width
        return MemoryOutline(
            stacks=(
                Stack(encoder.blocks, tokens, tokens, gradient=tuned, biased=encoder.rel_pos_bias is not None),
                Stack(attentive, 1, tokens),
            ),
            batch=images + images // FLOAT32,  # normalized, and as uint8
            prepare=3 * images,
            # input of the patch embedding; inputs of the final norm and of the pooling
            kept=head + len(attentive) * inputs + (images + 2 * inputs if tuned else 0),
            working=head + images,
        )

    def extra_state(self) -> dict[str, Any]:
        """Return the class names, the kind of labels unless they are classes, and the averaged weights if any."""
        average = {} if self.average is None else {AVERAGE: self.average.state()}
        return {"classes": list(self.class_order.names), **self.kind.state(), **average}

    def load_extra_state(self, stored: Checkpoint) -> None:
        """Adopt the checkpoint's order of classes or statistics of labels, and its averaged weights if any."""
        balanced, before = self.config.balance_classes, bool(stored.meta.get("args", {}).get("balance_classes"))
        if balanced != before:
            use, remedy = ("with", "give it") if before else ("without", "leave it out")
            raise CheckpointError(
                f"{stored.path} was trained {use} --balance_classes, so another metric chose its best checkpoint; "
                f"{remedy}, or start another run from the file with --finetune"
            )
        self.kind.restore(stored_kind(stored.meta, stored.path), stored.path)
        self.class_order.restore(stored.meta.get("classes"), stored.path, CHANGED_CLASSES)
        if self.average is None:
            return
        prefix = AVERAGE + "/"
        state = {name[len(prefix) :]: x for name, x in stored.tensors.items() if name.startswith(prefix)}
        if not state:
            raise CheckpointError(f"{stored.path} has no averaged weights; resume without --model_ema")
        self.average.load(state)


def build_mixup(config: ClassifyConfig, num_classes: int) -> Mixup | None:
    """Return the mixup and CutMix of the options; None if both are off, as they always are in linear probing."""
    if not isinstance(config, FinetuneConfig) or not (config.mixup or config.cutmix or config.cutmix_minmax):
        return None
    return Mixup(
        num_classes,
        config.mixup,
        config.cutmix,
        config.cutmix_minmax,
        config.mixup_prob,
        config.mixup_switch_prob,
        config.mixup_mode,
        config.smoothing,
    )


class WithMixSeed:
    """A transform that adds `MIX_SEED`, int64, drawn last; the first sample's seed determines the batch's mixing."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Return the transformed sample with a seed that is drawn after it."""
        return {**self.transform(image, rng), MIX_SEED: np.asarray(rng.integers(2**62), np.int64)}


def crops_by_area(config: ClassifyConfig) -> bool:
    """Return whether training images get crops of random area and aspect ratio, see --crop_scale and --crop_ratio.

    Small inputs of fine-tuning are padded and cropped instead; --cache_features encodes the evaluation crop.
    """
    if isinstance(config, FinetuneConfig):
        return max(config.image_size) > TINY_SIDE
    return not (isinstance(config, LinprobeConfig) and config.cache_features)


def train_transform(config: ClassifyConfig) -> Transform:
    """Return the augmentation of training images: `FinetuneAugment`, or a crop and flip in linear probing.

    With mixup or CutMix, the samples also have a `MIX_SEED`.

    Raises:
        ConfigError: --crop_scale or --crop_ratio is set, but inputs of this size are not cropped by area; --aa is not a
            valid policy.
    """
    size = config.image_size
    if not isinstance(config, FinetuneConfig):
        return linear_probe_augment(size, config.crop_scale, config.crop_ratio, load_recipe(config.method).probe_crop)
    for name in ("crop_scale", "crop_ratio"):
        if not crops_by_area(config) and getattr(config, name) != getattr(type(config), name):
            raise ConfigError(
                f"{flag(name)} has no effect on inputs of up to {TINY_SIDE} pixels, which are padded and cropped "
                "without resizing; leave it out"
            )
    augment = FinetuneAugment(
        size,
        config.crop_scale,
        config.crop_ratio,
        interpolation=config.train_interpolation,
        rand_augment=_rand_augment(config),
        color_jitter=config.color_jitter or 0.0,
        erasing=RandomErasing(config.reprob, config.remode, config.recount, config.channels) if config.reprob else None,
        is_rgb=config.is_rgb,
    )
    return WithMixSeed(augment) if config.mixup or config.cutmix or config.cutmix_minmax else augment


def _rand_augment(config: FinetuneConfig) -> RandAugment | None:
    """Return the RandAugment of the options, None without one.

    For images that are not RGB, it has only geometric operations; pixels from outside the image get the mean color.
    """
    if not config.rand_augment:
        return None
    if config.is_rgb:
        return RandAugment.parse(config.rand_augment)
    mean = build_normalize(config).mean.flatten().tolist()
    return replace(RandAugment.parse(config.rand_augment, mean), geometric=True)


def left_out_augmentations(config: ClassifyConfig) -> str:
    """Return a sentence about augmentations that are left out because the images are not RGB; "" without any."""
    if config.is_rgb or not isinstance(config, FinetuneConfig):
        return ""
    if config.rand_augment:
        return (
            f"{flag('aa')} {config.rand_augment}: only its geometric operations are used, because colors are defined "
            "for RGB only"
        )
    return f"{flag('color_jitter')} is left out: it is defined for RGB only" if config.color_jitter else ""


def validation_transform(config: ClassifyConfig) -> ResizeCenterCrop:
    """Return the transform of validation images."""
    return evaluation_transform(config.image_size, config.crop_pct)


def build_normalize(config: ClassifyConfig) -> Normalize:
    """Return the layer that normalizes images by --mean and --std.

    Without them, mean and std are 0.5 with --imagenet_inception_mean_and_std, else ImageNet's.
    """
    halves = config.imagenet_inception_mean_and_std
    mean, std = (INCEPTION_MEAN, INCEPTION_STD) if halves else (IMAGENET_MEAN, IMAGENET_STD)
    return Normalize.for_channels(config.channels, config.mean or mean, config.std or std)


def build_classifier(config: ClassifyConfig, num_classes: int, **parts: Any) -> ImageClassifier:
    """Build the classifier that the options name, with fresh weights.

    `parts` are further arguments of its encoder, which no option sets, see `loading.encoder.newer_parts`.

    Raises:
        ConfigError: the options name no registered classifier, or do not fit together.
    """
    require_network(config.model, registry.CLASSIFIER)
    arguments = {name: getattr(config, name) for name in ENCODER_OPTIONS}
    if isinstance(config, LinprobeConfig) or config.probe != "none":
        arguments |= {"probe": config.probe, "linear_depth": config.linear_depth}  # type: ignore[attr-defined]
    arguments = {**parts, **arguments, **load_recipe(config.method).arguments(config)}
    model = create_model(config.model, img_size=config.image_size, num_classes=num_classes, **arguments)
    return cast(ImageClassifier, model)
