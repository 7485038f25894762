"""Tiny trained networks for the commands that look at them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from plsc_mae.cli import main
from plsc_mae.data.demo import make_demo_data

ROOT = Path(__file__).parents[2]
TINY = (
    "--model mae_vit_tiny_patch16 --input_size 32 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 2 "
    "--decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 2 --batch_size 10"
)
TINY_CAE = (
    "--model cae_tiny_patch16_224_8k_vocab --input_size 32 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 4 "
    "--decoder_embed_dim 24 --regressor_depth 1 --num_decoder_self_attention 1 --decoder_num_heads 4 "
    "--num_mask_patches 8 --min_mask_patches_per_block 2 --batch_size 10 --no_auto_resume"
)
TINY_CLASSIFIER = (
    "--model vit_base_patch16 --input_size 32 --patch_size 8 --embed_dim 32 --depth 2 --num_heads 2 --batch_size 10 "
    "--layer_decay 1.0 --drop_path 0 --model_ema --model_ema_decay 0.5 --disable_eval_during_finetuning"
)
RANDOM_TOKENIZER = "--discrete_vae_type random_init --discrete_vae_hidden 8 --decoder_num_classes 32"
SHORT = "--epochs 2 --warmup_epochs 1 --lr 1e-3 --num_workers 0 --vis_freq 1 --print_freq 1"


# Stands for `python`: leaves its words, each followed by a null character, in the file $WORDS.
RECORDER = """#!/bin/sh
printf '%s\\0' "$@" >"$WORDS"
"""


@pytest.fixture(scope="session")
def words_of(tmp_path_factory):
    """Run a shell command in a folder and return the words with which it starts Python, which is not started."""

    def run(command: list[str], folder: Path) -> list[str]:
        place = tmp_path_factory.mktemp("recorder")
        (place / "python").write_text(RECORDER)
        (place / "python").chmod(0o700)
        paths = {
            "PATH": f"{place}:{os.environ['PATH']}",
            "PYTHON": str(place / "python"),
            "WORDS": str(place / "words"),
        }
        subprocess.run(command, cwd=folder, env={**os.environ, "NPROC_PER_NODE": "1", **paths}, check=True, timeout=60)
        return (place / "words").read_text().split("\0")[:-1]

    return run


@pytest.fixture
def by_script(fork_server, words_of):
    """Run a script or a program of the repository in one process of a folder; its output, in which nothing is idle."""

    def run(program: str, words: list[str], folder: Path) -> str:
        command = [str(ROOT / program), *words]
        done = fork_server.run(words_of(["bash", *command], folder) if program.endswith(".sh") else command, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "has no effect" not in done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def by_two(fork_server, tmp_path):
    """Run a command in two processes of a folder of the test's own."""

    def run(line: str) -> None:
        words = [ROOT / "plsc_mae/__main__.py", *line.split()]
        launched = fork_server.launch(words, 2, tmp_path / "logs", cwd=tmp_path)
        output, _ = launched.communicate(120)
        assert launched.returncode == 0, output

    return run


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a tiny network."""
    return TINY.split()


@pytest.fixture(scope="session")
def tiny_cae() -> list[str]:
    """Options of a tiny CAE with a random tokenizer."""
    return f"{TINY_CAE} {RANDOM_TOKENIZER}".split()


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """30 training and 10 validation images of 32 pixels."""
    folder = tmp_path_factory.mktemp("images") / "demo"
    make_demo_data(folder, image_size=32, train_per_class=3, val_per_class=1)
    return folder


@pytest.fixture(scope="session")
def trained(images, tmp_path_factory):
    """Output folder of a short run with further flags; the same folder for the same flags."""
    folders: dict[str, Path] = {}

    def train(flags: str = "") -> Path:
        if flags not in folders:
            folder = tmp_path_factory.mktemp("run")
            line = f"pretrain {TINY} {SHORT} --data_path {images} --output_dir {folder} {flags}"
            assert main(line.split()) == 0
            folders[flags] = folder
        return folders[flags]

    return train


@pytest.fixture(scope="session")
def classifier(images, tmp_path_factory) -> Path:
    """Checkpoint of a short fine-tuning of a mean-pooled classifier, from random weights; with averages."""
    folder = tmp_path_factory.mktemp("classifier")
    line = f"finetune {TINY_CLASSIFIER} {SHORT} --blr none --data_path {images} --output_dir {folder}"
    assert main(line.replace("--vis_freq 1", "").replace("--lr 1e-3", "--lr 1e-2").split()) == 0
    return folder / "checkpoint-1.pd"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    """A folder with encoder and decoder of a dVAE of 32 random tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    assert main(f"random-tokenizer {folder} --n_hid 8 --vocab_size 32".split()) == 0
    return folder


@pytest.fixture(scope="session")
def trained_cae(images, tmp_path_factory):
    """Checkpoint of a short run of CAE, with this tokenizer or a random one; the same file for the same arguments."""
    files: dict[str, Path] = {}

    def train(tokenizer: Path | None = None, flags: str = "") -> Path:
        named = RANDOM_TOKENIZER if tokenizer is None else f"--discrete_vae_weight_path {tokenizer}"
        line = f"pretrain {TINY_CAE} {named} {SHORT} {flags} --data_path {images}"
        if line not in files:
            folder = tmp_path_factory.mktemp("cae")
            assert main([*line.split(), "--output_dir", str(folder)]) == 0
            files[line] = folder / "checkpoint-1.pd"
        return files[line]

    return train
