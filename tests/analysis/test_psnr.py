"""The PSNR on hidden patches against a computation on whole pictures."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.analysis.psnr import HiddenPSNR
from plsc_mae.analysis.trivial import DESCRIPTIONS, MEAN_COLOR

ROWS, COLUMNS, SIDE = 2, 3, 4


def batch(seed: int, number: int):
    """Pictures, a prediction, and the hidden patches, two in each picture."""
    rng = np.random.default_rng(seed)
    original, predicted = rng.integers(0, 256, (2, number, ROWS * SIDE, COLUMNS * SIDE, 3)).astype(np.uint8)
    hidden = rng.permuted(np.tile(np.arange(ROWS * COLUMNS) < 2, (number, 1)), axis=1)
    return original, predicted, hidden.reshape(number, ROWS, COLUMNS)


def test_every_hidden_pixel_has_the_same_weight():
    psnr = HiddenPSNR()
    errors: dict[str, list] = {"network": [], DESCRIPTIONS[MEAN_COLOR]: []}
    for seed, number in ((0, 3), (1, 1)):
        original, predicted, hidden = batch(seed, number)
        psnr.add(original, {"network": predicted}, hidden)
        pixels = hidden.repeat(SIDE, axis=1).repeat(SIDE, axis=2)
        for image, drawn, mask in zip(original.astype(float), predicted.astype(float), pixels, strict=True):
            errors["network"].append((drawn - image)[mask])
            errors[DESCRIPTIONS[MEAN_COLOR]].append(image[~mask].mean(axis=0) - image[mask])
    found = psnr.decibels()
    assert next(iter(found)) == "network"
    assert len(found) == 4  # the network and three trivial predictors
    for name, parts in errors.items():
        expected = 10 * np.log10(255**2 / np.mean(np.concatenate(parts) ** 2))
        assert found[name] == pytest.approx(expected, abs=1e-4)
    assert str(psnr).startswith(f"PSNR on the hidden patches of 4 images: network {found['network']:.2f} dB, ")


def test_only_hidden_patches_count():
    original, predicted, hidden = batch(2, 2)
    pixels = hidden.repeat(SIDE, axis=1).repeat(SIDE, axis=2)[..., None]
    psnr = HiddenPSNR()
    psnr.add(original, {"network": np.where(pixels, original, predicted), "other": predicted}, hidden)
    assert psnr.decibels()["network"] == np.inf
    assert np.isfinite(psnr.decibels()["other"])
    assert "network inf dB" in str(psnr)


def test_without_images_there_is_no_number():
    assert not HiddenPSNR().decibels()
