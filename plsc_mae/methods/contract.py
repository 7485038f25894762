"""The interface of a method outside the training loop: networks, transforms, weight files and descriptions.

`base.py` has the part of the interface that the training loop uses. CONTRIBUTING.md lists the files of a new method.
"""

from __future__ import annotations

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import IMAGENET_MEAN, IMAGENET_STD, clamped_crop_box
from plsc_mae.models.registry import VARIANTS
from plsc_mae.weights.dialects import NATIVE, find_dialect

if TYPE_CHECKING:
    from paddle import nn

    from plsc_mae.config import ClassifyConfig, PretrainConfig, TrainingConfig
    from plsc_mae.data.transforms import DrawBox, Transform
    from plsc_mae.methods.base import Task
    from plsc_mae.models.vit import VisionTransformer
    from plsc_mae.optim import Schedule
    from plsc_mae.weights.reader import Checkpoint

ENCODER_SIZES = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")  # options
DEFAULT_RATIO = 4.0  # hidden width of the MLPs divided by the width
DEFAULT_SIZE = 224  # image side in pixels if neither a position table nor stored options show it
Sizes = Mapping[str, Any]
ConfigT = TypeVar("ConfigT", bound="PretrainConfig")
ClassifyT = TypeVar("ClassifyT", bound="ClassifyConfig")


class Description(NamedTuple):
    """The description of a pre-training network that `plsc-mae weights inspect` prints.

    Attributes:
        holds: the network in words.
        parts: sizes of the parts behind the encoder, `{part: {name: value}}`. A part with attention has a
            "num_heads", which is None if it is unknown.
        target: the prediction target of the training.
        reconstruct_flags: flags that `plsc-mae reconstruct` needs for this file, with a leading space; "" for none.
        unknown: sentences about properties that the file does not store.
    """

    holds: str
    parts: dict[str, dict[str, Any]]
    target: str = ""
    reconstruct_flags: str = ""
    unknown: tuple[str, ...] = ()


class Reconstruction(NamedTuple):
    """The whole network as a layer for inference, without loss and targets.

    Attributes:
        layer: layer whose `forward(images, choice)` returns a list of tensors; images are normalized [B, C, H, W].
        choice: name of the second input: "noise", float32 [B, L], whose largest values hide their patches; or "mask",
            bool [B, L], True = hidden.
        num_hidden: number of hidden patches of an image. Some networks give wrong results for a "mask" that hides
            another number.
        outputs: name and description of every output, in order.
    """

    layer: nn.Layer
    choice: Literal["noise", "mask"]
    num_hidden: int
    outputs: Mapping[str, str]


class PublishedSpeed(NamedTuple):
    """The published speed of a pre-training run, which `plsc-mae doctor --gpu` compares with this machine's.

    Attributes:
        recipe: config file of the run, for reference.
        images_per_second: images per second and GPU, with loading.
        gpu: part of the GPU's name as the driver reports it.
        source: where the speed is published.
        options: options of the recipe; where the recipe reads files, replacements that read none.
        small: further options for a network so small that a CPU computes an update in a fraction of a second.
    """

    recipe: str
    images_per_second: float
    gpu: str
    source: str
    options: Mapping[str, Any]
    small: Mapping[str, Any]


class Method(ABC, Generic[ConfigT]):
    """A pre-training method.

    Every `Checkpoint` argument below has its network in the base naming of its dialect, see `weights.convert.decoded`.

    Attributes:
        config_class: class of its options.
        network: name of its network in `plsc-mae weights inspect`, the same for methods with the same network.
        network_tensors: plsc_mae's names of parameters that the whole network has and its encoder alone lacks.
        dialects: foreign dialects whose files hold this network or its encoder.
        stored_options: options that cannot be inferred from tensors, but are stored with them by other code bases:
            `{our name: their names}`.
        tokenizer_option: option with the path of a tokenizer; empty for methods without a tokenizer.
        parity: module in `plsc_mae.parity.networks` that checks this network; empty if there is no such module.
        published_speed: a published speed of its training on GPUs; None without one.
    """

    config_class: type[ConfigT]
    network: str
    network_tensors: tuple[str, ...]
    dialects: frozenset[str] = frozenset()
    stored_options: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    tokenizer_option: str = ""
    parity: str = ""
    published_speed: PublishedSpeed | None = None

    # ------------------------------------------------------------------------------------------- training

    @abstractmethod
    def build_task(self, config: ConfigT) -> Task:
        """Build the Task with fresh weights.

        Raises:
            ConfigError: an option is missing, does not fit the others or the device, or names no network of this
                method.
            CheckpointError: a file that the Task needs besides the images, such as a tokenizer, cannot be used.
        """

    def sketch_task(self, config: ConfigT) -> Task:
        """Build the Task for `plsc-mae plan` without reading files; under `paddle.LazyGuard` it has no weights."""
        return self.build_task(config)

    def log_remarks(self, config: ConfigT, task: Task) -> None:
        """Log defaults that do not suit the other options of a pre-training run, and how to change them."""

    @abstractmethod
    def build_encoder(self, config: ConfigT) -> VisionTransformer:
        """Build the encoder alone, with fresh weights.

        Raises:
            ConfigError: the options name no registered network, or do not fit together.
        """

    def normalize(self, config: ConfigT) -> Normalize:
        """Return the layer that normalizes images by --mean and --std, else by ImageNet's statistics.

        If the images do not have three channels, ImageNet's are averaged, see `pixels.per_channel`.
        """
        if config.mean is None or config.std is None:
            return Normalize.for_channels(config.channels, IMAGENET_MEAN, IMAGENET_STD)
        return Normalize.for_channels(config.channels, config.mean, config.std)

    @abstractmethod
    def train_transform(self, config: ConfigT) -> Transform:
        """Return the transform from an image to a training sample."""

    @abstractmethod
    def view_transform(self, config: ConfigT) -> Transform:
        """Return the transform for pictures: without random crop and flip, but with a random mask."""

    @abstractmethod
    def forward_macs(self, config: ConfigT, task: Task) -> int:
        """Count the multiply-accumulates of one image's forward pass as the original computes it.

        A tokenizer is not counted. Our training may compute a little less, see `MaskedAutoencoder.forward_macs`.
        """

    @abstractmethod
    def training_macs(self, config: ConfigT, task: Task) -> int:
        """Count the multiply-accumulates of one image's forward and backward pass, on the basis of `forward_macs`.

        The backward pass counts twice its forward pass; parts without gradient have no backward pass.
        """

    # ------------------------------------------------------------------------------------------- weight files

    def has_network(self, stored: Checkpoint) -> bool:
        """Return whether a file holds the whole network, that is, all of `network_tensors`."""
        foreign_name = find_dialect(stored.dialect).foreign_name
        return all(foreign_name(name) in stored.model for name in self.network_tensors)

    def recognizes(self, stored: Checkpoint) -> bool:
        """Return whether a file without plsc_mae's options may belong to this method.

        The methods are asked in the order of `load_methods`; the file belongs to the first that returns True.
        """
        return stored.dialect in self.dialects or (stored.dialect == NATIVE.name and self.has_network(stored))

    @abstractmethod
    def infer_arguments(self, stored: Checkpoint) -> dict[str, Any]:
        """Infer the network's arguments from the tensors of a file.

        Returns:
            Network arguments by name. Some are None if the tensors do not determine them, such as `img_size`, numbers
            of heads and the sizes of a missing decoder.

        Raises:
            CheckpointError: a part is missing, or a tensor has a shape that the network cannot have.
        """

    @abstractmethod
    def config_of(self, arguments: dict[str, Any]) -> ConfigT:
        """Return the options of the network with these arguments.

        Args:
            arguments: result of `infer_arguments`, updated by options stored in the file. Entries that are None, or
                that are not options of this method, are ignored.
        """

    def build_network(self, config: ConfigT, stored: Checkpoint) -> nn.Layer:
        """Build the network that fits the tensors of a file, with fresh weights."""
        return self.build_task(config).model

    @abstractmethod
    def reconstruction(self, config: ConfigT, network: nn.Layer) -> Reconstruction:
        """Return a `network` from `build_network` as a layer for inference.

        The options of `config` determine the number of hidden patches.
        """

    @abstractmethod
    def describe(self, stored: Checkpoint, config: ConfigT | None) -> Description:
        """Return the description of the network in a file.

        Args:
            stored: a file for which `has_network` is true.
            config: options of the network, or None if they cannot be inferred.
        """

    def huggingface_settings(self, network: nn.Layer) -> dict[str, Any]:
        """Return the decoder's entries of a Hugging Face config.json; if empty, the file describes an encoder only."""
        return {}


def _no_flags(_encoder: Sizes) -> str:
    return ""


def layer_scale_flag(encoder: Sizes) -> str:
    """Return the flag for an encoder without layer scale, with a leading space; "" for one with layer scale."""
    return "" if encoder["layer_scale"] else " --layer_scale_init_value 0"


@dataclass(frozen=True)
class ClassifierRecipe(Generic[ClassifyT]):
    """The recipe of a code base for turning a pre-trained encoder into a classifier.

    Attributes:
        arguments: maps options to arguments of `ImageClassifier`, except the sizes.
        models: shell pattern of its registered classifiers for images of 224 pixels.
        base_model: registered classifier to suggest if no registered one has the sizes of an encoder.
        flags: maps the sizes of an encoder to additional flags that its classifier needs, with a leading space; ""
            if it needs none.
        norm_into_fc_norm: whether the norm after mean pooling is loaded from the encoder's final norm.
        head_std: standard deviation of the head's weights when fine-tuning starts from a checkpoint; None keeps the
            network's own initialization.
        probe_crop: draws the random crop of linear probing.
        finetune_schedule: returns the schedule of fine-tuning for (options, peak learning rate, updates per epoch);
            None for the schedule that the options imply.
    """

    arguments: Callable[[ClassifyT], dict[str, Any]]
    models: str
    base_model: str
    flags: Callable[[Sizes], str] = _no_flags
    norm_into_fc_norm: bool = False
    head_std: float | None = None
    probe_crop: DrawBox = clamped_crop_box
    finetune_schedule: Callable[[Any, float, int], Schedule] | None = None

    def size_options(self, encoder: Sizes) -> dict[str, Any]:
        """Return the options {name: value} of a classifier of an encoder's sizes.

        They are `model`, the nearest registered network, and the sizes in which the encoder differs from it. A number
        of heads that is unknown differs, with the value None. The nearest network differs in the fewest sizes; of
        several, it is the one of the nearest width.
        """
        wanted = {name: encoder[name] for name in ENCODER_SIZES if name in encoder}
        named = {name: sizes_of_model(name) for name in (self.base_model, *fnmatch.filter(VARIANTS, self.models))}

        def distance(name: str) -> tuple[int, float]:
            ratio = wanted["embed_dim"] / named[name]["embed_dim"]
            return len(wanted.items() - named[name].items()), abs(math.log(ratio))

        model = min(named, key=distance)
        return {"model": model, **{name: value for name, value in wanted.items() if named[model][name] != value}}


def sizes_of_model(name: str) -> dict[str, Any]:
    """Return {option: value} of `ENCODER_SIZES` for a registered network."""
    arguments = {"mlp_ratio": DEFAULT_RATIO, **VARIANTS[name].arguments}
    return {size: arguments[size] for size in ENCODER_SIZES}


def describe_changes(config: TrainingConfig) -> str:
    """Return the sizes of a run's encoder that differ from those of --model, in brackets after a space, or "".

    For example: ` (changed to patch_size 8, embed_dim 64, depth 4, num_heads 4)`.
    """
    given = {name: getattr(config, name) for name in ENCODER_SIZES}
    own = sizes_of_model(config.model)
    changed = ", ".join(f"{name} {size:g}" for name, size in given.items() if size not in (None, own[name]))
    return f" (changed to {changed})" if changed else ""
