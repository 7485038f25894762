"""Weights of one number of channels in a network of another."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.cli import main
from plsc_mae.loading.channels import convert_kernel, convert_predictions, stored_channels
from plsc_mae.loading.encoder import load_encoder
from plsc_mae.loading.positions import PositionFit
from plsc_mae.models.mae import MaskedAutoencoder

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


def test_equal_channels_give_the_same_tokens():
    kernel = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    gray = np.random.default_rng(1).standard_normal((2, 2)).astype(np.float32)
    whole = (kernel * gray).sum(axis=(1, 2, 3))
    for channels in (1, 2, 13):
        converted = convert_kernel(kernel, channels)
        assert converted.shape == (4, channels, 2, 2)
        np.testing.assert_allclose((converted * gray).sum(axis=(1, 2, 3)), whole, rtol=1e-5)
        np.testing.assert_allclose((convert_kernel(converted, 3) * gray).sum(axis=(1, 2, 3)), whole, rtol=1e-5)


@pytest.mark.parametrize("channels_first", [False, True])
def test_predictions_of_new_channels_are_means(channels_first):
    values = np.random.default_rng(0).standard_normal((5, 4 * 3))
    converted = convert_predictions(values, (3, 2), channels_first=channels_first)
    pixels = values.reshape(5, 3, 4).mean(1) if channels_first else values.reshape(5, 4, 3).mean(-1)
    both = converted.reshape(5, 2, 4)[:, 1] if channels_first else converted.reshape(5, 4, 2)[..., 1]
    np.testing.assert_allclose(both, pixels, atol=1e-6)


@pytest.fixture
def file(tmp_path):
    model = MaskedAutoencoder(**SIZES, **DECODER)
    weights.save(model, tmp_path / "rgb.pth", "facebook")
    return tmp_path / "rgb.pth"


def test_a_whole_network(file):
    network = MaskedAutoencoder(**SIZES, **DECODER, in_chans=5)
    stored = weights.read_network(file)
    assert stored_channels(stored) == 3
    report = weights.load(network, stored, resize=PositionFit(network, network.encoder, stored))
    assert {"encoder.patch_embed.proj.weight", "decoder.pred.weight", "decoder.pred.bias"} <= set(report.resized)
    assert not report.missing


def test_an_encoder_and_convert(file, tmp_path, capsys):
    gray = paddle.randn([1, 1, 16, 16])
    tokens = {}
    for channels in (3, 1, 13):
        encoder = load_encoder(str(file), in_chans=channels, num_heads=2).network
        tokens[channels] = encoder.forward_features(gray.expand([1, channels, 16, 16])).numpy()
    np.testing.assert_allclose(tokens[1], tokens[3], atol=1e-5)
    np.testing.assert_allclose(tokens[13], tokens[3], atol=1e-5)
    out = tmp_path / "gray.pth"
    line = f"weights convert {file} {out} --dialect facebook --in_chans 1 --num_heads 2 --decoder_num_heads 2"
    capsys.readouterr()
    assert main(line.split()) == 0
    log = capsys.readouterr().out
    assert log.count("from 3 to 1 channel:") == 2
    assert log.count("patch embedding from 3") == log.count("decoder.pred, which predicts pixels, from 3") == 1
    assert stored_channels(weights.read_network(out)) == 1
    own = load_encoder(str(out), num_heads=2).network
    np.testing.assert_allclose(own.forward_features(gray).numpy(), tokens[1], atol=1e-6)
