"""The pre-training command of facebookresearch/mae and PLSC runs on a few pictures, by default with a small network.

At full size (slow) it runs as it is; models/test_mae_golden.py compares the full network with the original.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from plsc_mae.config.resolve import load_config
from plsc_mae.train.checkpoint import file as checkpoint_file

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
# PRETRAIN.md of facebookresearch/mae, started as PLSC does.
OFFICIAL = """main_pretrain.py \\
    --accum_iter 1 \\
    --batch_size 64 \\
    --model mae_vit_base_patch16 \\
    --norm_pix_loss \\
    --mask_ratio 0.75 \\
    --epochs 800 \\
    --warmup_epochs 40 \\
    --blr 1.5e-4 --weight_decay 0.05 \\
    --data_path ${IMAGENET_DIR}"""
SMALL = "--embed_dim 48 --depth 2 --num_heads 4 --decoder_embed_dim 32 --decoder_depth 1 --decoder_num_heads 4"


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [(SMALL, r"[\d,]+ "), pytest.param("", r"111\.", marks=pytest.mark.slow)],
    ids=["small", "full"],
)
def test_the_official_command_trains_vit_base(images, tmp_path, fork_server, sizes, parameters):
    words = OFFICIAL.replace("\\\n", "").replace("${IMAGENET_DIR}", str(images)).split()
    program, *flags = words
    command = [ROOT / program, *flags, "--batch_size", "2", "--max_train_step", "2", *sizes.split()]
    done = fork_server.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(f"mae_vit_base_patch16: {parameters}.*trainable parameters", done.stdout)

    folder = tmp_path / "output_dir"  # where facebookresearch/mae writes
    config = load_config(str(folder / "config.yaml"))
    assert (config.batch_size, config.epochs, config.blr, config.norm_pix_loss) == (2, 800, 1.5e-4, True)
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 2
    # The second of 15 updates in an epoch, of 40 epochs of warm-up; the first one has learning rate 0.
    assert math.isclose(records[-1]["lr"], 1.5e-4 * 2 / 256 / 40 / 15, rel_tol=1e-6)
    assert 0.9 < records[-1]["loss"] < 3  # targets have unit variance, to which fresh predictions add their own
    saved = folder / "checkpoint-latest.pd"
    assert checkpoint_file.verify(saved)["step"] == 2
    saved.unlink()  # more than a gigabyte
