"""PLSC's command for CAE runs as its README prints it, with the launcher, on a few pictures and a random tokenizer."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plsc_mae.cli import main
from plsc_mae.config.resolve import load_config
from plsc_mae.train import checkpoint

ROOT = Path(__file__).parents[2]
PLSC = r"""
# unset PADDLE_TRAINER_ENDPOINTS
# export PADDLE_NNODES=4
# export PADDLE_MASTER="xxx.xxx.xxx.xxx:12538"
# export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
# export PADDLE_JOB_ID=CAE

tmp_my_name=ep800_fp16o1
my_name=${tmp_my_name%.*}
OUTPUT_DIR='./output/'$my_name
echo $OUTPUT_DIR
DATA_PATH='./dataset/ILSVRC2012/'
TOKENIZER_PATH=dalle-weights
FLAGS_cudnn_exhaustive_search=True
export FLAGS_gemm_use_half_precision_compute_type=False

python -m paddle.distributed.launch  \
  --nnodes=$PADDLE_NNODES \
  --master=$PADDLE_MASTER \
  --devices=$CUDA_VISIBLE_DEVICES \
  main_pretrain.py \
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


@pytest.fixture
def checkout(images, tmp_path):
    """What the command expects to find around it."""
    (tmp_path / "main_pretrain.py").symlink_to(ROOT / "main_pretrain.py")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "ILSVRC2012").symlink_to(images)
    assert main(["random-tokenizer", str(tmp_path / "dalle-weights")]) == 0
    yield tmp_path
    for large in [*tmp_path.glob("dalle-weights/*"), *tmp_path.glob("output/*/*.pd")]:  # more than two gigabytes
        large.unlink()


def test_the_command_of_plsc_trains_cae_base(checkout):
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    path = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    done = subprocess.run(
        ["bash", "-c", PLSC + " --batch_size 2 --max_train_step 2"],
        cwd=checkout,
        env={**inherited, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cae_base_patch16_224_8k_vocab: 148.7 M trainable parameters" in done.stdout
    assert "has no effect" not in done.stdout + done.stderr

    folder = checkout / "output" / "ep800_fp16o1"
    config = load_config(str(folder / "config.yaml"))
    assert (config.batch_size, config.epochs, config.num_mask_patches, config.clip_grad) == (2, 800, 75, 3.0)
    (record,) = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert record["step"] == 2
    # The second update of a warm-up of 10 epochs.
    updates = 10 * record_updates(done.stdout)
    assert math.isclose(record["lr"], 1.5e-3 / (updates - 1), rel_tol=1e-6)
    assert math.log(8192) - 1 < record["loss_main"] < math.log(8192) + 3  # nothing learned yet
    assert math.isclose(record["loss"], record["loss_main"] + record["loss_align"], rel_tol=1e-5)
    assert any((checkout / "vdl").iterdir())
    assert checkpoint.verify(folder / "ep800_fp16o1_checkpoint-latest.pd")["step"] == 2


def record_updates(output: str) -> int:
    """Updates of an epoch, as the run announces them."""
    line = next(line for line in output.splitlines() if "updates per epoch" in line)
    return int(line.split(" updates per epoch")[0].split()[-1])
