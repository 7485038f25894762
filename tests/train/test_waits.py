"""Waits for the device: an update reads a single tensor on the host, in every phase and with every option."""

from __future__ import annotations

import collections
import sys

import paddle
import pytest

from plsc_mae.train.trainer import Trainer

pytestmark = pytest.mark.compat

# Methods of Tensor that copy to the host or wait; `set_value` of a tensor goes through the host in Paddle 2.6.
WAITS = (
    *("numpy", "__array__", "item", "tolist", "__float__", "__bool__", "__int__", "__index__", "cpu"),
    "set_value",
)
ALLOWED = {"tolist parallel/world.py largest": 1}  # losses and gradient norm, to decide on the update
RUNS = {
    "mae": ("mae", "--online_probe"),
    "mae-accumulation": ("mae", "--accum_iter 2 --clip_grad 1"),
    "cae": ("cae", "--clip_grad 3"),
    "cae-ema": ("cae", "--dual_path_ema 0.9"),
    "cae-pixels": ("cae", "--target_mode rgb --discrete_vae_type to_tensor --decoder_num_classes 192"),
    "simmim": ("simmim", "--clip_grad 5"),
    "finetune": ("finetune", "--reprob 0.5 --clip_grad 1"),
    "finetune-skip": ("finetune", "--nan_policy skip"),
    "linprobe": ("linprobe", ""),
    "linprobe-attentive": ("linprobe", "--linear_type attentive --opt sgd"),
}


@pytest.fixture(autouse=True)
def remember_tokens():
    """Replace the fixture that keeps tokens from update to update: its digests would count as waits."""


@pytest.mark.parametrize("name", RUNS)
def test_an_update_waits_once(new_runs, images, tmp_path, monkeypatch, name):
    kind, flags = RUNS[name]
    found = count_waits(monkeypatch)
    new_runs(kind, f"{flags} --batch_size 12", images, tmp_path).here("run", "--max_train_step 4 --print_freq 100")
    updates = found.pop("updates")
    assert updates == 3
    assert {place: times / updates for place, times in found.items()} == ALLOWED


def count_waits(monkeypatch) -> collections.Counter[str]:
    """Count the waits of all updates but the first, by method and function, and the updates."""
    found, counting = collections.Counter[str](), False
    iterate = Trainer.iterate

    def counted_iterate(self, batch):
        nonlocal counting
        counting, before = self.progress.step > 0, self.progress.step
        iterate(self, batch)
        if counting:
            found["updates"] += self.progress.step - before
        counting = False

    def counted(name):
        original = getattr(paddle.Tensor, name)

        def method(*args, **options):
            nonlocal counting
            if not counting:
                return original(*args, **options)
            counting = False
            try:
                found[f"{name} {caller()}"] += 1
                return original(*args, **options)
            finally:
                counting = True

        return method

    monkeypatch.setattr(Trainer, "iterate", counted_iterate)
    for name in WAITS:
        if hasattr(paddle.Tensor, name):
            monkeypatch.setattr(paddle.Tensor, name, counted(name))
    return found


def caller() -> str:
    """Return the innermost file and function of plsc_mae that is being run."""
    frame = sys._getframe(2)
    while frame.f_back and "plsc_mae/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.split('plsc_mae/')[-1]} {frame.f_code.co_name}"
