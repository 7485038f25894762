"""Runs with --compile follow those without it, random draws included."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.cli import main
from plsc_mae.errors import ConfigError
from plsc_mae.train.checkpoint.file import find_newest, load
from plsc_mae.train.compiled import CompiledTask
from plsc_mae.train.precision import Precision

STEPS = "--batch_size 12 --max_train_step 6 --vis_freq 0"
# Programs and eager operations round sums differently; AdamW makes full steps of rounding noise where gradients cancel.
LOSSES, WEIGHTS = 1e-6, 2e-5
CANCELLING = ("qkv.bias", "norm_k.bias")  # what is added to all keys changes no attention
RUNS = ("mae", "cae", "simmim", "finetune", "linprobe")


def run_of(kind: str, new_runs, images, tmp_path):
    flags = STEPS if kind in ("mae", "cae", "simmim") else STEPS.replace(" --vis_freq 0", "")
    return new_runs(kind, flags, images, tmp_path)


def assert_follows(run, name: str) -> None:
    ours, theirs = run.records(name), run.records("eager")
    assert len(ours) == len(theirs) == 6
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose([r[key] for r in ours], [r[key] for r in theirs], rtol=LOSSES, err_msg=key)
    one, two = (load(find_newest(str(run.folder / name_), "")).tensors for name_ in (name, "eager"))
    assert set(one) == set(two)
    for key, value in two.items():
        if not key.startswith("optimizer/") and not key.endswith(CANCELLING):
            np.testing.assert_allclose(one[key], value, atol=WEIGHTS, rtol=0, err_msg=key)


@pytest.mark.compat
@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize(
    "kind", [kind if kind == "simmim" else pytest.param(kind, marks=pytest.mark.slow) for kind in RUNS]
)
def test_compiled_runs_follow_eager_ones(new_runs, images, tmp_path, kind):
    run = run_of(kind, new_runs, images, tmp_path)
    run.here("eager")
    run.here("compiled", "--compile")
    assert_follows(run, "compiled")


@pytest.mark.slow
def test_two_compiled_processes_follow_one_eager(new_runs, images, tmp_path):
    run = new_runs("mae", "--max_train_step 6 --vis_freq 0 --drop_path 0 --accum_iter 2", images, tmp_path)
    run.here("eager", "--batch_size 12 --print_freq 2")
    run.elsewhere("compiled", "--batch_size 6 --print_freq 2 --compile", 2)
    ours, theirs = ([r["loss"] for r in run.records(name)] for name in ("compiled", "eager"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("pretrain --model mae_vit_tiny_patch16 --recompute", "--recompute"),
        ("pretrain --model mae_vit_tiny_patch16 --tensor_parallel 2", "--tensor_parallel 2"),
        ("pretrain --model mae_vit_tiny_patch16 --sharding_stage 2", "--sharding_stage 2"),
        ("finetune --model vit_base_patch16 --pipeline_parallel 2", "--pipeline_parallel 2"),
        ("linprobe --model vit_base_patch16 --tensor_parallel 2 --recompute", "--tensor_parallel 2 and --recompute"),
    ],
)
def test_options_that_cannot_be_compiled_are_refused(options, named, capsys):
    assert main([*options.split(), "--compile"]) == 2
    assert f"--compile cannot be combined with {named};" in capsys.readouterr().err


def test_mixed_precision_needs_paddle_3(monkeypatch):
    monkeypatch.setattr(paddle, "__version__", "2.6.2")
    with pytest.raises(ConfigError, match=r"--compile .* 2\.6\.2.*--no_amp"):
        CompiledTask(None, Precision("float16", ""))
