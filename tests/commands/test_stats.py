"""Measured mean and standard deviation of the channels of a data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from plsc_mae.analysis import channel_statistics
from plsc_mae.cli import main
from plsc_mae.loading.pixel_settings import read_stats


@pytest.fixture
def values(tmp_path):
    """Images of other sizes, uint16 with 5 bands; one file is damaged."""
    rng, made = np.random.default_rng(0), []
    (tmp_path / "data").mkdir()
    for index in range(5):
        array = rng.integers(0, 2000, (30 + index, 20, 5)).astype(np.uint16)
        np.save(tmp_path / f"data/{index}.npy", array)
        made.append(array.reshape(-1, 5))
    return np.concatenate(made).astype(np.float64) / 2047


@pytest.mark.parametrize("workers", [0, 2])
def test_against_numpy(workers, values, tmp_path, monkeypatch):
    monkeypatch.setattr(channel_statistics, "_PART_PIXELS", 100)  # several parts per image
    line = f"stats {tmp_path}/data --in_chans 5 --save_path {tmp_path}/stats.json --num_workers {workers}"
    assert main(line.split()) == 0
    stats = json.loads((tmp_path / "stats.json").read_text())
    np.testing.assert_allclose(stats["mean"], values.mean(axis=0), rtol=1e-6)  # pixels are float32
    np.testing.assert_allclose(stats["std"], values.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stats["max"], values.max(axis=0), rtol=1e-6)
    assert stats["pixel_range"] == [0, 2047]
    assert (stats["images"], stats["pixels"]) == (5, len(values))


def test_eight_bits_are_exact(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    assert main(f"stats {tmp_path} --save_path {tmp_path}/stats.json --num_workers 0".split()) == 0
    stats = json.loads((tmp_path / "stats.json").read_text())
    np.testing.assert_allclose(stats["mean"], pixels.reshape(-1, 3).mean(axis=0) / 255, rtol=1e-13)
    np.testing.assert_allclose(stats["std"], pixels.reshape(-1, 3).std(axis=0) / 255, rtol=1e-13)


def test_a_damaged_file_is_left_out_with_a_warning(values, tmp_path, capsys):
    (tmp_path / "data/2.npy").write_bytes(b"damaged")
    line = f"stats {tmp_path}/data --in_chans 5 --save_path {tmp_path}/s.json --num_workers 0"
    assert main(line.split()) == 0
    warnings = capsys.readouterr().err
    assert "2.npy" in warnings
    assert "1 of 5 images could not be read" in warnings
    stats = json.loads((tmp_path / "s.json").read_text())
    assert (stats["images"], stats["unreadable_images"]) == (4, 1)
    assert read_stats(str(tmp_path / "s.json")).mean == tuple(stats["mean"])
    assert main(f"{line} --bad_image error".split()) == 2
    for path in (tmp_path / "data").iterdir():
        path.write_bytes(b"damaged")
    assert main(f"{line} --pixel_range 0 2047".split()) == 2
    assert "none of 5 images can be read" in capsys.readouterr().err


def test_the_std_of_a_constant_channel_is_taken_as_1(tmp_path, messages):
    (tmp_path / "stats.json").write_text('{"in_chans": 2, "mean": [0.5, 0], "std": [0.25, 0.0]}')
    assert read_stats(str(tmp_path / "stats.json")).std == (0.25, 1.0)
    assert any("channels 2 " in message for message in messages)


def test_refusals(values, tmp_path, capsys):
    (tmp_path / "mine.json").write_text("{}")
    assert main(f"stats {tmp_path}/data --in_chans 5 --save_path {tmp_path}/mine.json".split()) == 2
    assert main(f"stats {tmp_path}/data --save_path {tmp_path}/s.json --num_workers 0".split()) == 2
    message = capsys.readouterr().err
    assert "mine.json" in message
    assert "5 bands" in message
    (tmp_path / "s.json").write_text('{"in_chans": 1, "mean": [0.5]}')
    assert main(f"stats {tmp_path}/data --in_chans 5 --save_path {tmp_path}/s.json".split()) == 2
    assert "another number of channels than 5" in capsys.readouterr().err
    assert '"in_chans": 1' in (tmp_path / "s.json").read_text()
