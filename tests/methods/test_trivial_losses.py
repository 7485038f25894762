"""Losses of trivial predictors have the unit of the training loss, by independent NumPy computations."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.config.mae import MAEConfig
from plsc_mae.config.simmim import SimMIMConfig
from plsc_mae.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from plsc_mae.methods import load_method

SIDE, GRID = 8, 4
SIZES = {"input_size": (32,), "patch_size": SIDE, "embed_dim": 32, "depth": 1, "num_heads": 2}
MAE = {"model": "mae_vit_tiny_patch16", "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, **SIZES}


def pictures(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def patches(images):
    """Normalized patches [B, L, P*P*3], channel fastest."""
    pixels = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    tiles = pixels.reshape(len(images), GRID, SIDE, GRID, SIDE, 3).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(len(images), GRID * GRID, -1)


def mean_colors(pixels, hidden):
    """Patches in the mean color of the visible pixels of each image."""
    colors = [x[~seen].reshape(-1, 3).mean(axis=0) for x, seen in zip(pixels, hidden, strict=True)]
    return np.stack([np.tile(color, (GRID * GRID, SIDE * SIDE)) for color in colors])


def normalized(x):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, ddof=1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_mae(norm_pix_loss):
    images, noise = pictures(), np.random.default_rng(1).random((3, 16), np.float32)
    task = load_method("mae").build_task(MAEConfig(**MAE, mask_ratio=0.75, norm_pix_loss=norm_pix_loss))
    losses = task.trivial_losses([{"image": paddle.to_tensor(images), "noise": paddle.to_tensor(noise)}])
    hidden = noise.argsort(axis=1).argsort(axis=1) >= 4
    target = patches(images)
    fill = mean_colors(target, hidden)
    if norm_pix_loss:
        target, fill = normalized(target), normalized(fill)
        assert losses["zero"] == pytest.approx((target[hidden] ** 2).mean(), rel=1e-5)
    assert losses["mean_color"] == pytest.approx(((fill - target)[hidden] ** 2).mean(), rel=1e-4)
    assert ("zero" in losses) == norm_pix_loss
    assert task.reference_loss == "loss"


def test_simmim():
    images = pictures()
    config = SimMIMConfig(model="pretrain_simmim_tiny_patch16_224", mask_patch_size=8, **SIZES)
    hidden = np.random.default_rng(2).random((3, 16)) < 0.6
    batch = {"image": paddle.to_tensor(images), "mask": paddle.to_tensor(hidden)}
    losses = load_method("simmim").build_task(config).trivial_losses([batch])
    target = patches(images)
    error = np.abs(mean_colors(target, hidden) - target)[hidden]
    assert losses["mean_color"] == pytest.approx(error.mean(), rel=1e-4)


def test_cae_predicts_tokens_with_their_frequencies(task):
    built = task()
    hidden = np.zeros((2, 16), bool)
    hidden[:, 3:9] = True
    batch = {"image": paddle.to_tensor(pictures(2)), "mask": paddle.to_tensor(hidden)}
    batch["tokenizer_image"] = batch["image"][:, :32, :32]
    batch = built.prepare(batch)
    target = batch["target"]
    shares = np.bincount(target.numpy(), minlength=32) / target.shape[0]
    logits = paddle.to_tensor(np.log(np.maximum(shares, 1e-30)).astype(np.float32)).expand([target.shape[0], 32])
    losses = built.trivial_losses([batch])
    assert losses["batch_tokens"] == losses["all_tokens"] == pytest.approx(float(built.target.loss(logits, target)[0]))
    assert built.reference_loss == "loss_main"


@pytest.mark.parametrize("kind", ["none", "layernorm", "patch", "channel"])
def test_pixels_of_cae(task, kind):
    built = task(target_mode="rgb", normalized_pixel=kind)
    hidden = np.zeros((2, 16), bool)
    hidden[:, 3:9] = True
    batch = {"image": paddle.to_tensor(pictures(2)), "mask": paddle.to_tensor(hidden)}
    batch = built.prepare(batch)
    losses, target = built.trivial_losses([batch]), batch["target"]
    if kind == "none":
        assert "zero" not in losses
    else:
        assert losses["zero"] == pytest.approx(float((target**2).mean()), rel=1e-5)
    assert set(losses) >= {"mean_color", "nearest_patch", "bilinear"}
