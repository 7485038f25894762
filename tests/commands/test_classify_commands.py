"""Fine-tuning and probing commands of the originals: whole where they start with our programs, else by our scripts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from plsc_mae.cli import main
from plsc_mae.train.checkpoint import file as checkpoint_file

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "tests/golden/mae/checkpoints"
# FINETUNE.md of facebookresearch/mae, started as PLSC does.
MAE_FINETUNE = """main_finetune.py
    --accum_iter 4
    --batch_size 32
    --model vit_base_patch16
    --finetune ${PRETRAIN_CHKPT}
    --epochs 100
    --blr 5e-4 --layer_decay 0.65
    --weight_decay 0.05 --drop_path 0.1 --reprob 0.25 --mixup 0.8 --cutmix 1.0
    --dist_eval --data_path ${IMAGENET_DIR}"""
MAE_LINPROBE = """main_linprobe.py
    --batch_size 512
    --model vit_base_patch16 --cls_token
    --finetune ${PRETRAIN_CHKPT}
    --epochs 90
    --blr 0.1
    --weight_decay 0.0
    --dist_eval --data_path ${IMAGENET_DIR}"""
# README of pengzhiliang/MAE-pytorch, behind its launcher.
MAE_PYTORCH = """scripts/finetune.sh
    --model vit_base_patch16_224
    --data_path ${IMAGENET_DIR}
    --finetune ${PRETRAIN_CHKPT}
    --output_dir output/
    --batch_size 128
    --opt adamw
    --opt_betas 0.9 0.999
    --weight_decay 0.05
    --epochs 100
    --dist_eval"""
# README of BUPT-PRIV/MAE-priv, with our folder of configs.
MAE_PRIV = """{script}
    --config configs/mae_priv/{config}.yaml
    --data_path ${{IMAGENET_DIR}}
    --finetune ${{PRETRAIN_CHKPT}}"""
# Sizes in place of ViT-B's, which tests/commands/test_official_command.py trains.
SIZES = "--embed_dim 48 --depth 2 --num_heads 4"
# Sizes of the recorded checkpoints and of the demo pictures; one iteration ends the run.
SMALL = "--input_size 16 --patch_size 4 --embed_dim 8 --depth 2 --num_heads 2 --num_workers 0 --batch_size 10"


@pytest.fixture
def run(by_script):
    """Run a command of a README with more flags; its output."""

    def run(command: str, flags: str, images: Path, start: Path, folder: Path) -> str:
        program, *words = f"{command} {flags}".split()
        given = {"${IMAGENET_DIR}": str(images), "${PRETRAIN_CHKPT}": str(start)}
        return by_script(program, [given.get(word, word) for word in words], folder)

    return run


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    """Train the autoencoder of the official command for an update, in small sizes."""
    folder = tmp_path_factory.mktemp("vit_base")
    flags = "--model mae_vit_base_patch16 --norm_pix_loss --decoder_depth 1 --vis_freq 0 --num_workers 0"
    flags += f" {SIZES}"
    words = f"pretrain {flags} --batch_size 2 --max_train_step 1 --data_path {images} --output_dir {folder}"
    assert main(words.split()) == 0
    yield folder / "checkpoint-latest.pd"
    (folder / "checkpoint-latest.pd").unlink()


@pytest.mark.slow
def test_the_official_fine_tuning_of_vit_base(run, images, pretrained, tmp_path):
    run(
        MAE_FINETUNE,
        f"--batch_size 2 --accum_iter 2 --max_train_step 2 --no_save_ckpt {SIZES}",
        images,
        pretrained,
        tmp_path,
    )
    (record,) = [json.loads(line) for line in (tmp_path / "output_dir/train.jsonl").read_text().splitlines()]
    assert math.isclose(record["loss"], math.log(10), rel_tol=0.02)  # the fresh head is close to 0
    # The second of 8 updates in the first of 5 epochs of warm-up: 2 of 15 iterations are done.
    assert math.isclose(record["lr"], 5e-4 * 4 / 256 * 2 / 15 / 5, rel_tol=1e-6)
    assert math.isclose(record["min_lr"] / record["lr"], 0.65**3, rel_tol=1e-6)


def test_the_official_probing_of_vit_base(run, images, pretrained, tmp_path):
    output = run(MAE_LINPROBE, f"--batch_size 10 --max_train_step 1 {SIZES}", images, pretrained, tmp_path)
    assert "learning rate 0.003906 (0.1 x 10 / 256)" in output
    stored = checkpoint_file.load(tmp_path / "output_dir/checkpoint-latest.pd").model
    assert stored["head.1.weight"].shape == (48, 10)
    assert sum(value.size for name, value in stored.items() if name.startswith("head.1.")) == 490


@pytest.mark.parametrize(
    ("command", "start"),
    [
        (MAE_PYTORCH, "mp_pretrain.pth"),
        (MAE_PRIV.format(script="scripts/finetune.sh", config="ViT-S_50E_GAP"), "priv_pretrain_gap.pth"),
        (MAE_PRIV.format(script="scripts/finetune.sh", config="ViT-S_50E_CLS-Token"), "priv_pretrain_cls.pth"),
        (MAE_PRIV.format(script="scripts/linprobe.sh", config="ViT-S_SGD_GAP"), "priv_pretrain_gap.pth"),
        pytest.param(
            MAE_PRIV.format(script="scripts/linprobe.sh", config="ViT-S_LARS_GAP"),
            "priv_pretrain_gap.pth",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_code_bases_by_our_scripts(run, command, start, images, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    output = run(command, f"{SMALL} --max_train_step 3", images, CHECKPOINTS / start, tmp_path)
    assert "tensors loaded, new layers: " in output
    folder = tmp_path / ("output" if "--output_dir" in command else "output_dir")
    (epoch,) = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert math.isfinite(epoch["train_loss"])
    assert 0 <= epoch["test_acc1"] <= 100


def test_the_k_nn_of_mae_priv(run, images, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    command = MAE_PRIV.format(script="scripts/knn.sh", config="ViT-S_50E_GAP") + " --save_path result"
    flags = "--nb_knn 5 --num_heads 2 --num_workers 0"
    output = run(command, flags, images, CHECKPOINTS / "priv_pretrain_gap.pth", tmp_path)
    assert "30 images in the bank, 10 queries, 8 features" in output
    assert (tmp_path / "result/output.txt").read_text().startswith(">> ")
