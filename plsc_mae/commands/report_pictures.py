"""Pictures of a run's newest checkpoint: attention of the last layer, and principal components of the patch tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
from PIL import Image

from plsc_mae.analysis.attention import Pool, attention_maps, patch_relevance
from plsc_mae.analysis.features import TokenFeatures
from plsc_mae.analysis.pictures import compose, enlarge, highlight, principal_colors
from plsc_mae.commands.pictures import PictureReader, find_pictures, spread
from plsc_mae.config.runs import ReportConfig
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.encoder import load_encoder
from plsc_mae.parallel.world import World
from plsc_mae.report.run_folder import RunFolder
from plsc_mae.train.checkpoint.file import find_newest
from plsc_mae.wording import counted


def encoder_pictures(config: ReportConfig, run: RunFolder) -> tuple[Image.Image, str]:
    """Return (panel with one row per image, caption).

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be used.
        ConfigError: neither the run nor --img_path names images, an option does not fit, or a package is not installed.
        DataError: images or the file of --stats cannot be used.
    """
    checkpoint = find_newest(str(run.path), str(run.options.get("exp_name") or ""))
    if checkpoint is None:
        raise CheckpointError(f"{run.path} has no checkpoint")
    source = config.img_path or str(run.options.get("data_path") or "")
    if not source:
        raise ConfigError("the run does not name its images; pass --img_path")
    World(config.device)
    images = find_pictures(source)
    encoder, normalize, _ = load_encoder(
        str(checkpoint), model_key=config.model_key, model_prefix=config.model_prefix, in_chans=config.wanted_channels
    )
    pixel_format, normalize = pixel_settings.choose_for(normalize, config, checkpoint, images, encoder.in_chans)
    display = pixel_settings.display_of(pixel_format, config.picture_bands)
    chosen = spread(len(images), config.max_images)
    view = ResizeCenterCrop(encoder.img_size, max(encoder.img_size))
    reader = PictureReader(images, chosen, view, pixel_format=pixel_format, bad_image=config.bad_image)
    images_read = np.stack([sample["image"] for _, sample in reader])
    tokens = TokenFeatures(encoder, normalize, [len(encoder.blocks)], ["patch"], norm=True)
    batch = paddle.to_tensor(images_read)
    pixels = np.stack([display.draw_pixels(image) for image in images_read])
    with paddle.no_grad():
        features = next(iter(tokens(batch).values())).numpy()
        weights = attention_maps(encoder, normalize(batch))[-1].mean(axis=1)
    pool: Pool = "mean" if encoder.cls_token is None or run.options.get("global_pool") else "cls"
    registers = encoder.num_prefix_tokens - int(encoder.cls_token is not None)
    relevance = patch_relevance(weights, encoder.grid, pool, registers)
    colors = principal_colors(features).reshape(len(pixels), *encoder.grid, 3)
    asker = "the patch tokens" if pool == "mean" else "the class token"
    panel = compose(
        {
            "image": pixels,
            f"attention of {asker}, last layer": np.stack(
                [highlight(*pair) for pair in zip(pixels, relevance, strict=True)]
            ),
            "patch tokens, 3 principal components as colors": np.stack([enlarge(c, encoder.img_size) for c in colors]),
        }
    )
    return (
        panel,
        f"{Path(checkpoint).name}; the principal components are those of {counted(len(pixels), 'image')} together.",
    )
