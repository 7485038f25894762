"""`plsc-mae reconstruct`: draws the reconstruction of each image by a pre-trained model as a labeled panel."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from paddle import Tensor

from plsc_mae import weights
from plsc_mae.analysis.fonts import drawable_names
from plsc_mae.analysis.pictures import compose
from plsc_mae.analysis.psnr import PEAK, HiddenPSNR, Images
from plsc_mae.commands.pictures import PanelFolder, PictureReader, Sheet, choose_images, find_pictures
from plsc_mae.commands.results import summarize
from plsc_mae.config import PRETRAIN
from plsc_mae.config.inference import ReconstructConfig
from plsc_mae.config.schema import options
from plsc_mae.data.decode import SourceImage
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.pixels import PixelFormat
from plsc_mae.data.transfer import device_batch
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.errors import ConfigError
from plsc_mae.loading import pixel_settings
from plsc_mae.loading.completeness import BESIDE_A_NETWORK, require_complete
from plsc_mae.loading.encoder import stated_normalize
from plsc_mae.loading.positions import PositionFit
from plsc_mae.loading.training_config import set_final_eps, training_config
from plsc_mae.methods import load_method
from plsc_mae.methods.base import Batch, Drawn, PatchStats, Task
from plsc_mae.parallel.world import World

BATCH = 16


def run(config: ReconstructConfig) -> int:
    """Draw and save a panel for each of up to --max_images images and, if there are several, a sheet of some.

    If the network of --model_path predicts pixels, the PSNR on hidden patches is printed.

    Returns:
        The exit code: 1 if images could not be read and are left out, else 0.

    Raises:
        CheckpointError: a checkpoint cannot be used, for example because it lacks the decoder.
        ConfigError: networks cannot redraw the same hidden patches, an option does not fit them, the images or this
            machine, or a package is not installed.
        DataError: images or the file of --stats cannot be used, or a panel cannot be written.
    """
    World(config.device)
    paths = (config.model_path, *config.other_models)
    networks = {path: _load(config, path) for path in paths}
    first = networks[config.model_path]
    images = find_pictures(config.img_path)
    pixel_format = _set_pixels(config, networks, images)
    tasks = dict(zip(_labels(list(networks)), (network.task for network in networks.values()), strict=True))
    view = SharedView({path: network.view for path, network in networks.items()})
    chosen = choose_images(images, config.max_images)
    panels = PanelFolder("reconstruct", config.save_path, images, chosen, config.img_path, ", ".join(networks))
    reader = PictureReader(
        images, chosen, view, seed=config.seed, pixel_format=pixel_format, bad_image=config.bad_image
    )
    sheet = Sheet(images, chosen)
    psnr = HiddenPSNR()
    readable = iter(reader)
    while part := list(itertools.islice(readable, BATCH)):
        indices, samples = zip(*part, strict=True)
        batch = device_batch({name: np.stack([sample[name] for sample in samples]) for name in samples[0]})
        drawn, predicted = _draw(tasks, batch, config.patch_stats)
        hidden = first.task.hidden_patches(batch)
        if hidden is not None and first.task.predicts_pixels:
            original, *redrawn = (_comparable(drawn[label], pixel_format) for label in (next(iter(drawn)), *predicted))
            psnr.add(original, dict(zip(predicted, redrawn, strict=True)), hidden)
        shown = first.task.show(drawn, batch)
        for row, index in enumerate(indices):
            panel = {label: stack[row : row + 1] for label, stack in shown.items()}
            print(panels.save(compose(panel), index))
            sheet.add(panel, index)
    if rows := sheet.rows():
        print(panels.save_sheet(compose(rows, captions=sheet.captions())))
    if psnr.decibels():
        print(psnr)
    return summarize(reader.unreadable, len(chosen))


class Network(NamedTuple):
    """A loaded network: its task, the view of an image that it redraws, and the number of its channels."""

    task: Task
    view: Transform
    channels: int


def _load(config: ReconstructConfig, path: str) -> Network:
    """Load a network and print the report of its tensors."""
    stored = weights.read_network(path, config.model_key, config.model_prefix)
    heads = {"num_heads": config.num_heads, "decoder_num_heads": config.decoder_num_heads}
    trained = training_config(stored, heads, **_replaced(config))
    method = load_method(trained.method)
    task = method.build_task(trained)
    fit = PositionFit(task.model, task.model.encoder, stored)
    report = weights.load(task.model, stored, resize=fit)
    require_complete(task.model, report, path, idle=BESIDE_A_NETWORK, by_options=False)
    fit.require_grid()
    set_final_eps(task.model, stored)
    task.normalize = stated_normalize(stored, task.normalize)
    print(f"{path}: {report}")
    return Network(task, method.view_transform(trained), trained.channels)


def _set_pixels(config: ReconstructConfig, networks: Mapping[str, Network], images: ImageList) -> PixelFormat:
    """Set normalization and display of the networks; return their pixel format, or raise ConfigError if it differs."""
    formats = []
    for path, network in networks.items():
        task = network.task
        pixel_format, task.normalize = pixel_settings.choose_for(task.normalize, config, path, images, network.channels)
        task.display = pixel_settings.display_of(pixel_format, config.picture_bands)
        formats.append(pixel_format)
        if pixel_format != formats[0]:
            raise ConfigError(
                f"--other_models {path} needs other channels or another pixel range than {config.model_path}; draw it "
                "by a command of its own"
            )
    return formats[0]


class SharedView:
    """Transform of an image to one sample that suits every network.

    Args:
        views: the transform of each network by the path of its checkpoint.
    """

    def __init__(self, views: Mapping[str, Transform]) -> None:
        self.views = views

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Transform an image; every network's transform gets the same random numbers.

        Raises:
            ConfigError: a network needs another size, another mask or other arrays than the first one.
        """
        (path, view), *others = self.views.items()
        draws = [copy.deepcopy(rng) for _ in others]
        sample = view(image, rng)
        for (other, other_view), draw in zip(others, draws, strict=True):
            theirs = other_view(image, draw)
            if theirs.keys() != sample.keys() or not all(np.array_equal(theirs[name], sample[name]) for name in sample):
                raise ConfigError(
                    f"--other_models {other} needs other images or masks than {path}; expected the same method, image "
                    "size and mask options: draw it by a command of its own"
                )
        return sample


def _labels(paths: Sequence[str]) -> Sequence[str]:
    """Return labels of checkpoints that a picture can show: FOLDER/STEM, or the paths if those are not unique."""
    short = [f"{Path(path).absolute().parent.name}/{Path(path).stem}" for path in paths]
    return drawable_names(short if len(set(short)) == len(short) else paths)


def _draw(tasks: Mapping[str, Task], batch: Batch, patch_stats: PatchStats | None) -> tuple[Drawn, list[str]]:
    """Return the pixels of the pictures of a batch, and the labels of those that are predictions.

    The pictures of one network are those of its task. Of several networks they are the original, the masked image, and
    the last picture of each network, labeled with its checkpoint; all must hide the same patches.
    """
    panels = [task.draw(batch, patch_stats) for task in tasks.values()]
    drawn, *others = panels
    if not others:
        return drawn, list(drawn)[2:3]
    masks = [task.hidden_patches(batch) for task in tasks.values()]
    if len({mask.tobytes() for mask in masks if mask is not None}) > 1:
        raise ConfigError(
            "the networks of --other_models hide another fraction of the patches; set one for all by --mask_ratio"
        )
    last = [list(pictures.values())[-1] for pictures in panels]
    shared = dict(itertools.islice(drawn.items(), 2))
    return {**shared, **dict(zip(tasks, last, strict=True))}, list(tasks)


def _comparable(pixels: Tensor, pixel_format: PixelFormat) -> Images:
    """Convert pixels [B, C, H, W] to those that the PSNR compares: clipped, and whole numbers for images of 8 bits."""
    scaled = pixels.clip(0, 1).numpy().transpose(0, 2, 3, 1) * PEAK
    return scaled if pixel_format.dtype is np.float32 else np.rint(scaled)


def _replaced(config: ReconstructConfig) -> dict[str, Any]:
    """Return options of this command that replace those of the checkpoint; a value of None replaces nothing."""
    trained = {item.name for cls in PRETRAIN.values() for item in options(cls)} - {"num_heads", "decoder_num_heads"}
    replaced = {
        item.name: getattr(config, item.name)
        for item in options(config)
        if item.name in trained and item.default is None
    }
    return replaced | {"in_chans": config.wanted_channels}
