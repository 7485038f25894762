"""`plsc-mae explain`: one labelled panel per image of the patches that an encoder attends to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import paddle

from plsc_mae.analysis.attention import attention_maps, patch_relevance, rollout
from plsc_mae.analysis.heatmap import overlay
from plsc_mae.analysis.panel import compose
from plsc_mae.commands.pictures import SHEET_ROWS, find_pictures, panel_name, save_picture, spread
from plsc_mae.config.tools import ExplainConfig
from plsc_mae.data.decode import open_image
from plsc_mae.data.randomness import sample_rng
from plsc_mae.data.transforms import ResizeCentreCrop
from plsc_mae.errors import ConfigError
from plsc_mae.methods.base import Pictures
from plsc_mae.methods.frozen import load_frozen
from plsc_mae.parallel.data import World


def run(config: ExplainConfig) -> None:
    """Draw and save the panels.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: there is no image, or one that cannot be decoded.
        ConfigError: the encoder has no such layer.
    """
    World(config.device)
    network, normalize, origin = load_frozen(
        config.model_path,
        num_heads=config.num_heads,
        input_size=config.input_size,
        random_weights=config.random_weights,
        seed=config.seed,
    )
    depth, layer = len(network.blocks), config.layer_index
    if layer is not None and not -depth <= layer < depth:
        raise ConfigError(f"--layer_index {layer}: the encoder has {depth} layers; expected 0 to {depth - 1}")
    print(origin)
    images = find_pictures(config.img_path)
    view = ResizeCentreCrop(network.img_size, max(network.img_size))
    folder = Path(config.save_path)
    sheet: list[Pictures] = []
    for index in spread(len(images), config.max_images):
        pixels = view(open_image(images.path(index)), sample_rng(0, 0, index))["image"]
        maps = attention_maps(network, normalize(paddle.to_tensor(pixels[None])))
        panel = _panel(pixels, [weights[0] for weights in maps], network.grid, config)
        print(save_picture(compose(panel), folder / panel_name(images, index)))
        sheet += [panel] if len(sheet) < SHEET_ROWS else []
    if len(sheet) > 1:
        rows = {label: np.concatenate([panel[label] for panel in sheet]) for label in sheet[0]}
        print(save_picture(compose(rows), folder / "sheet.png"))


def _panel(
    pixels: npt.NDArray[np.uint8],
    attentions: list[npt.NDArray[np.float32]],
    grid: tuple[int, int],
    config: ExplainConfig,
) -> Pictures:
    """The image, and it under the rollout and under the last layer's attention, each uint8 [1, H, W, 3]."""
    rolled = rollout(
        attentions,
        head_fusion=config.head_fusion,
        discard_ratio=config.discard_ratio,
        layer_index=config.layer_index,
        literal=config.literal,
    )
    where = "" if config.layer_index is None else f", layer {config.layer_index}"
    weights = {
        f"rollout ({config.head_fusion} of heads, discard {config.discard_ratio:g}{where})": rolled,
        "last layer, mean of heads": attentions[-1].mean(axis=0),
    }
    if config.heads:
        weights |= {f"last layer, head {i}": head for i, head in enumerate(attentions[-1])}
    drawn = {label: overlay(pixels, patch_relevance(w, grid, config.pool))[None] for label, w in weights.items()}
    return {"image": pixels[None], **drawn}
