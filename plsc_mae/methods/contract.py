"""The contract of a method outside the training loop: networks, transforms, weight files and descriptions.

`base.py` has the part of the contract that the training loop uses. CONTRIBUTING.md lists the files of a new method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import clamped_crop_box
from plsc_mae.weights.dialects import NATIVE, find_dialect

if TYPE_CHECKING:
    from paddle import nn

    from plsc_mae.config import ClassifyConfig, PretrainConfig
    from plsc_mae.data.transforms import DrawBox, Transform
    from plsc_mae.methods.base import Task
    from plsc_mae.models.vit import VisionTransformer
    from plsc_mae.optim import Schedule
    from plsc_mae.weights.reader import Checkpoint

DEFAULT_SIZE = 224  # image side where neither a position table nor stored options give one
Sizes = Mapping[str, Any]
ConfigT = TypeVar("ConfigT", bound="PretrainConfig")
ClassifyT = TypeVar("ClassifyT", bound="ClassifyConfig")


class Description(NamedTuple):
    """A pre-training network as `plsc-mae weights inspect` prints it.

    Attributes:
        holds: the network in words.
        parts: sizes of every part besides the encoder, `{part: {name: value}}`. A part with attention has
            "num_heads", None if the file does not store it.
        target: the prediction target of its training.
        reconstruct_flags: flags that `plsc-mae reconstruct` needs for this file, with a leading space.
        unknown: a sentence for every property that the file does not store.
    """

    holds: str
    parts: dict[str, dict[str, Any]]
    target: str = ""
    reconstruct_flags: str = ""
    unknown: tuple[str, ...] = ()


class Method(ABC, Generic[ConfigT]):
    """A pre-training method.

    Files reach a method in the base naming of their dialect, see `weights.convert.decoded`.

    Attributes:
        config_class: its options.
        network: name of its kind of network in `plsc-mae weights inspect`. Methods that share a network share it.
        network_tensors: parameters, by our names, of the network and not of its encoder alone.
        dialects: foreign dialects whose files hold this network or its encoder.
        stored_options: options that tensors do not show and other code bases store beside them: `{our name: their
            names}`.
        tokenizer_option: option that takes the file of a tokenizer; empty without one.
        parity: module below `plsc_mae.parity.networks` that checks this network; empty without one.
    """

    config_class: type[ConfigT]
    network: str
    network_tensors: tuple[str, ...]
    dialects: frozenset[str] = frozenset()
    stored_options: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    tokenizer_option: str = ""
    parity: str = ""

    # ------------------------------------------------------------------------------------------- training

    @abstractmethod
    def build_task(self, config: ConfigT) -> Task:
        """Build the Task with fresh weights."""

    def sketch_task(self, config: ConfigT) -> Task:
        """Build the Task without reading a file, for `plsc-mae plan`; `paddle.LazyGuard` keeps it free of weights."""
        return self.build_task(config)

    @abstractmethod
    def build_encoder(self, config: ConfigT) -> VisionTransformer:
        """Build the encoder alone, with fresh weights."""

    def normalize(self, config: ConfigT) -> Normalize:
        """Return the conversion of uint8 images to the network's floats; ImageNet's statistics by default."""
        return Normalize()

    @abstractmethod
    def train_transform(self, config: ConfigT) -> Transform:
        """Return the transform from an image to a training sample."""

    @abstractmethod
    def view_transform(self, config: ConfigT) -> Transform:
        """Return the transform for inspection: no random crop, no flip; the generator still draws the mask."""

    @abstractmethod
    def forward_macs(self, config: ConfigT, task: Task) -> int:
        """Count the multiply-accumulates of one image's forward pass in training, without a tokenizer's."""

    @abstractmethod
    def training_macs(self, config: ConfigT, task: Task) -> int:
        """Count those of one image's update: the forward pass, and the backward pass at twice its price."""

    # ------------------------------------------------------------------------------------------- weight files

    def has_network(self, stored: Checkpoint) -> bool:
        """Return whether a file holds the whole network: every one of `network_tensors`."""
        foreign_name = find_dialect(stored.dialect).foreign_name
        return all(foreign_name(name) in stored.model for name in self.network_tensors)

    def recognizes(self, stored: Checkpoint) -> bool:
        """Return whether a file without options of this suite belongs to this method; the first method wins."""
        return stored.dialect in self.dialects or (stored.dialect == NATIVE.name and self.has_network(stored))

    @abstractmethod
    def infer_arguments(self, stored: Checkpoint) -> dict[str, Any]:
        """Read the network's arguments off the shapes of its tensors.

        Returns:
            Network arguments by name. `img_size` is None if no tensor shows it. `num_heads` and, for a decoder with
            attention, `decoder_num_heads` are None if the width is not a published one.

        Raises:
            CheckpointError: a part is missing, or a tensor has a shape that the network does not give it.
        """

    @abstractmethod
    def config_of(self, arguments: dict[str, Any]) -> ConfigT:
        """Make the options for network arguments as `infer_arguments` returns them, and for `stored_options`.

        Arguments that are None or no options of this method are ignored.
        """

    def build_network(self, config: ConfigT, stored: Checkpoint) -> nn.Layer:
        """Build the network that holds the tensors of a file, with fresh weights."""
        return self.build_task(config).model

    @abstractmethod
    def describe(self, stored: Checkpoint, config: ConfigT | None) -> Description:
        """Describe the network of a file.

        Args:
            stored: a file for which `has_network` is true.
            config: its options, or None if they cannot be inferred.
        """

    def huggingface_settings(self, network: nn.Layer) -> dict[str, Any]:
        """Return the decoder's entries in a Hugging Face config.json; empty if Transformers has no such network."""
        return {}


def _no_flags(_encoder: Sizes) -> str:
    return ""


@dataclass(frozen=True)
class ClassifierRecipe(Generic[ClassifyT]):
    """The way a code base makes a classifier of a pre-trained encoder.

    Attributes:
        arguments: maps options to arguments of `ImageClassifier`, beside the sizes.
        models: shell pattern of its registered classifiers for images of 224 pixels.
        base_model: the registered classifier to name when none has the sizes of an encoder.
        flags: maps the sizes of an encoder to further flags that its classifier needs, with a leading space.
        norm_into_fc_norm: whether the norm behind mean pooling starts from the encoder's final norm.
        head_std: standard deviation of the head's weights when fine-tuning starts from a checkpoint; None keeps the
            network's own initialization.
        probe_crop: random crop of probing.
        finetune_schedule: schedule of fine-tuning, made from the options, the peak rate and the number of updates in an
            epoch; None for the schedule that the options imply.
    """

    arguments: Callable[[ClassifyT], dict[str, Any]]
    models: str
    base_model: str
    flags: Callable[[Sizes], str] = _no_flags
    norm_into_fc_norm: bool = False
    head_std: float | None = None
    probe_crop: DrawBox = clamped_crop_box
    finetune_schedule: Callable[[Any, float, int], Schedule] | None = None
