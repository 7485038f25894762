"""`plsc-mae pretrain --initial_weights`: a new run from the weights of another."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import plsc_mae
from plsc_mae import weights
from plsc_mae.cli import main
from plsc_mae.methods.mae import MAETask
from plsc_mae.train.checkpoint.file import load

NETWORK = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
NETWORK |= {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
SHORT = {"epochs": 2, "warmup_epochs": 0, "lr": 1e-3, "num_workers": 0, "vis_freq": 0, "print_freq": 1, "seed": 3}
RUN = {"model": "mae_vit_tiny_patch16", "input_size": 32, **NETWORK, **SHORT, "max_train_step": 4}


@pytest.fixture
def command(images, tmp_path):
    """Return the command of a short run, 4 updates of 6, into a folder of the test's own."""

    def line(name: str, flags: str, batch: int = 10) -> str:
        options = " ".join(f"--{key} {value}" for key, value in {**RUN, "batch_size": batch}.items())
        return f"pretrain {options} --data_path {images} --output_dir {tmp_path / name} {flags}"

    return line


@pytest.fixture
def source(trained, tmp_path):
    """A copy of a trained checkpoint."""
    return shutil.copy(trained() / "checkpoint-1.pd", tmp_path / "source.pd")


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "train.jsonl").read_text().splitlines()]


def assert_same_tensors(one, two) -> None:
    ours, theirs = load(one).tensors, load(two).tensors
    assert set(ours) == set(theirs)
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], key)


def test_a_run_starts_from_the_weights_of_the_file(command, images, source, tmp_path, capsys):
    assert main(command("new", f"--initial_weights {source}").split()) == 0
    out = capsys.readouterr().out
    assert f"--initial_weights {source} (plsc_mae): 38 tensors loaded" in out
    assert f"initial_weights: {source}" in (tmp_path / "new/config.yaml").read_text()

    model = plsc_mae.create_model("mae_vit_tiny_patch16", img_size=32, **NETWORK)
    weights.load(model, source)
    plsc_mae.train(str(images), tmp_path / "given", task=MAETask(model, mask_ratio=0.75), batch_size=10, **RUN)
    assert losses(tmp_path / "new") == losses(tmp_path / "given")

    model = plsc_mae.create_model("mae_vit_tiny_patch16", img_size=32, **NETWORK)
    task = MAETask(model, mask_ratio=0.75)
    plsc_mae.train(str(images), tmp_path / "api", task=task, batch_size=10, **RUN, initial_weights=str(source))
    assert losses(tmp_path / "api") == losses(tmp_path / "new")


def test_a_resumed_run_does_not_need_the_file(command, source, tmp_path):
    assert main(command("whole", f"--initial_weights {source}").split()) == 0
    assert main([*command("cut", f"--initial_weights {source}").split(), "--max_train_step", "2"]) == 0
    source.unlink()
    assert main(f"pretrain --config {tmp_path / 'cut/config.yaml'} --auto_resume --max_train_step 4".split()) == 0
    assert_same_tensors(tmp_path / "cut/checkpoint-latest.pd", tmp_path / "whole/checkpoint-latest.pd")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")

    flags = f"--initial_weights {source} --resume {tmp_path / 'cut/checkpoint-latest.pd'} --max_train_step 5"
    assert main(command("branch", flags).split()) == 0
    assert len(losses(tmp_path / "branch")) == 1


def test_two_processes_start_as_one_does(command, source, by_two, tmp_path):
    flags = f"--initial_weights {source} --max_train_step 1"
    assert main(command("one", flags).split()) == 0
    by_two(command("two", flags, batch=5))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_weights_of_other_programs_are_not_resumed(command, tmp_path, capsys):
    model = plsc_mae.create_model("mae_vit_tiny_patch16", img_size=32, **NETWORK)
    weights.save(model, tmp_path / "theirs.pth", "facebook")
    assert main(command("new", f"--resume {tmp_path / 'theirs.pth'}").split()) == 2
    assert "--initial_weights" in capsys.readouterr().err
    assert main(command("new", f"--finetune {tmp_path / 'theirs.pth'}").split()) == 2
    assert "initial_weights" in capsys.readouterr().err
    assert main(command("new", f"--initial_weights {tmp_path / 'theirs.pth'} --depth 2").split()) == 2
    assert "--depth 1" in capsys.readouterr().err
