"""facebookresearch/mae: models_mae.py of a checkout, with timm."""

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
from plsc_mae.parity.references.measure import Outputs, Subject, batch_tensors, blocks, load_strictly, main


def build(message: Message, checkout: str) -> Subject:
    """Make `MaskedAutoencoderViT` of the request's sizes."""
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
        with drawn(noise):
            loss, pred, mask = model(images, mask_ratio)
        return {"pred": pred, "mask": mask, "loss": loss}

    left = {**blocks("encoder", model.blocks), "latent": model.norm, **blocks("decoder", model.decoder_blocks)}
    entered = {"encoder.embed": model.blocks[0], "decoder.embed": model.decoder_blocks[0]}
    return Subject(model, run, entered, left, {}, {"timm": str(getattr(timm, "__version__", "?"))})


@contextlib.contextmanager
def drawn(noise: Any) -> Iterator[None]:
    """Let `torch.rand` give this noise, which the original draws inside its forward pass."""
    rand = torch.rand

    def instead(*size: Any, **kwargs: Any) -> Any:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        return noise.clone() if shape == tuple(noise.shape) else rand(*size, **kwargs)

    torch.rand = instead
    try:
        yield
    finally:
        torch.rand = rand


if __name__ == "__main__":
    main(build)
