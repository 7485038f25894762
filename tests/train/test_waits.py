"""Waits for the device: an update reads a single tensor on the host, in every phase and with every option.

Each array of a batch is copied to the device once.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from plsc_mae.train import trivial_losses

pytestmark = pytest.mark.compat

COUNTED = Path(__file__).with_name("counted.py")
WAITS = {"tolist parallel/world.py largest": 1}  # losses, gradient norm and stop signals, to decide on the update
PIXELS = "--target_mode rgb --discrete_vae_type to_tensor --decoder_num_classes 192"
ERASED = ["erase_boxes", "erase_noise", "image", "label"]
RUNS = {
    "mae": ("mae", "--online_probe", ["image", "label", "noise"]),
    "mae-accumulation": ("mae", "--accum_iter 2 --clip_grad 1", ["image", "noise"]),
    "cae": ("cae", "--clip_grad 3", ["image", "mask", "tokenizer_image"]),
    "cae-ema": ("cae", "--dual_path_ema 0.9", ["image", "mask", "tokenizer_image"]),
    "cae-pixels": ("cae", PIXELS, ["image", "mask"]),
    "simmim": ("simmim", "--clip_grad 5", ["image", "mask"]),
    "finetune": ("finetune", "--reprob 0.5 --clip_grad 1", ERASED),
    "finetune-skip": ("finetune", "--nan_policy skip", ERASED),
    "linprobe": ("linprobe", "", ["image", "label"]),
    "linprobe-attentive": ("linprobe", "--linear_type attentive --opt sgd", ["image", "label"]),
}


@pytest.fixture(autouse=True)
def remember_tokens():
    """Replace the fixture that keeps tokens from update to update: its digests would count as waits."""


@pytest.mark.parametrize("name", RUNS)
def test_an_update_waits_once(new_runs, images, tmp_path, monkeypatch, name):
    monkeypatch.setattr(trivial_losses, "ENOUGH_IMAGES", 12)  # measured once, in the first update, which is not counted
    kind, flags, arrays = RUNS[name]
    run = new_runs(kind, f"{flags} --batch_size 12", images, tmp_path)
    with runpy.run_path(str(COUNTED))["counted"](4) as counts:
        run.here("run", "--max_train_step 4 --print_freq 100")
    assert counts.updates == 3
    assert counts.per_update() == WAITS
    transfers = counts.per_iteration()
    mixing = {name: transfers.pop(name, 0) for name in list(transfers) if "mixup" in name}
    assert (counts.arrays, transfers) == (arrays, {"to_tensor data/transfer.py device_batch": len(arrays)})
    assert sum(mixing.values()) <= (3 if kind == "finetune" else 0)  # weights of images and labels, boxes


def test_an_update_of_two_processes_waits_once(new_runs, images, tmp_path, fork_server):
    run = new_runs("mae", "--accum_iter 2 --batch_size 6", images, tmp_path)
    words = [str(COUNTED), run.command, *run.arguments("run", "--max_train_step 4 --print_freq 100")]
    launched = fork_server.launch(words, 2, tmp_path / "logs")
    launched.communicate(120)
    for log in launched.logs:
        text = log.read_text()
        updates, waits, transfers, arrays = json.loads(text.splitlines()[-1])
        assert (updates, waits) == (3, WAITS), text
        assert transfers == {"to_tensor data/transfer.py device_batch": len(arrays)}
