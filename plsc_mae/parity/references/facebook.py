"""Program that runs facebookresearch/mae: models_mae.py of a checkout, with timm."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from plsc_mae.parity.references import shims
from plsc_mae.parity.references.exchange import Message
from plsc_mae.parity.references.measure import Network, Outputs, batch_tensors, blocks, load_strictly, main


def build(message: Message, checkout: str) -> Network:
    """Build `MaskedAutoencoderViT` with the requested sizes."""
    shims.install()
    sys.path.insert(0, checkout)
    shims.accept_qk_scale()
    models_mae, timm = importlib.import_module("models_mae"), importlib.import_module("timm")

    sizes = dict(message.settings["sizes"])
    norm_layer = partial(torch.nn.LayerNorm, eps=1e-6)
    model = models_mae.MaskedAutoencoderViT(**sizes, norm_layer=norm_layer)
    load_strictly(model, message.groups["weights"], {})
    images, noise = batch_tensors(message)
    mask_ratio = message.settings["mask_ratio"]

    def run() -> Outputs:
        with fixed_rand(noise):
            loss, pred, mask = model(images, mask_ratio)
        return {"pred": pred, "mask": mask, "loss": loss}

    outputs_of = {**blocks("encoder", model.blocks), "latent": model.norm, **blocks("decoder", model.decoder_blocks)}
    inputs_of = {"encoder.embed": model.blocks[0], "decoder.embed": model.decoder_blocks[0]}
    return Network(model, run, inputs_of, outputs_of, {}, {"timm": str(getattr(timm, "__version__", "?"))})


@contextlib.contextmanager
def fixed_rand(noise: Any) -> Iterator[None]:
    """Make `torch.rand` return `noise` when its shape is requested; the original draws its mask in the forward pass."""
    rand = torch.rand

    def patched(*size: Any, **kwargs: Any) -> Any:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        return noise.clone() if shape == tuple(noise.shape) else rand(*size, **kwargs)

    torch.rand = patched
    try:
        yield
    finally:
        torch.rand = rand


if __name__ == "__main__":
    main(build)
