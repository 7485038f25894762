"""Tiny trained networks for the commands that look at them."""

from __future__ import annotations

from pathlib import Path

import pytest

from plsc_mae.cli import main
from plsc_mae.data.demo import make_demo_data

TINY = (
    "--model mae_vit_tiny_patch16 --input_size 32 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 2 "
    "--decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 2 --batch_size 10"
)
SHORT = "--epochs 2 --warmup_epochs 1 --lr 1e-3 --num_workers 0 --vis_freq 1 --print_freq 1"


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a tiny network."""
    return TINY.split()


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
