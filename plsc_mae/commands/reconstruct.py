"""`plsc-mae reconstruct`: draws the reconstruction of each image by a pre-trained model as a labeled panel."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from plsc_mae import weights
from plsc_mae.analysis.pictures import compose
from plsc_mae.analysis.psnr import HiddenPSNR
from plsc_mae.commands.pictures import SHEET_ROWS, PanelFolder, PictureReader, choose_images, find_pictures
from plsc_mae.commands.results import summarize
from plsc_mae.config import PRETRAIN
from plsc_mae.config.inference import ReconstructConfig
from plsc_mae.config.schema import options
from plsc_mae.data.transfer import device_batch
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.completeness import BESIDE_A_NETWORK, require_complete
from plsc_mae.loading.encoder import stated_normalize
from plsc_mae.loading.positions import PositionFit
from plsc_mae.loading.training_config import set_final_eps, training_config
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Pictures
from plsc_mae.parallel.world import World

BATCH = 16


def run(config: ReconstructConfig) -> int:
    """Draw a panel for each image and a sheet of the first ones, save them, and print the PSNR on hidden patches.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.

    Raises:
        CheckpointError: the file cannot be read, or lacks the decoder.
        DataError: there are no images, none can be decoded, or a panel cannot be written.
    """
    World(config.device)
    stored = weights.read_network(config.model_path, config.model_key, config.model_prefix)
    heads = {"num_heads": config.num_heads, "decoder_num_heads": config.decoder_num_heads}
    trained = training_config(stored, heads, **_replaced(config))
    method = load_method(trained.method)
    task = method.build_task(trained)
    fit = PositionFit(task.model, task.model.encoder, stored)
    report = weights.load(task.model, stored, resize=fit)
    require_complete(task.model, report, config.model_path, idle=BESIDE_A_NETWORK, by_options=False)
    fit.require_grid()
    set_final_eps(task.model, stored)
    task.normalize = stated_normalize(stored, task.normalize)
    print(f"{config.model_path}: {report}")
    images = find_pictures(config.img_path)
    pixel_format, task.normalize = pixel_settings.choose_for(
        task.normalize, config, config.model_path, images, trained.channels
    )
    task.display = pixel_settings.display_of(pixel_format, config.picture_bands)
    view = method.view_transform(trained)
    chosen = choose_images(images, config.max_images)
    panels = PanelFolder("reconstruct", config.save_path, images, chosen, config.img_path)
    reader = PictureReader(images, chosen, view, seed=config.seed, pixel_format=pixel_format)
    sheet: list[Pictures] = []
    psnr = HiddenPSNR()
    readable = iter(reader)
    while part := list(itertools.islice(readable, BATCH)):
        indices, samples = zip(*part, strict=True)
        batch = device_batch({name: np.stack([sample[name] for sample in samples]) for name in samples[0]})
        drawn = task.pictures(batch, config.patch_stats)
        sheet.append(drawn)
        if (hidden := task.hidden_patches(batch)) is not None:
            original, _, label, *_ = drawn
            psnr.add(drawn[original], drawn[label], label, hidden)
        for row, index in enumerate(indices):
            panel = compose({label: stack[row : row + 1] for label, stack in drawn.items()})
            print(panels.save(panel, index))
    if len(chosen) - reader.unreadable > 1:
        rows = {label: np.concatenate([part[label] for part in sheet])[:SHEET_ROWS] for label in sheet[0]}
        print(panels.save_sheet(compose(rows)))
    if psnr.decibels():
        print(psnr)
    return summarize(reader.unreadable, len(chosen))


def _replaced(config: ReconstructConfig) -> dict[str, Any]:
    """Return the options of this command that replace those of the checkpoint; a value of None replaces nothing."""
    trained = {item.name for cls in PRETRAIN.values() for item in options(cls)} - {"num_heads", "decoder_num_heads"}
    replaced = {
        item.name: getattr(config, item.name)
        for item in options(config)
        if item.name in trained and item.default is None
    }
    return replaced | {"in_chans": config.wanted_channels}
