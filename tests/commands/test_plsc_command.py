"""PLSC's commands for CAE run as its README prints them: launcher, a few pictures, a random tokenizer.

Flags at the end of a command make the networks small, and the programs start without the launcher. Slow tests have the
full sizes, where the launcher starts pre-training.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from plsc_mae.cli import main
from plsc_mae.config.resolve import load_config
from plsc_mae.data.demo import make_demo_data
from plsc_mae.train.checkpoint import file as checkpoint_file

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
VARIABLES = r"""
# unset PADDLE_TRAINER_ENDPOINTS
# export PADDLE_NNODES=4
# export PADDLE_MASTER="xxx.xxx.xxx.xxx:12538"
# export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
# export PADDLE_JOB_ID=CAE

tmp_my_name=NAME
my_name=${tmp_my_name%.*}
OUTPUT_DIR='./output/'$my_name
echo $OUTPUT_DIR
DATA_PATH='./dataset/ILSVRC2012/'
TOKENIZER_PATH=dalle-weights
MODEL_PATH='output/ep800_fp16o1/ep800_fp16o1_checkpoint-799.pd'
FLAGS_cudnn_exhaustive_search=True
export FLAGS_gemm_use_half_precision_compute_type=False

python -m paddle.distributed.launch  \
  --nnodes=$PADDLE_NNODES \
  --master=$PADDLE_MASTER \
  --devices=$CUDA_VISIBLE_DEVICES \
"""
PRETRAIN = (
    VARIABLES.replace("NAME", "ep800_fp16o1")
    + r"""  main_pretrain.py \
  --data_path ${DATA_PATH} \
  --output_dir ${OUTPUT_DIR} \
  --model cae_base_patch16_224_8k_vocab --discrete_vae_weight_path ${TOKENIZER_PATH} \
  --batch_size 64 --lr 1.5e-3 --warmup_epochs 10 --epochs 800 \
  --clip_grad 3.0 --layer_scale_init_value 0.1 \
  --imagenet_default_mean_and_std \
  --color_jitter 0 \
  --drop_path 0 \
  --sincos_pos_emb \
  --mask_generator block \
  --num_mask_patches 75 \
  --decoder_layer_scale_init_value 0.1 \
  --no_auto_resume \
  --save_ckpt_freq 50 \
  --exp_name $my_name \
  --regressor_depth 4 \
  --seed 0 \
  --log_dir vdl \
  --num_decoder_self_attention 4 \
  --dual_loss_weight 2 \
  --dual_path_ema 0"""
)
FINETUNE = (
    VARIABLES.replace("NAME", "finetune_ep100_fp16o1")
    + r"""  main_finetune.py \
  --data_path ${DATA_PATH} \
  --output_dir ${OUTPUT_DIR} \
  --model cae_base_patch16_224 \
  --finetune $MODEL_PATH \
  --nb_classes 1000 \
  --batch_size 128 \
  --lr 8e-3 \
  --accum_iter 1 \
  --warmup_epochs 5 \
  --epochs 100 \
  --layer_decay 0.65 \
  --drop_path 0.1 \
  --weight_decay 0.05 \
  --mixup 0.8 \
  --cutmix 1.0 \
  --sin_pos_emb \
  --dist_eval \
  --no_auto_resume \
  --exp_name $my_name"""
)
LINPROBE = (
    VARIABLES.replace("NAME", "linprobe_ep90_fp16o1")
    + r"""  main_linprobe.py \
  --data_path ${DATA_PATH} \
  --output_dir ${OUTPUT_DIR} \
  --model cae_base_patch16_224 \
  --finetune $MODEL_PATH \
  --nb_classes 1000 \
  --batch_size 512 \
  --epochs 90 \
  --blr 0.1 \
  --weight_decay 0.0 \
  --dist_eval \
  --log_dir $OUTPUT_DIR \
  --enable_linear_eval \
  --use_cls \
  --save_freq 50 \
  --disable_rel_pos_bias \
  --linear_type standard \
  --exp_name $my_name"""
)


class Size(NamedTuple):
    """A size of the networks: the flags that ask for it, the encoder's width, and parameters as runs announce them."""

    encoder: str
    rest: str
    tokenizer: str
    width: int
    announced: dict[str, str]


SIZES = {
    "small": Size(
        "--embed_dim 48 --depth 2 --num_heads 4", "--decoder_embed_dim 48 --decoder_num_heads 4", "--n_hid 8", 48, {}
    ),
    "full": Size("", "", "", 768, {"pretrain": "148.7 M", "finetune": "86.5 M", "linprobe": "769,000"}),
}


@pytest.fixture(scope="module", params=["small", pytest.param("full", marks=pytest.mark.slow)])
def size(request) -> Size:
    """Return the size of the networks."""
    return SIZES[request.param]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, size):
    """Lay out what the commands expect to find around them."""
    folder = tmp_path_factory.mktemp("checkout")
    for program in ("main_pretrain.py", "main_finetune.py", "main_linprobe.py"):
        (folder / program).symlink_to(ROOT / program)
    (folder / "dataset").mkdir()
    make_demo_data(folder / "dataset" / "ILSVRC2012", image_size=32, train_per_class=1, val_per_class=1)
    assert main(["random-tokenizer", str(folder / "dalle-weights"), *size.tokenizer.split()]) == 0
    yield folder
    for large in [*folder.glob("dalle-weights/*"), *folder.glob("output/*/*.pd")]:  # more than two gigabytes
        large.unlink()


def paste(command: str, folder: Path) -> str:
    """Paste a command into a shell there, which starts Paddle's launcher, and return its output."""
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    path = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**inherited, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has no effect" not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def by_shell(words_of, fork_server):
    """Paste a command into a shell; start what it asks the launcher to start, and return the output."""

    def run(command: str, folder: Path) -> str:
        words = words_of(["bash", "-c", command], folder)
        assert words[:2] == ["-m", "paddle.distributed.launch"]
        program = next(place for place, word in enumerate(words) if word.endswith(".py"))
        done = fork_server.run(words[program:], cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "has no effect" not in done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def pretrained(checkout, size, by_shell) -> str:
    """Return the output of pre-training, whose checkpoint bears the name that it has after 800 epochs."""
    start = paste if size == SIZES["full"] else by_shell
    output = start(f"{PRETRAIN} --batch_size 2 --max_train_step 2 {size.encoder} {size.rest}", checkout)
    folder = checkout / "output" / "ep800_fp16o1"
    assert checkpoint_file.verify(folder / "ep800_fp16o1_checkpoint-latest.pd")["step"] == 2
    (folder / "ep800_fp16o1_checkpoint-latest.pd").rename(folder / "ep800_fp16o1_checkpoint-799.pd")
    return output


def test_pretraining(checkout, pretrained, size):
    assert f"{size.announced.get('pretrain', '')} trainable parameters" in pretrained
    folder = checkout / "output" / "ep800_fp16o1"
    config = load_config(str(folder / "config.yaml"))
    assert (config.batch_size, config.epochs, config.num_mask_patches, config.clip_grad) == (2, 800, 75, 3.0)
    (record,) = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert record["step"] == 2
    # The second update of a warm-up of 10 epochs.
    updates = 10 * updates_per_epoch(pretrained)
    assert math.isclose(record["lr"], 1.5e-3 / (updates - 1), rel_tol=1e-6)
    assert math.log(8192) - 1 < record["loss_main"] < math.log(8192) + 3  # nothing learned yet
    assert math.isclose(record["loss"], record["loss_main"] + record["loss_align"], rel_tol=1e-5)
    assert any((checkout / "vdl").iterdir())


def test_finetuning(checkout, pretrained, size, by_shell):
    """An epoch of one update and the evaluation after it."""
    output = by_shell(f"{FINETUNE} --batch_size 10 --max_train_step 1 {size.encoder}", checkout)
    blocks = 12 if size.width == 768 else 2
    assert f"checkpoint-799.pd (plsc_mae): {6 + 15 * blocks} tensors loaded" in output
    assert "new layers: encoder.blocks.*.attn.rel_pos_bias, head, " in output
    assert f"{size.announced.get('finetune', '')} trainable parameters" in output
    folder = checkout / "output" / "finetune_ep100_fp16o1"
    (epoch,) = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert math.isclose(epoch["train_loss"], math.log(1000), rel_tol=0.05)  # the fresh head is close to 0
    assert 0 <= epoch["test_acc1"] <= 100
    assert math.isclose(epoch["test_loss"], math.log(1000), rel_tol=0.05)
    config = load_config(str(folder / "config.yaml"))
    assert (config.phase, config.layer_decay, config.lr, config.exp_name) == (
        "finetune",
        0.65,
        8e-3,
        "finetune_ep100_fp16o1",
    )
    assert checkpoint_file.verify(folder / "finetune_ep100_fp16o1_checkpoint-best.pd")["step"] == 1


def test_linear_probing(checkout, pretrained, size, by_shell):
    output = by_shell(f"{LINPROBE} --batch_size 10 --max_train_step 1 {size.encoder}", checkout)
    assert f"{size.announced.get('linprobe', '')} trainable parameters" in output
    assert "learning rate 0.003906 (0.1 x 10 / 256)" in output
    folder = checkout / "output" / "linprobe_ep90_fp16o1"
    (epoch,) = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert epoch["n_parameters"] == (size.width + 1) * 1000
    assert math.isclose(epoch["train_loss"], math.log(1000), rel_tol=0.05)
    stored = checkpoint_file.load(folder / "linprobe_ep90_fp16o1_checkpoint-0.pd").model
    assert {"head.0.running_mean", "head.0.running_var", "head.1.weight", "head.1.bias"} <= set(stored)


def updates_per_epoch(output: str) -> int:
    """Updates of an epoch, as the run announces them."""
    line = next(line for line in output.splitlines() if "updates per epoch" in line)
    return int(line.split(" updates per epoch")[0].split()[-1])
