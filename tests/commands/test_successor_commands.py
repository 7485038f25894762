"""The commands of the READMEs of MAE-priv and MAE-pytorch, from pre-training to pictures, with our scripts' names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.cli import main
from plsc_mae.config import FINETUNE, PRETRAIN
from plsc_mae.config.resolve import load_config, parse
from plsc_mae.data.seeding import sample_rng
from plsc_mae.methods import load_method

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
# README of pengzhiliang/MAE-pytorch, behind its launcher.
MAE_PYTORCH = """
    --data_path ${DATA_PATH}
    --mask_ratio 0.75
    --model pretrain_mae_base_patch16_224
    --batch_size 128
    --opt adamw
    --opt_betas 0.9 0.95
    --warmup_epochs 40
    --epochs 1600
    --output_dir ${OUTPUT_DIR}"""
# README of BUPT-PRIV/MAE-priv, with our folder of configs.
MAE_PRIV = "--config configs/mae_priv/{config}.yaml --data_path ${{DATA_PATH}} --output_dir ${{OUTPUT_DIR}}"
SIZES = "--input_size 32 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 2 --num_workers 0 --batch_size 10"
SMALL = f"{SIZES} --decoder_embed_dim 64 --decoder_depth 1 --max_train_step 2 --vis_freq 0"


@pytest.fixture
def pretrain(by_script):
    """Run scripts/pretrain.sh."""

    def run(command: str, flags: str, images: Path, folder: Path) -> None:
        text = f"{command} {flags}".replace("${DATA_PATH}", str(images)).replace("${OUTPUT_DIR}", str(folder))
        by_script("scripts/pretrain.sh", text.split(), ROOT)

    return run


def command(line: str) -> None:
    assert main(line.split()) == 0, line


@pytest.mark.compat
@pytest.mark.once
@pytest.mark.parametrize("kind", ["GAP", "CLS-Token"])
def test_mae_priv_from_pretraining_to_pictures(images, pretrain, tmp_path, kind):
    out, (picture, *_) = tmp_path / "out", sorted((images / "val").rglob("*.jpg"))
    pretrain(MAE_PRIV.format(config=f"ViT-S_100E_Norm_{kind}"), SMALL, images, out)
    config = load_config(str(out / "config.yaml"))
    assert (config.method, config.class_token, config.batched_shuffle) == ("mae_priv", kind != "GAP", True)
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert 0.5 < records[-1]["loss"] < 3  # targets have unit variance
    saved = out / "checkpoint-latest.pd"
    assert ("encoder.cls_token" in weights.read(saved).model) == (kind != "GAP")

    finetune = f"--config configs/mae_priv/ViT-S_50E_{kind}.yaml"
    given = f"{finetune} --data_path {images} --finetune {saved}"
    command(f"finetune {given} --output_dir {tmp_path}/ft {SIZES} --max_train_step 1 --no_save_ckpt")
    command(f"knn {given} --save_path {tmp_path}/knn --nb_knn 5 --num_workers 0")
    if kind == "GAP":
        lincls = f"--config configs/mae_priv/ViT-S_SGD_GAP.yaml --data_path {images} --finetune {saved}"
        command(f"linprobe {lincls} --output_dir {tmp_path}/lp {SIZES} --max_train_step 1 --no_save_ckpt")
    else:
        words = f"--finetune {saved} --image_path {picture} --head_fusion max --discard_ratio 0.9"
        command(f"explain {finetune} {words} --save_path {tmp_path}/explained")
        assert list((tmp_path / "explained").glob("*.png"))
    vis = f"--config configs/mae_priv/ViT-S_100E_Norm_{kind}.yaml --save_path {tmp_path}/restruct"
    command(f"reconstruct {vis} --model_path {saved} --img_path {picture}")
    assert list((tmp_path / "restruct").glob("*.png"))


@pytest.mark.compat
def test_mae_pytorch_from_pretraining_to_pictures(images, pretrain, tmp_path):
    out, (picture, *_) = tmp_path / "out", sorted((images / "val").rglob("*.jpg"))
    pretrain(MAE_PYTORCH, f"{SMALL} --decoder_num_heads 2", images / "train", out)
    config = load_config(str(out / "config.yaml"))
    assert (config.method, config.lr, config.min_lr, config.norm_pix_loss) == ("mae_pytorch", 1.5e-4, 1e-5, True)
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert 0.5 < records[-1]["loss"] < 3
    saved = out / "checkpoint-latest.pd"
    tensors = weights.read(saved).model
    assert not {"encoder.cls_token", "encoder.pos_embed", "decoder.embed.bias"} & set(tensors)
    flags = f"--model vit_base_patch16_224 --data_path {images} --finetune {saved} {SIZES} --max_train_step 1"
    command(f"finetune {flags} --output_dir {tmp_path}/ft --no_save_ckpt")
    command(f"reconstruct {picture} {tmp_path}/seen {saved}")  # its run_mae_vis.py takes bare words
    assert list((tmp_path / "seen").glob("*.png"))


def test_rates_follow_the_number_of_images():
    """Both scale --lr by 256 images and MAE-priv's reads it from YAML."""
    line = ["--model", "pretrain_mae_large_patch16_224"]
    assert parse(line, PRETRAIN, prog="t").method == "mae_pytorch"
    assert parse([*line, "--method", "mae_priv"], PRETRAIN, prog="t").method == "mae_priv"
    giant = parse(["--model", "pretrain_mae_giant_patch14_224", "--decoder_dim", "256"], PRETRAIN, prog="t")
    assert (giant.method, giant.decoder_embed_dim, giant.lr_per_256) == ("mae_priv", 256, True)
    assert parse([*line, "--normlize_target", "False"], PRETRAIN, prog="t").norm_pix_loss is False
    private = [*line, "--method", "mae_priv"]
    for words, expected in (([], True), (["--use_cls_token", "False"], False), (["--use_cls_token", "True"], True)):
        assert parse([*private, *words], PRETRAIN, prog="t").class_token is expected
    ours = ["--model", "vit_small_patch16_224", "--method", "mae_priv"]
    for words, pooled in ((["--use_cls_token", "False"], True), (["--use_cls_token"], False)):
        assert parse([*ours, *words], FINETUNE, prog="t").global_pool is pooled


def test_crops_are_the_originals(images):
    """MAE-priv flips half of its images and can be told not to, MAE-pytorch flips none; both resize bilinearly."""
    cases = {
        "mae_priv": ["--model", "pretrain_mae_tiny_patch16_224"],
        "mae_priv flat": ["--model", "pretrain_mae_tiny_patch16_224", "--hflip", "0"],
        "mae_pytorch": ["--model", "pretrain_mae_small_patch16_224"],
    }
    flips = {}
    for name, words in cases.items():
        config = parse(words, PRETRAIN, prog="t")
        crop = load_method(config.method).train_transform(config).transform
        assert (crop.interpolation, crop.scale) == ("bilinear", (0.08, 1.0))
        flips[name] = crop.hflip
    assert flips == {"mae_priv": 0.5, "mae_priv flat": 0.0, "mae_pytorch": 0.0}


@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_shares_its_mask_or_not(images, shared):
    words = ["--model", "pretrain_mae_tiny_patch16_224", "--input_size", "32", "--patch_size", "8"]
    words += ["--embed_dim", "32", "--depth", "1", "--num_heads", "2", "--decoder_dim", "64", "--decoder_depth", "1"]
    config = parse([*words] if shared else [*words, "--no_batched_shuffle"], PRETRAIN, prog="t")
    task = load_method("mae_priv").build_task(config)
    rng = sample_rng(0, 0, 0)
    image = paddle.to_tensor(rng.integers(0, 256, (4, 32, 32, 3), np.uint8))
    noise = paddle.to_tensor(rng.random((4, 16), np.float32))
    whole = float(task({"image": image, "noise": noise}).loss)
    first = float(task({"image": image, "noise": noise[:1].expand([4, 16])}).loss)
    assert (whole == first) == shared
    names = {tuple(group.names) for group in task.param_groups(0.05) if group.weight_decay == 0}
    assert any("decoder.mask_token" in group for group in names)
    assert not any("encoder.cls_token" in group for group in names)
