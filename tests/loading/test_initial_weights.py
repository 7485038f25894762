"""Weights of a file as the start of a pre-training run."""

from __future__ import annotations

import dataclasses
import logging
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.config import PRETRAIN
from plsc_mae.config.resolve import from_mapping
from plsc_mae.config.schema import plain_values
from plsc_mae.errors import CheckpointError
from plsc_mae.loading.initial_weights import load_initial_weights
from plsc_mae.methods import load_method
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.pos_embed import resize_pos_embed

ENCODER = {"input_size": [32], "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
NETWORKS = runpy.run_path(str(Path(__file__).with_name("tiny_networks.py")))["NETWORKS"]
OPTIONS = {**NETWORKS, "simmim": {**NETWORKS["simmim"], "mask_patch_size": 16}}


@pytest.fixture
def infos(monkeypatch) -> Iterator[list[str]]:
    """Give a list that receives the log of the package."""
    lines: list[str] = []
    handler, package = logging.Handler(), logging.getLogger("plsc_mae")
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(package, "handlers", [handler])
    level = package.level
    package.setLevel(logging.INFO)
    yield lines
    package.setLevel(level)


def build(name: str = "mae", seed: int = 0, **options):
    """Return (task, options) of a tiny network."""
    config = from_mapping({"method": name, **OPTIONS[name], **ENCODER, **options}, PRETRAIN, "test")
    paddle.seed(seed)
    return load_method(name).build_task(config), config


def start(task, config, path: str):
    return load_initial_weights(task, dataclasses.replace(config, initial_weights=path))


def arrays_of(network) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def assert_equal(ours, theirs, names) -> None:
    for name in names:
        np.testing.assert_array_equal(ours[name], theirs[name], name)


@pytest.fixture
def save(tmp_path):
    def write(network, dialect: str = "plsc_mae", **options) -> str:
        np.savez(tmp_path / "file.npz", **weights.export(network, dialect, **options))
        return str(tmp_path / "file.npz")

    return write


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        *((name, "plsc_mae") for name in OPTIONS),
        *(("mae", "facebook"), ("mae_priv", "mae_priv"), ("mae_pytorch", "mae_pytorch")),
        *(("cae", "cae"), ("simmim", "simmim")),
    ],
)
def test_a_whole_network_of_every_method(name, dialect, save, infos):
    source = build(name, seed=1)[0].model
    task, config = build(name)
    start(task, config, save(source, dialect))
    wanted = arrays_of(source)
    assert_equal(arrays_of(task.model), wanted, wanted)
    assert "the file lacks them: nothing; not used, because the network lacks them: nothing" in infos[-1]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_encoder_alone_leaves_the_rest_random(name, save, infos):
    source = build(name, seed=1)[0].model.encoder
    task, config = build(name)
    before = arrays_of(task.model)
    path = save(source, prefix="encoder.")
    if "mask_token" in dict(source.named_parameters()):  # SimMIM's is part of the encoder
        arrays = dict(np.load(path))
        del arrays["encoder.mask_token"]
        np.savez(path, **arrays)
    report = start(task, config, path)
    after, wanted = arrays_of(task.model), {f"encoder.{key}": value for key, value in arrays_of(source).items()}
    rest = set(after) - set(wanted) | {"encoder.mask_token"} & set(after)
    assert_equal(after, wanted, set(wanted) - rest)
    assert_equal(after, before, rest)
    assert rest == set(report.missing)
    assert "decoder (" in infos[-1]
    assert "mask_token (1)" in infos[-1] or name.startswith("mae")


def test_a_classifier_of_mean_features(save, infos):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    source = ImageClassifier(**sizes, num_classes=3, positions="row first")
    task, config = build()
    start(task, config, save(source))
    assert_equal(arrays_of(task.model.encoder), arrays_of(source.encoder), ["blocks.1.mlp.fc2.weight"])
    random, unused = infos[-1].split("; not used")
    assert "norm (2)" in random
    assert "head (2)" in unused
    assert "fc_norm (2)" in unused


def test_the_moving_average_starts_as_the_loaded_encoder(save):
    source = build("cae", seed=1)[0].model
    task, config = build("cae", dual_path_ema=0.9)
    start(task, config, save(source))
    encoder = arrays_of(source.encoder)
    assert_equal(arrays_of(task.model.alignment_encoder), encoder, encoder)

    source = build("cae", seed=2, dual_path_ema=0.9)[0].model
    source.alignment_encoder.set_state_dict(encoder)
    start(task, config, save(source))
    assert_equal(arrays_of(task.model.alignment_encoder), encoder, encoder)
    assert_equal(arrays_of(task.model.encoder), arrays_of(source.encoder), encoder)


def test_other_grids_and_channels_are_converted(save, infos):
    source = build(seed=1)[0].model
    source.encoder.pos_embed.set_value(paddle.randn(source.encoder.pos_embed.shape))
    task, config = build(input_size=[32, 48], in_chans=2)
    start(task, config, save(source))
    wanted = resize_pos_embed(source.encoder.pos_embed.numpy(), (4, 4), (4, 6))
    np.testing.assert_array_equal(task.model.encoder.pos_embed.numpy(), wanted)
    kernel = source.encoder.patch_embed.proj.weight.numpy().sum(1, keepdims=True) / 2
    np.testing.assert_allclose(task.model.encoder.patch_embed.proj.weight.numpy(), kernel.repeat(2, 1), rtol=1e-6)
    assert "encoder.patch_embed.proj.weight" in infos[-1]


@pytest.mark.parametrize(
    ("name", "options", "remedy"),
    [
        ("mae", {"embed_dim": 64}, "--embed_dim 32"),
        ("mae", {"depth": 1}, "--depth 2"),
        ("mae", {"depth": 3}, "--depth 2"),
        ("mae", {"patch_size": 4, "mlp_ratio": 2.0}, "--patch_size 8 --mlp_ratio 4"),
        ("mae", {"decoder_embed_dim": 32}, "--decoder_embed_dim 16"),
        ("cae", {"decoder_embed_dim": 32}, "--decoder_embed_dim 16"),
        ("cae", {"decoder_num_classes": 16}, "decoder.head"),
        ("simmim", {"embed_dim": 64}, "--embed_dim 32"),
    ],
)
def test_other_sizes_are_refused(name, options, remedy, save):
    path = save(build(name, seed=1)[0].model)
    task, config = build(name, **options)
    with pytest.raises(CheckpointError) as error:
        start(task, config, path)
    assert remedy in str(error.value)
    assert path in str(error.value)


def test_files_without_an_encoder_are_refused(tmp_path):
    task, config = build()
    np.savez(tmp_path / "other.npz", **{"features.0.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=r"other\.npz"):
        start(task, config, str(tmp_path / "other.npz"))
    with pytest.raises(CheckpointError, match=r"missing\.pth"):
        start(task, config, str(tmp_path / "missing.pth"))


def test_a_network_of_the_file_is_chosen_by_its_key(tmp_path):
    (task, config), average = build(), build(seed=1)[0].model
    networks = {"model": task.model, "model_ema": average}
    arrays = {f"{key}/{name}": x for key, network in networks.items() for name, x in arrays_of(network).items()}
    np.savez(tmp_path / "two.npz", **arrays)
    start(task, dataclasses.replace(config, model_key="model_ema"), str(tmp_path / "two.npz"))
    assert_equal(arrays_of(task.model), arrays_of(average), arrays_of(average))


@pytest.mark.parametrize(("option", "number"), [("num_heads", 2), ("decoder_num_heads", 2)])
@pytest.mark.parametrize("name", ["mae", "cae"])
def test_other_heads_than_the_files_are_refused(tmp_path, name, option, number):
    task, config = build(name)
    path = tmp_path / "source.pd"
    content = {"model": task.model.state_dict(), "method": name, "args": plain_values(config)}
    paddle.save(content, str(path))
    other = build(name, **{option: number})
    with pytest.raises(CheckpointError, match=f"--{option} 4, but the network has {number}"):
        start(*other, str(path))
