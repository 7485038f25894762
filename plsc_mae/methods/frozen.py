"""The encoder of a checkpoint as tools use it: in evaluation mode, with the normalization it was trained with."""

from __future__ import annotations

from typing import NamedTuple

import paddle

from plsc_mae import weights
from plsc_mae.data.device import Normalize
from plsc_mae.methods import load_method
from plsc_mae.methods.pretrained import require_weights, training_config
from plsc_mae.models.vit import VisionTransformer


class FrozenEncoder(NamedTuple):
    """An encoder, what its images are normalized by, and one line that says where its weights are from."""

    network: VisionTransformer
    normalize: Normalize
    origin: str


def load_frozen(
    path: str,
    *,
    num_heads: int | None = None,
    input_size: tuple[int, ...] | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> FrozenEncoder:
    """Build the encoder that a checkpoint of pre-training holds.

    Args:
        path: the checkpoint, of this suite or of another.
        num_heads: attention heads, for a foreign file of unpublished width.
        input_size: image side, or height and width, in place of the checkpoint's.
        random_weights: take the sizes from the file and fresh weights, to see what training has given.
        seed: of the fresh weights.

    Raises:
        CheckpointError: the file cannot be read, or lacks a part of the encoder.
        ConfigError: unknown heads, or an image size that does not fit.
    """
    stored = weights.read(path)
    config = training_config(stored, {"num_heads": num_heads}, input_size=input_size)
    paddle.seed(seed)
    method = load_method(config.method)
    network = method.build_encoder(config)
    if random_weights:
        origin = f"{path}: its sizes with random weights, seed {seed}"
    else:
        report = weights.load(network, stored, prefix="encoder.")
        require_weights(network, report, path)
        origin = f"{path}: {len(report.matched)} tensors of the encoder ({report.dialect})"
    network.eval()
    return FrozenEncoder(network, method.normalize(config), origin)
