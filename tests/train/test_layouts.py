"""Whatever the layout of processes, a run follows the one of a single process: losses, norms, final weights.

Compared runs have the same batch in total. Drop path is on where a layout draws it alike: tensor parallelism does, the
others draw by part of the data or by stage.
"""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.train.checkpoint.file import find_newest, load

pytestmark = pytest.mark.long

STEPS = "--max_train_step 10"
# Sums over processes are rounded in another order, which AdamW turns into relative differences of single weights.
LOSSES, NORMS, WEIGHTS, PROBE_LOSSES = 1e-5, 1e-4, 1e-5, 1e-3


def trained(key, value):
    """Leave out what AdamW makes full steps of rounding noise of: what is added to all keys changes no attention."""
    if key.endswith("qkv.bias"):
        return np.delete(value.reshape(3, -1), 1, axis=0)
    return np.zeros(0) if key.endswith("norm_k.bias") else value


def newest(run, name):
    return load(find_newest(str(run.folder / name), ""))


def assert_follows(run, name, reference="one", *, exactly=False):
    """Compare records and last checkpoint of a run with those of another."""
    ours, theirs = run.records(name), run.records(reference)
    assert len(ours) == len(theirs) > 0
    names = (
        ("loss", LOSSES),
        ("grad_norm", NORMS),
        ("lr", 0),
        ("min_lr", 0),
        ("step", 0),
        ("online_loss", PROBE_LOSSES),
    )
    for key, tolerance in (name for name in names if name[0] in theirs[0]):
        wanted = [record[key] for record in theirs]
        assert [record[key] for record in ours] == pytest.approx(wanted, rel=0 if exactly else tolerance), key
    one, two = newest(run, name), newest(run, reference)
    assert set(one.tensors) == set(two.tensors)
    assert one.meta["position"] == two.meta["position"]
    for key, value in two.tensors.items():
        assert one.tensors[key].dtype == value.dtype, key
        if exactly:
            np.testing.assert_array_equal(one.tensors[key], value, key)
        elif key.startswith(("optimizer/", "online_probe/")):  # a young probe's gradients nearly cancel out
            assert one.tensors[key].shape == value.shape, key
        else:
            found, wanted = trained(key, one.tensors[key]), trained(key, value)
            np.testing.assert_allclose(found, wanted, atol=WEIGHTS, rtol=0, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_three_processes_share_data_that_they_do_not_divide(run):
    flags = "--max_train_step 6 --drop_path 0"  # 120 images are 5 batches of 21 and a rest
    run.here("one", f"{flags} --batch_size 21")
    run.elsewhere("dp3", f"{flags} --batch_size 7", 3)
    assert_follows(run, "dp3")


@pytest.mark.parametrize("run", ["cae", pytest.param("mae", marks=pytest.mark.slow)], indirect=True)
def test_tensor_parallel(run):
    flags = f"{STEPS} --batch_size 12 --clip_grad 0.2 --epochs 1 --warmup_epochs 0 --vis_freq 1"
    run.here("one", flags)
    run.elsewhere("tp2", f"{flags} --tensor_parallel 2", 2)
    assert_follows(run, "tp2")


@pytest.mark.slow
@pytest.mark.parametrize("run", ["mae", "cae"], indirect=True)
def test_tensor_and_data_parallel_with_shared_updates_and_accumulation(run):
    flags = "--max_train_step 3 --accum_iter 2 --print_freq 2 --drop_path 0 --online_probe"
    run.here("one", f"{flags} --batch_size 12")
    run.elsewhere("tp2dp2", f"{flags} --batch_size 6 --tensor_parallel 2 --sharding_stage 1", 4)
    assert_follows(run, "tp2dp2")


@pytest.mark.parametrize("run", ["mae", pytest.param("cae", marks=pytest.mark.slow)], indirect=True)
def test_shared_updates_and_recompute_change_no_bit(run):
    """Sums stay in their order: gradients are averaged as before, activations computed as before."""
    flags = f"{STEPS} --batch_size 6 --weight_decay 0.1"
    run.elsewhere("dp2", flags, 2)
    run.elsewhere("sharded", f"{flags} --sharding_stage 1 --recompute", 2)
    assert_follows(run, "sharded", "dp2", exactly=True)


@pytest.mark.parametrize("layout", ["--batch_size 6", "--batch_size 12 --tensor_parallel 2"])
@pytest.mark.parametrize("run", ["mae"], indirect=True)
@pytest.mark.slow
def test_two_launchers_as_on_two_machines(run, layout):
    run.here("one", f"{STEPS} --batch_size 12 --drop_path 0")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        master = f"127.0.0.1:{listener.getsockname()[1]}"
    launchers = [
        run.start(
            "two",
            f"{STEPS} {layout} --drop_path 0",
            workers=f"machine{rank}",
            launcher=f"--nnodes 2 --rank {rank} --master {master}",
            POD_IP="127.0.0.1",
        )
        for rank in range(2)
    ]
    for launcher in launchers:
        output, _ = launcher.communicate(timeout=300)
        assert launcher.returncode == 0, output
    assert_follows(run, "two")


@pytest.mark.parametrize("classifier", ["finetune", pytest.param("linprobe", marks=pytest.mark.slow)], indirect=True)
def test_pipeline(classifier):
    """Class loss, mixing, averaged weights, layer-wise rates; a probe's batch norm sees the whole batch."""
    flags = f"{STEPS} --batch_size 11 --drop_path 0 --epochs 1 --warmup_epochs 0"  # parts of a batch of 3, 3, 3 and 2
    classifier.here("one", flags)
    classifier.elsewhere("pp2", f"{flags} --pipeline_parallel 2", 2)
    assert_follows(classifier, "pp2")
    ours, theirs = (evaluation_losses(classifier, name) for name in ("pp2", "one"))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("classifier", ["finetune", "linprobe"], indirect=True)
def test_pipeline_and_data_parallel(classifier):
    """Mixing partners and batch norm are each process's own, so the reference has two processes too."""
    flags = f"{STEPS} --batch_size 6 --drop_path 0 --clip_grad 1"
    classifier.elsewhere("dp2", flags, 2)
    classifier.elsewhere("pp2dp2", f"{flags} --pipeline_parallel 2 --micro_batches 3", 4)
    assert_follows(classifier, "pp2dp2", "dp2")


@pytest.mark.parametrize("classifier", ["finetune", pytest.param("linprobe", marks=pytest.mark.slow)], indirect=True)
def test_tensor_parallel_classifiers(classifier):
    """LARS' norms are those of whole parameters; evaluation and averaged weights are those of one process."""
    opt = "--opt lars --blr 1" if classifier.command == "finetune" else "--linear_type attentive"
    flags = f"{STEPS} --batch_size 12 --epochs 1 --warmup_epochs 0 {opt}"
    classifier.here("one", flags)
    classifier.elsewhere("tp2", f"{flags} --tensor_parallel 2 --recompute", 2)
    assert_follows(classifier, "tp2")
    ours, theirs = (evaluation_losses(classifier, name) for name in ("tp2", "one"))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["--tensor_parallel 2", "--pipeline_parallel 2"])
@pytest.mark.parametrize("classifier", ["finetune", "linprobe"], indirect=True)
def test_cae_classifiers(classifier, layout):
    """Keys without bias, relative positions in every block, layer scales, an attentive probe."""
    sizes = "--input_size 32 --patch_size 8 --embed_dim 32 --depth 2 --num_heads 4 --drop_path 0 --no_auto_resume"
    classifier.flags = f"--model cae_base_patch16_224 {sizes}"
    probe = "" if classifier.command == "finetune" else "--linear_type attentive --opt sgd"
    flags = f"{STEPS} --batch_size 12 --epochs 1 --warmup_epochs 0 {probe}"
    classifier.here("one", flags)
    classifier.elsewhere("shared", f"{flags} {layout}", 2)
    assert_follows(classifier, "shared")


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_run_goes_on_in_other_layouts(run):
    """1 -> 2 -> tensor parallel 2 -> 1 processes follows the uninterrupted curve."""
    flags = "--drop_path 0"
    run.here("one", f"{flags} --batch_size 12 --max_train_step 16")
    run.here("moved", f"{flags} --batch_size 12 --max_train_step 4")
    run.elsewhere("moved", f"{flags} --batch_size 6 --max_train_step 8 --auto_resume", 2)
    run.elsewhere(
        "moved", f"{flags} --batch_size 12 --max_train_step 12 --auto_resume --tensor_parallel 2", 2, workers="again"
    )
    run.here("moved", f"{flags} --batch_size 12 --max_train_step 16 --auto_resume")
    assert_follows(run, "moved")


def evaluation_losses(run, name):
    """Return the losses of the evaluation after the last epoch; rounding may change an accuracy by a whole image."""
    record = json.loads((run.folder / name / "log.txt").read_text().splitlines()[-1])
    return {key: value for key, value in record.items() if "test_loss" in key}


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_process_alone_shares_with_nobody(run):
    run.here("one", "--max_train_step 3 --batch_size 12")
    run.here("sharded", "--max_train_step 3 --batch_size 12 --sharding_stage 1")
    assert_follows(run, "sharded", exactly=True)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--sharding_stage 3 --clip_grad 1", "--sharding_stage 3 and --clip_grad"),
        ("--amp_level O2 --opt sgd", "--amp_level O2 keeps float32 copies of the weights in AdamW"),
        ("--tensor_parallel 2", "1 process cannot form groups of --tensor_parallel 2"),
        ("--sharding_stage 2", "--sharding_stage 2 needs GPUs"),
        ("--sharding_stage 3", "--sharding_stage 3 needs GPUs"),
    ],
)
@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_impossible_layouts_are_refused(run, flags, sentence, capsys):
    assert main(["pretrain", *run.arguments("refused", flags)]) == 2
    assert sentence in capsys.readouterr().err
