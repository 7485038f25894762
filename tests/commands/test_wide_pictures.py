"""Runs on pictures far from square: the warning at the start, and --crop_ratio."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.cli import COMMANDS, main
from plsc_mae.config.resolve import parse

pytestmark = [pytest.mark.compat, pytest.mark.once]

SHORT = "--epochs 1 --warmup_epochs 0 --num_workers 0 --batch_size 4 --device cpu"
TINY = "--input_size 16 36 --patch_size 4 --embed_dim 32 --depth 1 --num_heads 2"
PRETRAIN = f"--model mae_vit_tiny_patch16 {TINY} --decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 2"
FAR = "the images are typically 90 x 40 (width x height)"


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Eight noisy pictures of 90 x 40 pixels in two classes, for training and for validation."""
    root, rng = tmp_path_factory.mktemp("wide"), np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(8):
            folder = root / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 90, 3), np.uint8)).save(folder / f"{i}.jpg")
    return root


@pytest.fixture
def run(wide, tmp_path, capsys):
    """Run a command on the wide pictures and return what it prints, warnings first."""

    def run(command: str, flags: str, data: Path = wide, output: str = "run") -> str:
        line = f"{command} {flags} {SHORT} --data_path {data} --output_dir {tmp_path / output}"
        assert main(shlex.split(line)) == 0
        out, err = capsys.readouterr()
        return err + out

    return run


def test_pretraining_names_the_option_and_passes_it_on(run, tmp_path):
    flags = f"{PRETRAIN} --vis_freq 0"
    told = run("pretrain", flags)
    assert FAR in told
    assert "give --crop_ratio 1.8 2.8" in told  # the input is wide already
    assert "--crop_ratio" not in told.partition("next:")[2]

    told = run("pretrain", f"{flags} --crop_ratio 1.8 2.8 --save_ckpt_steps 1 --max_train_step 1", output="wide")
    assert FAR not in told
    assert "crop_ratio=[1.8, 2.8]" in told  # in the overview
    (line,) = (line for line in told.partition("next:")[2].splitlines() if " finetune " in line)
    words = shlex.split(line.partition(" finetune ")[2])
    assert parse(words, COMMANDS["finetune"].configs, prog="finetune").crop_ratio == (1.8, 2.8)

    told = run("pretrain", f"{flags} --crop_ratio 1.5 3 --auto_resume", output="wide")
    assert "changed   --crop_ratio from [1.8, 2.8] to [1.5, 3.0] since the checkpoint" in told
    assert (tmp_path / "wide" / "checkpoint-0.pd").exists()


@pytest.mark.parametrize("command", ["finetune", "linprobe"])
def test_classifiers_on_folders_and_archives(command, run, wide, tmp_path, archives):
    for split in ("train", "val"):
        archives.write_shards(wide / split, tmp_path / "shards" / split, 2)
    flags = f"--model vit_base_patch16 {TINY}"
    for data in (wide, tmp_path / "shards"):
        told = run(command, flags, data, output=f"{data.name}-default")
        assert FAR in told
        assert "give --crop_ratio 1.8 2.8 --crop_pct 1" in told
        assert FAR not in run(command, f"{flags} --crop_ratio 1.8 2.8 --crop_pct 1", data, output=f"{data.name}-wide")


@pytest.mark.parametrize(
    ("command", "flags"),
    [("linprobe", f"{TINY} --cache_features --blr 1"), ("finetune", TINY.replace("16 36", "8 20"))],
)
def test_runs_without_crops_by_area_have_no_warning(command, flags, run, tmp_path):
    """Cached features have no random crops, and inputs of up to 32 pixels are padded and cropped."""
    data = tmp_path / "small"
    for split in ("train", "val"):
        for i in range(4):
            (data / split / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 8), (40 * i, 0, 0)).save(data / split / "ab"[i % 2] / f"{i}.png")
    assert "typically" not in run(command, f"--model vit_base_patch16 {flags}", data)
