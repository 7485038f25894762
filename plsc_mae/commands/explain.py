"""`plsc-mae explain`: draws an encoder's attention over each image and, if asked, the evidence for a class."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import paddle
from paddle import Tensor

from plsc_mae.analysis.attention import (
    Floats,
    Pool,
    attention_maps,
    category_attention,
    gradient_rollout,
    literal_gradients,
    patch_relevance,
    rollout,
)
from plsc_mae.analysis.fonts import drawable_names
from plsc_mae.analysis.pictures import compose, overlay
from plsc_mae.commands.pictures import (
    PanelFolder,
    PictureReader,
    Sheet,
    choose_images,
    find_pictures,
    true_outputs,
)
from plsc_mae.commands.results import summarize
from plsc_mae.config.inference import ExplainConfig
from plsc_mae.config.schema import suggest
from plsc_mae.data.classes import listed
from plsc_mae.data.listing import ImageList
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.opencv import load_opencv
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.data.shapes import sampled_sizes, seen_shares, typical_shape
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.errors import ConfigError
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.classifier import open_classifier
from plsc_mae.loading.encoder import open_encoder
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.names import without_parents
from plsc_mae.parallel.world import World
from plsc_mae.wording import counted, span

PREDICTED = "predicted"

logger = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """A class and its probability for an image.

    Attributes:
        category: number of the class.
        probability: its probability.
        predicted: True if it is the most probable class.
    """

    category: int
    probability: float
    predicted: bool

    def text(self, names: Sequence[str]) -> str:
        """Return the verdict as text; `names` are those of all classes."""
        return f"'{names[self.category]}', {100 * self.probability:.1f} %"

    def compared(self, names: Sequence[str], truth: int) -> str:
        """Return `text` with the true class, number `truth`, unless it is -1; predictions are called right or wrong."""
        if truth < 0:
            return self.text(names)
        if self.predicted and truth == self.category:
            return f"{self.text(names)}, right"
        return f"{self.text(names)}, {'wrong: ' * self.predicted}true class '{names[truth]}'"

    def mark(self, truth: int) -> str:
        """Return a check mark or a cross for a right or wrong prediction; "" if `truth` is -1."""
        if truth < 0 or not self.predicted:
            return ""
        return "\N{CHECK MARK} " if truth == self.category else "\N{BALLOT X} "


class Maps(NamedTuple):
    """Attention maps of one image.

    Attributes:
        weights: arrays [N, N] by label, where [i, j] is the relevance of token j for token i. All images have the same
            labels, so they can share a sheet.
        captions: more specific labels for the image's own panel, by label.
        verdict: the class whose evidence a map shows; None if no map depends on a class.
    """

    weights: Mapping[str, Floats]
    captions: Mapping[str, str]
    verdict: Verdict | None = None


def run(config: ExplainConfig) -> int:
    """Draw and save a panel for each of up to --max_images images and, if there are several, a sheet of some.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.

    Raises:
        CheckpointError: the checkpoint cannot be used, or has no classifier and --category_index needs one.
        DataError: images, or the files of --classes or --stats, cannot be used, or a panel cannot be written.
        ConfigError: an option does not fit the network, the images or this machine, or OpenCV or another package cannot
            be imported.
    """
    try:
        load_opencv()
    except ImportError as error:
        raise ConfigError(f"explain colors its maps with OpenCV. {error}") from error
    World(config.device)
    explainer = Explainer(config)
    print(explainer.origin)
    images = find_pictures(config.img_path)
    pixel_format, explainer.normalize = pixel_settings.choose_for(
        explainer.normalize, config, config.model_path, images, explainer.encoder.in_chans
    )
    display = pixel_settings.display_of(pixel_format, config.picture_bands)
    view = explainer.view
    _print_seen_part(images, view, pixel_format)
    chosen = choose_images(images, config.max_images)
    classes, shown = explainer.classes, explainer.shown
    truths = true_outputs(images, config.img_path, classes) if classes else ()
    network = f"{config.model_path}, random weights" if config.random_weights else config.model_path
    panels = PanelFolder("explain", config.save_path, images, chosen, config.img_path, network)
    reader = PictureReader(images, chosen, view, pixel_format=pixel_format, bad_image=config.bad_image)
    sheet = Sheet(images, chosen)
    for index, sample in reader:
        maps = explainer(paddle.to_tensor(sample["image"][None]))
        pixels = display.draw_pixels(sample["image"])
        panel = {"image": pixels[None]}
        for label, weights in maps.weights.items():
            relevance = patch_relevance(weights, explainer.encoder.grid, explainer.pool, explainer.registers)
            panel[label] = overlay(pixels, relevance)[None]
        own = {maps.captions.get(label, label): picture for label, picture in panel.items()}
        name = without_parents(images.name(index))
        told, note, captions = [], "", []
        if verdict := maps.verdict:
            truth = int(truths[index])
            told = [f"{name}: {verdict.compared(classes, truth)}"]
            note = verdict.mark(truth) + verdict.compared(shown, truth)
            captions = [note] if truth >= 0 else []
        print(panels.save(compose(own, captions=captions), index), *told)
        sheet.add(panel, index, note)
    if rows := sheet.rows():
        print(panels.save_sheet(compose(rows, captions=sheet.captions())))
    return summarize(reader.unreadable, len(chosen))


def _print_seen_part(images: ImageList, view: ResizeCenterCrop, pixel_format: PixelFormat) -> None:
    """Print which part of typical images the network sees, unless it is the whole."""
    sizes = [] if pixel_format.tile else sampled_sizes(images, pixel_format)
    if not sizes:
        return
    shape = typical_shape(sizes)
    width, height = seen_shares(shape.ratio, view)
    if min(width, height) < 1:
        print(f"the network sees {100 * width:.3g} % of the width and {100 * height:.3g} % of the height of {shape}")


class Explainer:
    """A loaded network that computes the attention maps of images.

    Attributes:
        encoder: its encoder.
        normalize: normalization of the images.
        view: transform of the images: for a classifier that of `predict`, else the whole center.
        pool: the tokens whose attention is drawn: "cls", the class token, or "mean", the mean of the patch tokens.
        origin: a line about the source of the weights.
        registers: number of register tokens.
        classes: names of the classes; () without --category_index.
        shown: the same names in drawable characters.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DataError: the file of --classes cannot be used.
        ConfigError: an option does not fit the network.
    """

    encoder: VisionTransformer
    normalize: Normalize
    origin: str

    def __init__(self, config: ExplainConfig) -> None:
        self.config, self.trained = config, open_classifier(config) if config.category_index else None
        self.category: int | None = None
        self.classes: Sequence[str] = ()
        pools_mean = False
        if self.trained is None:
            self.encoder, self.normalize, self.origin = open_encoder(config)
            self.view = ResizeCenterCrop(self.encoder.img_size, max(self.encoder.img_size))
        else:
            network, self.normalize, self.view, self.classes, self.origin = self.trained
            self.encoder, pools_mean = network.encoder, network.mean_pooled
            self.category = find_category(config.category_index, self.classes)
        self.shown = drawable_names(self.classes)
        self.pool: Pool = config.pool or ("mean" if pools_mean else "cls")
        self.registers = self.encoder.num_prefix_tokens - int(self.encoder.cls_token is not None)
        depth, layer = len(self.encoder.blocks), config.layer_index
        if layer is not None and not -depth <= layer < depth:
            raise ConfigError(
                f"--layer_index {layer}: the encoder has {counted(depth, 'layer')}; expected {span(0, depth - 1)}"
            )

    def __call__(self, pixels: Tensor) -> Maps:
        """Return the attention maps of one image, `pixels` [1, H, W, C] from 0 to 255."""
        image = self.normalize(pixels)
        if self.trained is None:
            return Maps(self._attention([layer[0] for layer in attention_maps(self.encoder, image)]), {})
        config, network = self.config, self.trained.network
        chosen, probability, attentions, gradients = category_attention(network, image, self.category)
        if config.literal:
            gradients = literal_gradients(attentions, gradients)
        pairs = list(zip(attentions, gradients, strict=True))
        layers = pairs if config.layer_index is None else [pairs[config.layer_index]]
        rolled = gradient_rollout(
            *zip(*layers, strict=True), discard_ratio=config.discard_ratio, literal=config.literal, residual=False
        )
        where = f"discard {config.discard_ratio:g}{self._layer()}"
        name = "the predicted class" if self.category is None else f"'{self.shown[chosen]}'"
        label = f"gradient rollout of {name} ({where})"
        verdict = Verdict(chosen, probability, self.category is None)
        caption = f"gradient rollout of {verdict.text(self.shown)} ({where})"
        return Maps({label: rolled, **self._attention(attentions)}, {label: caption}, verdict)

    def _attention(self, attentions: Sequence[Floats]) -> dict[str, Floats]:
        """Return the maps that do not depend on a class, by label: the rollouts and the last layer's attention."""
        config = self.config
        maps = {
            f"rollout ({fusion} of heads, discard {config.discard_ratio:g}{self._layer()})": rollout(
                attentions,
                head_fusion=fusion,
                discard_ratio=config.discard_ratio,
                layer_index=config.layer_index,
                literal=config.literal,
            )
            for fusion in config.head_fusion
        }
        maps["last layer, mean of heads"] = attentions[-1].mean(axis=0)
        heads = {f"last layer, head {i}": head for i, head in enumerate(attentions[-1])} if config.heads else {}
        return {**maps, **heads}

    def _layer(self) -> str:
        return "" if self.config.layer_index is None else f", layer {self.config.layer_index}"


def find_category(text: str, classes: Sequence[str]) -> int | None:
    """Return the class number for `text`, a number or a name; None for "predicted".

    A number that is in range is a class number, even if another class has it as its name; then the log warns.

    Raises:
        ConfigError: the class does not exist.
    """
    if text == PREDICTED:
        return None
    if text.isdecimal() and int(text) < len(classes):
        if text in classes and classes.index(text) != int(text):
            logger.warning(
                "--category_index %s is class number %s, '%s'; the class named '%s' has number %d",
                *(text, text, classes[int(text)], text, classes.index(text)),
            )
        return int(text)
    if text in classes:
        return classes.index(text)
    raise ConfigError(
        f"--category_index {text}: the classifier has no such class{suggest(text, classes)}; expected a number from 0 "
        f"to {len(classes) - 1}, a name ({listed(classes)}) or '{PREDICTED}'"
    )
