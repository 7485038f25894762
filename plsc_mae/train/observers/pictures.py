"""Pictures of a fixed batch between epochs: reconstructions, attention and patch tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle

from plsc_mae.analysis.attention import Pool, patch_relevance, recorded_blocks
from plsc_mae.analysis.pictures import enlarge, highlight, principal_colors, tile
from plsc_mae.config import PretrainConfig
from plsc_mae.data.display import RGB_DISPLAY, Display
from plsc_mae.data.normalize import Normalize
from plsc_mae.methods.base import Batch, Task
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.parallel.world import World
from plsc_mae.train.log.tags import RECONSTRUCTION, TOKEN_ATTENTION, TOKEN_PCA
from plsc_mae.train.observers.base import Observation
from plsc_mae.train.precision import autocast, choose_precision
from plsc_mae.train.signals import StopRequest

TOKEN_IMAGES = 4  # images with pictures of attention and tokens

Panels = dict[str, npt.NDArray[np.uint8]]


class PicturePanel:
    """Observer that draws the network's output, attention and tokens for a fixed batch, before and during training.

    Under tensor parallelism the attention is that of the main process's heads.

    Args:
        task: task that draws the reconstructions.
        normalize: converts images to the encoder's floats.
        panel: the batch in the processes of data-parallel rank 0, which compute together; None in the others.
        config: options of the run.
        world: processes of the run.
    """

    at_start = True

    def __init__(
        self, task: Task, normalize: Normalize, panel: Batch | None, config: PretrainConfig, world: World
    ) -> None:
        self.task, self.normalize, self.panel, self.world = task, normalize, panel, world
        self.every = config.picture_epochs
        self.precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Return pictures in the processes that have the batch, none in the others; all processes must call."""
        self.task.eval()
        pictures = {} if self.panel is None else self._draw(self.panel)
        self.world.barrier()
        return Observation(pictures=pictures)

    def _draw(self, panel: Batch) -> Panels:
        drawn = self.task.pictures(panel)
        encoder = getattr(self.task.model, "encoder", None)
        if not isinstance(encoder, VisionTransformer):  # a Task of the caller may have any network
            return _numbered(RECONSTRUCTION, drawn)
        with autocast(self.precision):
            token_panels = draw_tokens(encoder, self.normalize, panel["image"][:TOKEN_IMAGES], self.task.display)
        return {**_numbered(RECONSTRUCTION, drawn), **token_panels}


@paddle.no_grad()
def draw_tokens(
    encoder: VisionTransformer, normalize: Normalize, images: paddle.Tensor, display: Display = RGB_DISPLAY
) -> Panels:
    """Draw the attention of the first, middle and last block, and the principal components of the patch tokens.

    The attention is that of the class token or, without one, the mean of the patches' attention. Images are encoded
    one by one, without a mask, so that few attention weights are in memory. The result has two pictures per image,
    uint8 [H, W, 3], by tag.

    Args:
        encoder: the network in evaluation mode.
        normalize: converts images to the encoder's floats.
        images: pixels [B, H, W, C].
        display: the channels to show.
    """
    depth = len(encoder.blocks)
    chosen = sorted({0, depth // 2, depth - 1})
    pool: Pool = "mean" if encoder.cls_token is None else "cls"
    registers = encoder.num_prefix_tokens - (encoder.cls_token is not None)
    maps: dict[int, list[npt.NDArray[np.float64]]] = {index: [] for index in chosen}
    tokens = []
    for image in images.split(len(images)):
        with recorded_blocks(encoder, chosen) as weights:
            encoded = encoder.forward_features(normalize(image))[0, encoder.num_prefix_tokens :]
        tokens.append(encoded.astype("float32").numpy())
        for index in chosen:
            maps[index].append(patch_relevance(weights[index].numpy()[0], encoder.grid, pool, registers))
    pixels = np.stack([display.draw_pixels(image) for image in images.numpy()])
    original = {"original": pixels}
    attended = {
        f"attention, block {index + 1}": np.stack([highlight(x, m) for x, m in zip(pixels, maps[index], strict=True)])
        for index in chosen
    }
    colors = principal_colors(np.stack(tokens)).reshape(len(tokens), *encoder.grid, 3)
    colored = {"tokens as colors (PCA)": np.stack([enlarge(grid, pixels.shape[1:3]) for grid in colors])}
    return {**_numbered(TOKEN_ATTENTION, original | attended), **_numbered(TOKEN_PCA, original | colored)}


def _numbered(group: str, pictures: dict[str, npt.NDArray[np.uint8]]) -> Panels:
    """Return a panel per image, {group/number: uint8 [H, W, 3]}, of pictures [B, H, W, 3] by label."""
    count = min((len(stack) for stack in pictures.values()), default=0)
    return {f"{group}/{i + 1}": tile({label: stack[i] for label, stack in pictures.items()}) for i in range(count)}
