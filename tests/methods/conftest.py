"""Tiny configs and batches of the methods."""

from __future__ import annotations

import logging

import numpy as np
import paddle
import pytest

from plsc_mae.config import CAEConfig
from plsc_mae.data.decode import Box, SourceImage
from plsc_mae.data.seeding import sample_rng
from plsc_mae.data.transforms import Transform
from plsc_mae.methods import load_method
from plsc_mae.models.dalle import DalleDecoder, DalleEncoder, random_init

TINY = {"model": "cae_tiny_patch16_224_8k_vocab", "input_size": (32,), "patch_size": 8, "embed_dim": 32, "depth": 1}
TINY |= {"num_heads": 4, "decoder_embed_dim": 24, "regressor_depth": 1, "num_decoder_self_attention": 1}
TINY |= {"decoder_num_heads": 4, "num_mask_patches": 6, "min_mask_patches_per_block": 2}
RANDOM_TOKENIZER = {"discrete_vae_type": "random_init", "discrete_vae_hidden": 8, "decoder_num_classes": 32}


@pytest.fixture
def config():
    """Make a tiny config of CAE; its tokenizer is random unless options name another or another target."""

    def make(**options) -> CAEConfig:
        named = {"target_mode", "discrete_vae_weight_path", "discrete_vae_type"} & set(options)
        return CAEConfig(**{**TINY, **({} if named else RANDOM_TOKENIZER), **options})

    return make


@pytest.fixture
def task(config):
    """Build the task of a tiny config."""

    def build(**options):
        paddle.seed(0)
        return load_method("cae").build_task(config(**options))

    return build


@pytest.fixture
def batch() -> dict[str, paddle.Tensor]:
    """Two random images at both sizes, 4x4 patches of which each hides 6."""
    rng = np.random.default_rng(0)
    mask = np.stack([rng.permutation(16) < 6 for _ in range(2)])
    images = {"image": (2, 32, 32, 3), "tokenizer_image": (2, 32, 32, 3)}
    drawn = {name: rng.integers(0, 256, shape, np.uint8) for name, shape in images.items()}
    return {name: paddle.to_tensor(value) for name, value in {**drawn, "mask": mask}.items()}


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with a small dVAE, its decoder only if asked for; gives the folder and the encoder."""

    def write(*, decoder: bool = False, vocab_size: int = 32):
        networks = {"encoder_weight.pd": DalleEncoder(8, vocab_size)}
        if decoder:
            networks["decoder_weight.pd"] = DalleDecoder(4, 8, vocab_size)
        for name, network in networks.items():
            random_init(network, 5)
            paddle.save(network.state_dict(), str(tmp_path / name))
        return str(tmp_path), networks["encoder_weight.pd"]

    return write


class _Blank(SourceImage):
    """A black image that records the boxes of its crops."""

    def __init__(self, height: int, width: int) -> None:
        self.path, self.height, self.width, self.boxes = "blank.png", height, width, []

    def crop_resize(self, box, size, interpolation="bicubic"):
        self.boxes.append(box)
        return np.zeros((*size, 3), np.uint8)


@pytest.fixture
def cropped_boxes():
    """Return a function that returns the boxes that a transform crops from 100 images of one size."""

    def crop(transform: Transform, height: int = 1000, width: int = 1000) -> list[Box]:
        image = _Blank(height, width)
        for index in range(100):
            transform(image, sample_rng(0, 0, index))
        return image.boxes

    return crop


@pytest.fixture
def warnings(caplog, monkeypatch):
    """Ask for the warnings of the package so far, which the command line may have cut off from pytest's log."""
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
