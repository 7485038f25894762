"""Sizes of a classifier's encoder that come from the file it starts from."""

from __future__ import annotations

import dataclasses
import logging
import runpy
from pathlib import Path

import pytest

from plsc_mae import weights
from plsc_mae.cli import COMMANDS
from plsc_mae.config import FINETUNE, PRETRAIN
from plsc_mae.config.mae import MAEFinetuneConfig
from plsc_mae.config.resolve import from_mapping, parse
from plsc_mae.config.schema import plain_values
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading.encoder_sizes import settle_sizes
from plsc_mae.methods import load_method
from plsc_mae.methods.classify import build_classifier
from plsc_mae.models.registry import create_model
from plsc_mae.weights import Checkpoint

SMALL = {"patch_size": 20, "embed_dim": 64, "depth": 2, "num_heads": 4}
NETWORKS = runpy.run_path(str(Path(__file__).with_name("tiny_networks.py")))["NETWORKS"]
MODELS = {name: NETWORKS[name] for name in ("mae", "mae_priv", "cae")}
MODELS["simmim"] = {**NETWORKS["simmim"], "mask_patch_size": 20}


def checkpoint(method: str = "mae", **options) -> Checkpoint:
    """A checkpoint of pre-training with these options."""
    given = {"method": method, **MODELS[method], "input_size": 60, **SMALL, **options}
    config = from_mapping(given, PRETRAIN, "test")
    return written(config, load_method(method).build_task(config).model)


def fine_tuned(**options) -> Checkpoint:
    """A checkpoint of fine-tuning with these options."""
    config = from_mapping({"input_size": 60, **SMALL, **options}, FINETUNE, "test")
    return written(config, build_classifier(config, 3))


def written(config, network) -> Checkpoint:
    arrays = weights.export(network, "plsc_mae")
    meta = {"method": config.method, "phase": config.phase, "args": plain_values(config)}
    return Checkpoint(Path("run/checkpoint-9.pd"), arrays, arrays, meta, dialect="plsc_mae")


def foreign(name: str = "vit_tiny_patch16", **sizes) -> Checkpoint:
    """A file of facebookresearch/mae, which stores no options."""
    arrays = weights.export(create_model(name, **sizes).encoder, "facebook", prefix="encoder.")
    return Checkpoint(Path("mae.pth"), arrays, arrays, {}, dialect="facebook")


def settled(line: str, stored: Checkpoint, command: str = "finetune"):
    """Return (the options that differ from those of the line, the settled config)."""
    config = parse(line.split(), COMMANDS[command].configs, prog=command)
    found = settle_sizes(config, stored)
    before, after = plain_values(config), plain_values(found)
    return {name: after[name] for name in after if after[name] != before[name]}, found


@pytest.fixture
def told(caplog, monkeypatch) -> pytest.LogCaptureFixture:
    """The log of the package."""
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    caplog.set_level(logging.INFO, "plsc_mae")
    return caplog


@pytest.mark.parametrize("command", ["finetune", "linprobe"])
@pytest.mark.parametrize(
    ("line", "model"),
    [
        ("--model vit_base_patch16", {}),
        ("--model vit_tiny_patch16", {}),
        ("", {"model": "vit_tiny_patch16"}),  # else the run would be called after the default, which it is not
    ],
)
def test_sizes_that_differ_come_from_our_checkpoint_and_one_line_names_them(line, model, command, told):
    found, _ = settled(line, checkpoint(), command)
    assert found == {**model, **SMALL, "input_size": [60]}
    (message,) = told.messages
    named = "model vit_tiny_patch16, " if model else ""
    assert message == (
        f"from run/checkpoint-9.pd: {named}patch_size 20, embed_dim 64, depth 2, num_heads 4, input_size 60"
    )


@pytest.mark.parametrize("method", MODELS)
def test_every_method_takes_them(method):
    name = {"mae_priv": "vit_base_patch16_224", "cae": "cae_base_patch16_224", "simmim": "simmim_base_patch16_224"}
    found, config = settled(f"--method {method} --model {name.get(method, 'vit_base_patch16')}", checkpoint(method))
    assert found == {**SMALL, "input_size": [60]}
    assert config.method == method


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("--model vit_tiny_patch16", {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}),
        ("--model vit_tiny_patch16", dict.fromkeys(SMALL)),
        (" ".join(f"--{name} {value}" for name, value in SMALL.items()) + " --model vit_base_patch16", {}),
    ],
)
def test_a_file_of_the_runs_sizes_changes_nothing(line, options, told):
    """Not even the size of the images, to which the positions of published encoders are interpolated."""
    found, _ = settled(line, checkpoint(input_size=80, **options))
    assert (found, told.messages) == ({}, [])


def test_what_the_user_sets_remains():
    stored = checkpoint(mlp_ratio=2.6)
    assert settled("--input_size 80 --depth 2", stored)[0].keys() == {
        *("model", "patch_size", "embed_dim", "num_heads", "mlp_ratio"),
    }
    assert "num_heads" not in settled("--num_heads 2", stored)[0]  # a warning follows
    assert "input_size" not in settled("--input_size 60 80", stored)[0]
    assert "input_size" not in settled("-o input_size=100", stored)[0]


def test_options_of_a_file_count_as_set_unless_they_are_null(tmp_path):
    (tmp_path / "config.yaml").write_text("model: vit_base_patch16\ninput_size: [100]\nembed_dim: null\n")
    found, config = settled(f"--config {tmp_path / 'config.yaml'}", checkpoint())
    assert found == SMALL
    assert config.input_size == (100,)


def test_a_config_built_in_python_has_set_what_differs_from_the_defaults():
    config = MAEFinetuneConfig(model="vit_base_patch16", input_size=(80,))
    assert settle_sizes(config, checkpoint()) == dataclasses.replace(config, **SMALL)
    assert settle_sizes(MAEFinetuneConfig(), checkpoint()).input_size == (60,)


def test_what_the_user_has_set_remains_known_in_a_changed_config():
    config = parse(["--input_size", "224"], COMMANDS["finetune"].configs, prog="finetune")
    changed = dataclasses.replace(config, depth=3)
    assert changed.sets("input_size")  # to its default
    assert not changed.sets("depth")


def test_a_registered_network_is_chosen_by_name():
    stored = checkpoint(input_size=64, **dict.fromkeys(SMALL))
    assert settled("", stored)[0] == {"model": "vit_tiny_patch16"}
    with pytest.raises(CheckpointError, match=r"embed_dim 192.*vit_base_patch16 has embed_dim 768.*vit_tiny_patch16"):
        settled("--model vit_base_patch16", stored)


def test_other_heads_alone_are_taken_too():
    stored = checkpoint(input_size=64, **{**dict.fromkeys(SMALL), "num_heads": 6})
    assert settled("--model vit_tiny_patch16", stored)[0] == {"num_heads": 6, "input_size": [64]}


def test_a_fine_tuned_file_states_its_sizes_in_the_same_way():
    sizes = {"model": "vit_tiny_patch16", **SMALL}
    assert settled("--eval --resume x.pd", fine_tuned(**sizes))[0] == {
        **sizes,
        "input_size": [60],
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--embed_dim 128", ["--embed_dim 128 contradicts run/checkpoint-9.pd", "has embed_dim 64", "leave it out"]),
        ("--embed_dim 128 --depth 4", ["--embed_dim 128 --depth 4 contradict", "give --embed_dim 64 --depth 2"]),
        ("--patch_size 16", ["--patch_size 16", "patch_size 20"]),
    ],
)
def test_a_size_that_contradicts_the_file_is_refused_with_both_values(line, words):
    with pytest.raises(CheckpointError) as raised:
        settled(line, checkpoint())
    assert all(word in str(raised.value) for word in words), raised.value


def test_an_image_size_that_does_not_fit_the_patches_of_the_file():
    with pytest.raises(ConfigError, match=r"--input_size 224 .* patch_size 20, that of run/checkpoint-9.pd; .* 60"):
        settled("--input_size 224", checkpoint())


def test_the_file_of_another_network_needs_its_model():
    with pytest.raises(CheckpointError, match=r"trained by method simmim, .* of mae; give --model simmim_tiny_patch16"):
        settled("", checkpoint("simmim"))


def test_files_of_originals_get_the_options_for_their_shapes():
    with pytest.raises(CheckpointError, match=r"embed_dim 192, but vit_large_patch16 has .*give --model vit_tiny_patc"):
        settled("", foreign(depth=24))
    odd = foreign(patch_size=8, embed_dim=32, depth=2, num_heads=4)
    with pytest.raises(CheckpointError) as raised:
        settled("--model vit_tiny_patch16", odd)
    assert "--patch_size 8 --embed_dim 32 --depth 2 --num_heads N, where N" in str(raised.value)
    given = "--model vit_tiny_patch16 --patch_size 8 --embed_dim 32 --depth 2 --num_heads 2"  # heads are unknown
    assert settled(given, odd)[0] == {}
    with pytest.raises(
        CheckpointError, match=r"--depth 3 contradicts mae.pth, whose encoder has depth 2; give --depth"
    ):
        settled(given.replace("--depth 2", "--depth 3"), odd)


def test_the_width_of_an_mlp_is_rounded_down():
    stored = foreign(embed_dim=60, depth=1, num_heads=4, mlp_ratio=2.77)
    assert settled("--model vit_tiny_patch16 --embed_dim 60 --depth 1 --num_heads 4 --mlp_ratio 2.77", stored)[0] == {}


def test_the_options_name_a_classifier_first():
    with pytest.raises(ConfigError, match="not for classification"):
        settle_sizes(from_mapping({"model": "mae_vit_tiny_patch16"}, FINETUNE, "test"), checkpoint())
