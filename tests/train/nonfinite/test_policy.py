"""Numbers that are not finite never reach the weights; what --nan_policy says happens, in all processes, and again."""

from __future__ import annotations

import functools
import itertools
import json
import runpy
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.data.seeding import epoch_order
from plsc_mae.errors import CheckpointError
from plsc_mae.methods.classify import ClassifyTask
from plsc_mae.methods.mae import MAETask
from plsc_mae.train import setup
from plsc_mae.train.checkpoint.file import find_newest, load
from plsc_mae.train.nonfinite import policy, spikes
from plsc_mae.train.precision import FLOAT32

pytestmark = pytest.mark.compat

POISONED = Path(__file__).with_name("poisoned.py")
IMAGES, BATCH = 120, 12
FLAGS = f"--batch_size {BATCH}"
LAYER = "model.encoder.blocks.1.mlp.fc1"
only_mae = pytest.mark.parametrize("run", ["mae"], indirect=True)


def image_of(update: int, place: int = 0) -> int:
    """Number of an image that the update of this number sees, the first being 1; place 6 is the second process's."""
    epoch, iteration = divmod(update - 1, IMAGES // BATCH)
    return int(epoch_order(0, epoch, IMAGES)[iteration * BATCH + place])


@pytest.fixture
def poison(monkeypatch):
    """Let runs in this process go wrong at updates."""
    poisoned = runpy.run_path(str(POISONED))["poisoned"]

    def apply(what: str, *updates: int, places: Iterable[int] = (0,), task: type = MAETask) -> None:
        indices = [image_of(update, place) for update in updates for place in places]
        monkeypatch.setattr(task, "forward", poisoned(task.forward, what, indices))

    return apply


def newest(run, name):
    return load(find_newest(str(run.folder / name), ""))


def assert_same_state(one, two):
    assert set(one.tensors) == set(two.tensors)
    for key, value in one.tensors.items():
        np.testing.assert_array_equal(value, two.tensors[key], key)


def lines(records):
    """What of the log must repeat."""
    timed = ("images_per_second", "data_share", "memory_gib", "time", "run")
    return [{name: value for name, value in record.items() if name not in timed} for record in records]


# ------------------------------------------------------------------------------------------------------------ stop


@only_mae
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_see_it(run, poison, capfd):
    run.here("good", f"{FLAGS} --max_train_step 3")
    poison(LAYER, 4)
    assert main(["pretrain", *run.arguments("bad", f"{FLAGS} --save_ckpt_steps 3")]) == 3
    error = capfd.readouterr().err
    report = run.folder / "bad/nonfinite-4-rank0.json"
    assert "error: loss became nan at step 4 (epoch 0, learning rate " in error
    assert f"first in the output of {LAYER}; {report} lists the images; nothing was saved since" in error
    told = json.loads(report.read_text())
    assert (told["layer"], told["step"], told["losses"], told["grad_norm"]) == (LAYER, 4, ["nan"], "nan")
    assert [sample["index"] for sample in told["samples"]] == [image_of(4, place) for place in range(BATCH)]
    assert all(Path(sample["path"]).is_file() for sample in told["samples"])
    assert_same_state(newest(run, "bad"), newest(run, "good"))


@only_mae
def test_a_gradient_alone_stops_it_too(run, poison, capfd):
    poison("gradient", 2)
    assert main(["pretrain", *run.arguments("bad", FLAGS)]) == 3
    error = capfd.readouterr().err
    assert "grad_norm became " in error
    assert "nothing was saved yet; start again with --overwrite and a lower --lr or --blr" in error
    assert "--auto_resume" not in error
    told = json.loads((run.folder / "bad/nonfinite-2-rank0.json").read_text())
    assert told["layer"] is None
    assert told["gradients"][0].startswith("decoder.")  # where the gradient comes from
    assert isinstance(told["losses"][0], float)


@only_mae
def test_the_bad_iteration_of_a_group_is_found(run, poison):
    poison(LAYER, 3)  # of iterations here: the first of the second group of two
    assert main(["pretrain", *run.arguments("bad", f"{FLAGS} --accum_iter 2")]) == 3
    told = json.loads((run.folder / "bad/nonfinite-2-rank0.json").read_text())
    assert [sample["index"] for sample in told["samples"]] == [image_of(3, place) for place in range(BATCH)]
    assert (told["layer"], told["iteration"]) == (LAYER, 3)


# ------------------------------------------------------------------------------------------------------------ skip


@only_mae
def test_a_skipped_update_changes_nothing_and_the_run_goes_on(run, poison, capfd):
    run.here("good", f"{FLAGS} --max_train_step 3 --online_probe")
    poison(LAYER, 4)
    records = run.here("bad", f"{FLAGS} --max_train_step 4 --online_probe --nan_policy skip")
    good, bad = newest(run, "good"), newest(run, "bad")
    assert_same_state(good, bad)
    assert (good.meta["step"], bad.meta["step"]) == (3, 4)
    assert [record["skipped_updates"] for record in records] == [0, 0, 0, 1]
    assert "loss" not in records[3]
    assert "this update is skipped (--nan_policy skip)" in capfd.readouterr().err
    whole = run.here("whole", f"{FLAGS} --max_train_step 8 --online_probe --nan_policy skip")
    assert all(np.isfinite([record["loss"], record["online_loss"]]).all() for record in whole[4:])
    # Ended and gone on behind the bad update.
    rest = run.here("bad", f"{FLAGS} --max_train_step 8 --online_probe --nan_policy skip --auto_resume")
    assert lines(rest) == lines(whole)
    assert_same_state(newest(run, "bad"), newest(run, "whole"))
    assert newest(run, "bad").meta["bad_updates"] == newest(run, "whole").meta["bad_updates"]


@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_running_statistics_do_not_see_a_skipped_batch(classifier, monkeypatch):
    forward, calls = ClassifyTask.forward, itertools.count(1)

    def poisoned(task, batch):
        return forward(task, {**batch, "image": batch["image"] * float("nan")} if next(calls) == 3 else batch)

    flags = f"{FLAGS} --nan_policy skip --disable_eval_during_finetuning"
    monkeypatch.setattr(ClassifyTask, "forward", poisoned)
    classifier.here("good", f"{flags} --max_train_step 1")
    classifier.here("bad", f"{flags} --max_train_step 2")
    good, bad = newest(classifier, "good"), newest(classifier, "bad")
    assert bad.meta["bad_updates"]["skipped_updates"] == 1
    assert any("_mean" in name for name in bad.model)
    assert_same_state(good, bad)


@pytest.mark.once
@only_mae
def test_ten_skipped_updates_in_a_row_are_too_many_also_where_the_run_was_stopped_between(run, poison, capfd):
    run.here("bad", f"{FLAGS} --max_train_step 1")
    poison(LAYER, *range(1, 11), places=range(BATCH))
    run.here("bad", f"{FLAGS} --max_train_step 7 --nan_policy skip --auto_resume")
    assert newest(run, "bad").meta["bad_updates"]["skipped_in_a_row"] == 6
    assert main(["pretrain", *run.arguments("bad", f"{FLAGS} --nan_policy skip --auto_resume")]) == 3
    error = capfd.readouterr().err
    assert "loss became nan at step 11 " in error
    assert "the 10th skipped update in a row" in error


# -------------------------------------------------------------------------------------------------------- rollback


@only_mae
def test_a_rollback_takes_the_weights_back_and_leaves_out_the_images_since(run, poison, capfd):
    run.here("good", f"{FLAGS} --max_train_step 3")
    poison(LAYER, 6)
    flags = f"{FLAGS} --nan_policy rollback --save_ckpt_steps 3"
    records = run.here("bad", f"{flags} --max_train_step 6")
    assert f"restored weights and optimizer from {run.folder}/bad/checkpoint-latest.pd" in capfd.readouterr().err
    assert records[-1]["rollbacks"] == 1
    good, bad = newest(run, "good"), newest(run, "bad")
    assert (bad.meta["position"]["epoch"], bad.meta["position"]["images"]) == (0, 6 * BATCH)
    assert_same_state(good, bad)
    assert bad.meta["meters"] == good.meta["meters"]


@pytest.mark.once
@only_mae
def test_a_rollback_happens_again_after_a_stop(run, poison):
    poison(LAYER, 7)
    flags = f"{FLAGS} --nan_policy rollback --save_ckpt_steps 5"
    whole = run.here("whole", f"{flags} --max_train_step 12")
    run.here("cut", f"{flags} --max_train_step 5")  # what a run killed between 5 and 10 leaves
    rest = run.here("cut", f"{flags} --max_train_step 12 --auto_resume")
    assert lines(rest) == lines(whole)
    assert_same_state(newest(run, "cut"), newest(run, "whole"))


@pytest.mark.once
@only_mae
def test_a_rollback_passes_damaged_checkpoints_over(run, poison, monkeypatch, capfd):
    run.here("bad", f"{FLAGS} --max_train_step 10")

    def load_but_latest(path):
        if path.name == "checkpoint-latest.pd":
            raise CheckpointError(f"{path} is damaged")
        return load(path)

    monkeypatch.setattr(policy.checkpoint_file, "load", load_but_latest)
    poison(LAYER, 14)
    first = run.folder / "bad/checkpoint-0.pd"
    run.here("bad", f"{FLAGS} --max_train_step 14 --nan_policy rollback --save_ckpt_steps 6 --resume {first}")
    assert "ignoring unusable checkpoint: " in capfd.readouterr().err
    assert newest(run, "bad").meta["step"] == 14
    assert_same_state(newest(run, "bad"), load(first))


@only_mae
@pytest.mark.parametrize(
    ("updates", "told"),
    [
        ([1], "there is no checkpoint yet for --nan_policy rollback; start again with --overwrite and"),
        (range(3, 10), "after 3 rollbacks without a checkpoint"),
    ],
)
def test_what_a_rollback_cannot_mend_stops_the_run(run, poison, capfd, updates, told):
    poison(LAYER, *updates)
    # Checkpoints without a good update since the last rollback do not count.
    assert main(["pretrain", *run.arguments("bad", f"{FLAGS} --nan_policy rollback --save_ckpt_steps 2")]) == 3
    assert told in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------- processes


def launch(run, name: str, what: str, index: int, flags: str) -> tuple[int, list[str]]:
    """Run by two processes; return the exit code and the logs."""
    logs = run.folder / f"{name}-workers"
    words = [POISONED, what, index, "pretrain", *run.arguments(name, flags)]
    launched = run.fork_server.launch(words, 2, logs)
    launched.communicate(120)
    return launched.returncode, [(logs / f"workerlog.{rank}").read_text() for rank in range(2)]


@pytest.mark.once
@pytest.mark.long
@only_mae
@pytest.mark.parametrize(
    ("flags", "told", "reports"),
    [
        (f"--batch_size {BATCH // 2}", "process 1", [1]),
        (f"--batch_size {BATCH} --tensor_parallel 2", "processes 0, 1", [0, 1]),  # which look for the layer together
    ],
    ids=["data", "tensor"],
)
def test_all_processes_stop_for_one_of_them(run, flags, told, reports):
    code, logs = launch(run, "two", LAYER, image_of(3, place=6), flags)
    assert code == 3, logs
    for log in logs:
        assert f"error: loss became nan in {told} at step 3" in log
        assert "Traceback" not in log
    found = sorted((run.folder / "two").glob("nonfinite-*.json"))
    assert [path.name for path in found] == [f"nonfinite-3-rank{process}.json" for process in reports]
    for path in found:
        report = json.loads(path.read_text())
        assert report["layer"] == LAYER
        assert image_of(3, place=6) in [sample["index"] for sample in report["samples"]]
        assert len(report["samples"]) == BATCH // (3 - len(reports))
        assert report["losses"][1] == "nan"
    assert not list((run.folder / "two").glob("*.pd"))


@pytest.mark.once
@pytest.mark.long
@only_mae
@pytest.mark.parametrize("policy", [pytest.param("skip", marks=pytest.mark.slow), "rollback"])
def test_two_processes_go_on_as_one_does(run, poison, policy):
    flags = f"--nan_policy {policy} --save_ckpt_steps 2 --max_train_step 8 --drop_path 0"
    code, logs = launch(run, "two", LAYER, image_of(5, place=6), f"--batch_size {BATCH // 2} {flags}")
    assert code == 0, logs
    poison(LAYER, 5)
    one, two = run.here("one", f"{FLAGS} {flags}"), run.records("two")
    # 1e-5: sums over the batch are rounded differently.
    losses = [[record["loss"] for record in records if "loss" in record] for records in (one, two)]
    assert len(losses[0]) == 7
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    counted = "skipped_updates" if policy == "skip" else "rollbacks"
    assert [record[counted] for record in two] == [record[counted] for record in one] == [0] * 4 + [1] * 4


# ------------------------------------------------------------------------------------------------ loss scale, spikes


@pytest.fixture
def float16(monkeypatch):
    """Runs in float32 with the loss scale of float16; on CPU Paddle computes nothing in 16 bits."""
    return functools.partial(scale_losses, monkeypatch)


def scale_losses(monkeypatch, initial: float | None) -> None:
    monkeypatch.setattr(setup, "choose_precision", lambda *_: FLOAT32._replace(initial_loss_scale=initial))


@only_mae
def test_an_overflow_halves_the_loss_scale_and_is_no_fault(run, poison, float16):
    float16(2.0**16)
    plain = run.here("plain", f"{FLAGS} --max_train_step 3")
    float16(None)
    exact = run.here("exact", f"{FLAGS} --max_train_step 3")
    assert [record["loss"] for record in plain] == [record["loss"] for record in exact]  # a power of 2 rounds nothing
    float16(2.0**16)
    poison("gradient", 4)
    records = run.here("bad", f"{FLAGS} --max_train_step 6")
    assert [record["loss_scale"] for record in records] == [65536.0] * 3 + [32768.0] * 3
    run.here("cut", f"{FLAGS} --max_train_step 4")
    rest = run.here("cut", f"{FLAGS} --max_train_step 6 --auto_resume")
    assert lines(rest) == lines(records)
    assert_same_state(newest(run, "cut"), newest(run, "bad"))
    assert newest(run, "cut").meta["scaler"] == newest(run, "bad").meta["scaler"]


@only_mae
def test_overflow_at_the_smallest_loss_scale_is_a_fault(run, poison, float16, capfd):
    float16(2.0)
    poison("gradient", 2, 3)
    assert main(["pretrain", *run.arguments("bad", FLAGS)]) == 3
    error = capfd.readouterr().err
    assert "at step 3 (epoch 0, learning rate" in error
    assert "loss scale 1)" in error


@pytest.mark.once
@only_mae
def test_a_spike_is_written_down_with_its_images(run, poison, monkeypatch, capfd):
    monkeypatch.setattr(spikes, "MIN_UPDATES", 4)
    plain = run.here("plain", f"{FLAGS} --max_train_step 8")
    assert not (run.folder / "plain/spikes.jsonl").exists()
    poison("1000", 7)
    run.here("bad", f"{FLAGS} --max_train_step 8 --save_ckpt_steps 6")
    written = [json.loads(line) for line in (run.folder / "bad/spikes.jsonl").read_text().splitlines()]
    first = {line["what"]: line for line in written if line["step"] == 7}
    assert set(first) == {"loss", "grad_norm"}
    assert first["loss"]["value"] == pytest.approx(1000 * plain[6]["loss"], rel=1e-3)
    assert first["loss"]["usual"] == pytest.approx(plain[3]["loss"], rel=0.1)
    assert [sample["index"] for sample in first["loss"]["samples"]] == [image_of(7, place) for place in range(BATCH)]
    warnings = [line for line in capfd.readouterr().err.splitlines() if "spikes.jsonl" in line]
    assert len(warnings) == 2
    assert all("at step 7 (epoch 0)" in line and "--clip_grad" in line for line in warnings)
    monkeypatch.undo()
    before = run.folder / "bad/checkpoint-previous.pd"
    run.here("bad", f"{FLAGS} --max_train_step 7 --resume {before}")  # goes back before the spike
    assert (run.folder / "bad/spikes.jsonl").read_text() == ""
