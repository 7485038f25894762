"""Classifiers that start from a checkpoint of other sizes than those of --model, without a size on the command line."""

from __future__ import annotations

import pytest
import yaml

from plsc_mae.cli import main

SHORT = "--batch_size 10 --num_workers 0 --device cpu --epochs 1 --warmup_epochs 0"
SIZES = {"input_size": [32], "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.fixture
def run(images, capsys):
    """Run a command on the images and return its output."""

    def start(line: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(f"{line} --data_path {images}".split()) == code
        return "".join(capsys.readouterr())

    return start


@pytest.mark.compat
@pytest.mark.once
def test_fine_tuning_evaluation_and_resumption_need_no_sizes(run, trained, tmp_path):
    tune = f"finetune --finetune {trained()}/checkpoint-1.pd {SHORT} --output_dir {tmp_path}"
    named = "model vit_tiny_patch16, patch_size 8, embed_dim 32, depth 1, num_heads 2, input_size 32"
    assert f"from {trained()}/checkpoint-1.pd: {named}\n" in run(tune)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert {name: written[name] for name in SIZES} == SIZES
    best = tmp_path / "checkpoint-best.pd"
    evaluated = run(f"finetune --eval --resume {best} --device cpu --num_workers 0")
    assert f"from {best}: {named}\n" in evaluated
    assert "Acc@1" in evaluated
    assert "resumed   from" in run(f"{tune} --auto_resume --epochs 2")
    assert "contradicts" in run(f"{tune} --auto_resume --epochs 3 --depth 2", 2)


def test_probing_and_plans_need_no_sizes(run, trained, tmp_path):
    start = f"--model vit_base_patch16 --finetune {trained()}/checkpoint-1.pd {SHORT}"
    probed = run(f"linprobe {start} --output_dir {tmp_path} --cache_features")
    named = f"from {trained()}/checkpoint-1.pd: patch_size 8, embed_dim 32, depth 1, num_heads 2, input_size 32\n"
    assert named in probed
    assert named in run(f"plan finetune {start}")


def test_the_sizes_are_refused_before_a_missing_folder(trained, tmp_path, capsys):
    start = f"finetune --finetune {trained()}/checkpoint-1.pd --data_path {tmp_path}/none --output_dir {tmp_path}/new"
    for flags, told in (
        ("--embed_dim 64", "--embed_dim 64 contradicts"),
        ("--model vit_bse_patch16", "did you mean vit_base_patch16"),
        ("--input_size 60", "--input_size 60 is not a multiple of patch_size 8"),
    ):
        assert main(f"{start} {flags}".split()) == 2
        assert told in capsys.readouterr().err
    assert main(start.split()) == 2
    assert "/none does not exist" in capsys.readouterr().err
