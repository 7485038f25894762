"""The part of a weight file to export: its network, inputs, outputs and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from paddle import Tensor, nn

from plsc_mae import weights
from plsc_mae.config.export import ExportConfig
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.pixels import RGB, RGB_CHANNELS, PixelFormat
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.errors import ConfigError
from plsc_mae.loading.classifier import load_classifier
from plsc_mae.loading.contents import CLASSIFIER, ENCODER, base_of, kind_of, method_of_kind
from plsc_mae.loading.encoder import load_encoder
from plsc_mae.loading.networks import load_pretraining_network
from plsc_mae.loading.pixel_settings import stored_format
from plsc_mae.methods.label_kinds import Classes, LabelKind, stored_kind
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.weights import Checkpoint
from plsc_mae.wording import counted

Array = npt.NDArray[np.generic]
Part = Literal["encoder", "classifier", "reconstruction"]
CONVERTIBLE = "expected a checkpoint of pre-training, a classifier or an encoder"


class Input(NamedTuple):
    """An input of an exported network; `shape` has no batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "bool"]
    note: str


class Encoding(nn.Layer):
    """An encoder as a layer for inference; its outputs are the tokens and the mean of the patch tokens."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return [tokens [B, T + L, D] of images [B, C, H, W], mean [B, D] of the patch tokens]."""
        tokens = self.encoder.forward_features(images)
        return [tokens, tokens[:, self.encoder.num_prefix_tokens :].mean(axis=1)]


class Classification(nn.Layer):
    """A classifier as a layer for inference."""

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a list with the logits [B, K] of images [B, C, H, W]."""
        return [self.classifier(images)]


@dataclass(frozen=True)
class Content:
    """The network to export, in evaluation mode."""

    part: Part  # kind of network
    network: nn.Layer  # encoder, classifier, or network of pre-training
    # layer to trace; it takes the inputs and returns a list with one tensor for each entry of `outputs`
    layer: nn.Layer
    inputs: tuple[Input, ...]  # inputs of `layer`; the first is the normalized images
    num_hidden: int  # number of patches that a mask hides; 0 without mask
    outputs: Mapping[str, str]  # name and description of every output
    mean: tuple[float, ...]  # mean of each channel for pixels from 0 to 1
    std: tuple[float, ...]  # standard deviation of each channel for pixels from 0 to 1
    view: ResizeCenterCrop  # resize and crop of images
    classes: tuple[str, ...]  # names of a classifier's outputs; empty for other parts
    origin: str  # a line about the source of the weights
    # entries of a Hugging Face config.json for the decoder; empty if Transformers lacks
    # this decoder or if `part` has none
    decoder: Mapping[str, object]
    kind: LabelKind = field(default_factory=Classes)  # kind of a classifier's labels
    pixel_format: PixelFormat = RGB  # channels, bands and range of values of the files that the network was trained on

    @property
    def encoder(self) -> VisionTransformer:
        """The encoder of the network."""
        encoder: VisionTransformer = getattr(self.network, "encoder", self.network)
        return encoder

    @property
    def classifier(self) -> ImageClassifier | None:
        """The network if it is a classifier, else None."""
        return self.network if isinstance(self.network, ImageClassifier) else None

    def sample(self, batch: int, seed: int = 0) -> list[Array]:
        """Draw `batch` samples of every input for a check; a seed always gives the same ones.

        Images have a normal distribution and noise a uniform one; masks hide `num_hidden` random patches.
        """
        rng = np.random.default_rng(seed)
        drawn: list[Array] = [rng.standard_normal([batch, *self.inputs[0].shape]).astype("float32")]
        for each in self.inputs[1:]:
            noise = rng.random([batch, *each.shape]).astype("float32")
            hidden = noise.argsort(axis=1).argsort(axis=1) >= noise.shape[1] - self.num_hidden
            drawn.append(hidden if each.dtype == "bool" else noise)
        return drawn


def open_content(config: ExportConfig, parts: Sequence[Part]) -> Content:
    """Load the part of a weight file that an export asks for.

    Args:
        config: options of the export.
        parts: parts that the target can hold; the first one that the file has is the default.

    Raises:
        CheckpointError: the file cannot be read, or its network cannot be built.
        ConfigError: the file or the target has no such part, or an option is missing or does not fit.
        DataError: the file of --classes cannot be read or does not fit.
    """
    stored = weights.read_network(config.model_path, config.model_key, config.model_prefix)
    kind = kind_of(base_of(stored, config.num_heads, config.decoder_num_heads))
    held: set[Part] = {"encoder"}
    if kind == CLASSIFIER:
        held.add("classifier")
    elif method_of_kind(kind) is not None:
        held.add("reconstruction")
    elif kind != ENCODER:
        raise ConfigError(f"{config.model_path} holds no network that can be exported; {CONVERTIBLE}")
    offered = [part for part in parts if part in held]
    if config.what is not None and config.what not in offered:
        others = " or ".join(offered) or "no part"
        reason = (
            f"{config.model_path} has none" if config.what in parts else f"target {config.target} takes no such part"
        )
        raise ConfigError(f"--what {config.what} is impossible: {reason}; file and target have in common: {others}")
    opener = {"encoder": _open_encoder, "classifier": _open_classifier, "reconstruction": _open_reconstruction}
    content = opener[config.what or offered[0]](config, stored)
    return replace(content, pixel_format=stored_format(config.model_path, content.inputs[0].shape[0]))


def _open_encoder(config: ExportConfig, stored: Checkpoint) -> Content:
    encoder, normalize, origin = load_encoder(stored, num_heads=config.num_heads, input_size=config.input_size)
    normed = "after the final norm" if isinstance(encoder.norm, nn.LayerNorm) else "of the last block"
    outputs = {
        "tokens": f"[B, {encoder.num_prefix_tokens} + L, D] tokens {normed}; patches come last, in raster order",
        "pooled": "[B, D] mean of the patch tokens",
    }
    view = ResizeCenterCrop(encoder.img_size, int(max(encoder.img_size) / 0.875))  # as `extract` and `knn`
    return _content("encoder", encoder, Encoding(encoder), outputs, normalize, view, origin=origin)


def _open_classifier(config: ExportConfig, stored: Checkpoint) -> Content:
    loaded = load_classifier(
        stored,
        classes=config.classes,
        num_heads=config.num_heads,
        input_size=config.input_size,
        global_pool=config.global_pool,
    )
    kind = stored_kind(stored.meta, stored.path)
    outputs = {"logits": kind.note}
    network, view, classes, origin = loaded.network, loaded.transform, loaded.classes, loaded.origin
    layer = Classification(network)
    content = _content("classifier", network, layer, outputs, loaded.normalize, view, classes=classes, origin=origin)
    return replace(content, kind=kind)


def _open_reconstruction(config: ExportConfig, stored: Checkpoint) -> Content:
    options = {name: getattr(config, name) for name in ("input_size", "mask_ratio", "num_mask_patches")}
    loaded = load_pretraining_network(stored, config.num_heads, config.decoder_num_heads, **options)
    layer, choice, num_hidden, outputs = loaded.method.reconstruction(loaded.config, loaded.network)
    patches = loaded.network.encoder.num_patches
    notes = {
        "noise": f"uniform draws from 0 to 1; the {num_hidden} patches with the largest values are hidden",
        "mask": f"True for hidden patches, {num_hidden} per image",
    }
    second = Input(choice, (patches,), "float32" if choice == "noise" else "bool", notes[choice])
    size = loaded.network.encoder.img_size
    return _content(
        "reconstruction",
        loaded.network,
        layer,
        outputs,
        loaded.normalize,
        ResizeCenterCrop(size, max(size)),
        second=(second,),
        num_hidden=num_hidden,
        origin=loaded.origin,
        decoder=loaded.method.huggingface_settings(loaded.network),
    )


def _content(
    part: Part,
    network: nn.Layer,
    layer: nn.Layer,
    outputs: Mapping[str, str],
    normalize: Normalize,
    view: ResizeCenterCrop,
    *,
    origin: str,
    second: tuple[Input, ...] = (),
    num_hidden: int = 0,
    classes: tuple[str, ...] = (),
    decoder: Mapping[str, object] | None = None,
) -> Content:
    encoder: VisionTransformer = getattr(network, "encoder", network)
    channels = encoder.patch_embed.proj.weight.shape[1]
    colors = "RGB" if channels == RGB_CHANNELS else counted(channels, "channel")
    images = Input("images", (channels, *encoder.img_size), "float32", f"(pixels / 255 - mean) / std, {colors}")
    constants = (normalize.mean, normalize.std)
    mean, std = (tuple(round(float(value), 6) for value in values.flatten().tolist()) for values in constants)
    layer.eval()
    inputs = (images, *second)
    return Content(part, network, layer, inputs, num_hidden, outputs, mean, std, view, classes, origin, decoder or {})
