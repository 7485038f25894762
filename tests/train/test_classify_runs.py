"""Fine-tuning and probing as runs: they go on exactly, no number depends on workers or processes, probes freeze."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from plsc_mae import weights
from plsc_mae.cli import main
from plsc_mae.commands import classify
from plsc_mae.train.checkpoint.file import find_newest, load

pytestmark = [pytest.mark.compat, pytest.mark.long]
FLAGS = "--batch_size 12 --max_train_step 14"  # 10 updates an epoch, so it stops within the second


def epochs(run, name: str) -> list[dict]:
    return [json.loads(line) for line in (run.folder / name / "log.txt").read_text().splitlines()]


def assert_same(run, one: str, two: str):
    ours, theirs = (load(find_newest(str(run.folder / name), "")) for name in (one, two))
    assert set(ours.tensors) == set(theirs.tensors)
    for key, value in ours.tensors.items():
        np.testing.assert_array_equal(value, theirs.tensors[key], key)
    assert {ours.meta[key] == theirs.meta[key] for key in ("epoch", "step", "position", "meters", "best")} == {True}
    return ours


def test_a_stopped_run_goes_on_exactly(classifier):
    whole = classifier.here("whole", FLAGS)
    classifier.here("cut", FLAGS.replace("14", "6"))
    rest = classifier.here("cut", f"{FLAGS} --auto_resume --num_workers 2")
    assert [record["loss"] for record in rest] == [record["loss"] for record in whole]
    stored = assert_same(classifier, "whole", "cut")
    assert stored.meta["phase"] == classifier.command
    assert any(name.startswith("model_ema/") for name in stored.tensors) == (classifier.command == "finetune")
    seen = {key: value for key, value in epochs(classifier, "whole")[0].items() if "test_" in key}
    assert seen.items() <= epochs(classifier, "cut")[0].items()
    assert {"test_loss", "test_acc1", "test_acc5"} <= set(seen)


def results(run, name: str) -> str:
    return (run.folder / name / "class_results.json").read_text()


@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_results_per_class(classifier, shades, capfd):
    """They are those of the logged accuracy, do not depend on interrupts, and two classes have no top-5 accuracy."""
    flags = f"--data_path {shades} --batch_size 12 --epochs 3 --blr 10 --nb_classes 3 --save_ckpt_freq 1"
    classifier.here("whole", flags)
    shown = capfd.readouterr().out
    assert "test_acc1" in shown
    assert "acc5" not in shown
    found = json.loads(results(classifier, "whole"))
    assert f"checkpoint-best.pd of epoch {found['best']['epoch']}, step {found['best']['step']}\n" in shown
    assert found["names"] == ["bright", "dark", "2"]
    logged = {line["step"]: line for line in epochs(classifier, "whole")}
    for entry in (found["last"], found["best"]):
        assert entry["images"] == [10, 10, 0]
        assert 100 * sum(entry["correct"]) / 20 == pytest.approx(logged[entry["step"]]["test_acc1"], abs=1e-3)
        assert sum(entry["predicted"]) == 20
        assert logged[entry["step"]]["test_acc5"] == 100
    assert found["last"]["epoch"] == 2
    assert 100 * sum(found["best"]["correct"]) / 20 == max(line["test_acc1"] for line in logged.values())
    checkpoint = classifier.folder / "whole/checkpoint-best.pd"
    assert main(["linprobe", *classifier.arguments("x", f"{flags} --eval --resume {checkpoint}")]) == 0
    line, more = capfd.readouterr().out.splitlines()[-2:]
    assert re.match(r"\* Acc@1 [\d.]+ Acc@5 100\.000 loss", line)  # tools read this line
    assert "Acc@5 is always 100 with 3 classes" in more
    classifier.here("cut", f"{flags} --max_train_step 14")
    classifier.here("cut", f"{flags} --auto_resume")
    assert results(classifier, "cut") == results(classifier, "whole")
    classifier.elsewhere("two", flags.replace("12", "6"), 2)
    assert json.loads(results(classifier, "two"))["last"] == found["last"]


@pytest.mark.once
def test_the_best_checkpoint_is_kept(classifier):
    classifier.here("best", "--batch_size 12 --epochs 3 --blr 0.1")
    accuracies = [line["test_acc1"] for line in epochs(classifier, "best")]
    best = load(classifier.folder / "best/checkpoint-best.pd")
    assert best.meta["best"] == max(accuracies)
    assert best.meta["epoch"] == int(np.argmax(accuracies))
    assert not (classifier.folder / "best/checkpoint-1.pd").exists()


@pytest.mark.parametrize("classifier", ["finetune"], indirect=True)
def test_two_processes_follow_one(classifier):
    """Without drop path and mixing, which are drawn by each process; and with an average of its own for evaluation."""
    flags = "--max_train_step 11 --drop_path 0 --mixup 0 --cutmix 0"
    one = classifier.here("one", f"{flags} --batch_size 12")
    two = classifier.elsewhere("two", f"{flags} --batch_size 6 --no_dist_eval", 2)
    assert [record["loss"] for record in two] == pytest.approx([record["loss"] for record in one], rel=1e-5)
    seen = [epochs(classifier, name)[0] for name in ("one", "two")]
    assert seen[1]["test_loss"] == pytest.approx(seen[0]["test_loss"], rel=1e-4)
    assert seen[1]["ema_test_loss"] == pytest.approx(seen[0]["ema_test_loss"], rel=1e-4)


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_evaluation_does_not_depend_on_the_processes(classifier, images, tmp_path, capfd):
    """17 images divide by neither 2 nor 3, and a batch of 3 leaves processes without any in the end."""
    classifier.here("probe", "--batch_size 12 --epochs 1 --warmup_epochs 0 --blr 1")
    paths = sorted((images / "val").glob("*/*.jpg"))[:17]
    classes = sorted(folder.name for folder in (images / "val").iterdir())
    lines = [f"{path} {classes.index(path.parent.name)}" for path in paths]
    (tmp_path / "val.txt").write_text("\n".join(lines) + "\n")
    flags = (
        f"--eval --resume {tmp_path / 'probe/checkpoint-0.pd'} --eval_data_path {tmp_path / 'val.txt'} --batch_size 3"
    )
    capfd.readouterr()
    assert main(["linprobe", *classifier.arguments("eval", f"{flags} --nb_classes 10")]) == 0
    alone = evaluation(capfd.readouterr().out)
    for processes in (2, 3):
        process = classifier.start("eval", f"{flags} --nb_classes 10", processes)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert evaluation(output) == pytest.approx(alone, rel=1e-5, abs=2e-3)  # two units of the last digit


def evaluation(output: str) -> list[float]:
    """Return accuracies and loss as printed."""
    (numbers,) = re.findall(r"Acc@1 (\S+) Acc@5 (\S+) loss (\S+), 17 images", output)
    return [float(number) for number in numbers]


@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_a_probe_moves_nothing_but_its_head(classifier, pretrained):
    classifier.here("probe", "--batch_size 12 --epochs 2 --blr 1")
    probed, start = load(classifier.folder / "probe/checkpoint-1.pd").model, weights.read(pretrained).model
    frozen = [name for name in start if name.startswith("encoder.")]
    assert len(frozen) == 30
    for name in frozen:
        np.testing.assert_array_equal(probed[name], start[name], name)
    assert set(probed) - set(frozen) == {
        f"head.{name}" for name in ("0.running_mean", "0.running_var", "1.weight", "1.bias")
    }
    assert np.abs(probed["head.0.running_mean"]).max() > 0


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["finetune"], indirect=True)
def test_what_cannot_go_on(classifier, pretrained, capsys):
    classifier.here("tuned", "--batch_size 12 --max_train_step 1")
    file = classifier.folder / "tuned/checkpoint-latest.pd"
    for flags, told in (
        (f"--resume {pretrained}", "was saved with phase 'pretrain', this run has 'finetune'"),
        (f"--resume {file} --opt sgd", "saved with opt 'adamw', this run has 'sgd'; resume with the --opt"),
        ("--eval --finetune=", "--eval needs a classifier to evaluate: --resume FILE"),
        ("--eval", "checkpoint-latest.pd holds no classifier"),
        ("--nb_classes 7", "--nb_classes 7 is fewer than the 10 classes of"),
        ("--data_set CIFAR", "contains no cifar-10-batches-bin or cifar-100-binary"),
        ("--no_global_pool --layer_decay 0", "--layer_decay must lie in (0, 1], got 0.0"),
    ):
        assert main(["finetune", *classifier.arguments("x", flags)]) == 2, flags
        assert told in capsys.readouterr().err, flags


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_a_run_that_max_train_step_ends_early_is_not_judged(classifier, monkeypatch):
    judged = []
    monkeypatch.setattr(classify, "warn_of_chance", lambda config, *_: judged.append(config.output_dir))
    for name, flags in (("early", "--max_train_step 4"), ("whole", "")):
        classifier.here(name, f"--batch_size 60 --epochs 4 --warmup_epochs 0 {flags}")
    assert judged == [str(classifier.folder / "whole")]


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_every_rate_of_a_sweep_learns_what_it_would_alone(classifier, shades, capsys):
    flags = f"--batch_size 12 --epochs 2 --data_path {shades}"
    sweep = classifier.here("sweep", f"{flags} --lr_sweep 0.5 20")
    captured = capsys.readouterr()
    assert re.search(r"--blr  test_acc1  test_loss\n +0\.5 .*\n +20 ", captured.out)
    assert re.search("checkpoints hold no classifier.*--auto_resume.*--blr", captured.out)
    lines = re.findall("^epoch .*", captured.out, re.MULTILINE)
    assert {len(re.findall(r"loss_lr", line)) for line in lines} == {1}
    assert [re.findall(r"\w+_lr", line) for line in lines if "done" in line] == [["test_loss_lr", "test_acc1_lr"]] * 2
    assert not any("[10/10]" in line for line in lines)
    for rate in ("0.5", "20"):
        alone = classifier.here(f"alone{rate}", f"{flags} --blr {rate}")
        losses = [record["loss"] for record in alone]
        assert [record[f"loss_lr{rate}"] for record in sweep] == pytest.approx(losses, rel=1e-5)
        ours, theirs = (epochs(classifier, name)[-1] for name in ("sweep", f"alone{rate}"))
        assert ours[f"test_loss_lr{rate}"] == pytest.approx(theirs["test_loss"], rel=1e-5)
        assert ours[f"test_acc1_lr{rate}"] == theirs["test_acc1"]
    assert losses[-1] != pytest.approx(sweep[-1]["loss_lr0.5"], rel=1e-3)
    assert not (classifier.folder / "sweep/class_results.json").exists()


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_cached_features_are_those_of_the_evaluation_crop(classifier, capsys):
    records = classifier.here("cached", "--batch_size 60 --epochs 30 --opt adamw --blr none --lr 0.03 --cache_features")
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]  # the same features in every epoch: quickly learned
    last = epochs(classifier, "cached")[-1]
    capsys.readouterr()
    flags = f"--eval --resume {classifier.folder / 'cached/checkpoint-29.pd'}"
    assert main(["linprobe", *classifier.arguments("x", flags)]) == 0
    top1, loss = re.findall(r"Acc@1 (\S+) .* loss (\S+), 20 images", capsys.readouterr().out)[0]
    assert float(top1) == pytest.approx(last["test_acc1"], abs=1e-3)
    assert float(loss) == pytest.approx(last["test_loss"], abs=1e-3)


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["finetune"], indirect=True)
def test_the_loss_falls(classifier, shades):
    """Dark and bright images are soon told apart; 1 in 30 has the other label."""
    flags = "--batch_size 12 --mixup 0 --cutmix 0 --reprob 0 --aa none --smoothing 0 --drop_path 0 --blr 0.1"
    flags += f" --layer_decay 1.0 --weight_decay 0 --data_path {shades}"
    losses = [record["loss"] for record in classifier.here("learn", flags)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])  # 0.27 measured


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["finetune"], indirect=True)
def test_other_data_and_other_sizes(classifier, tmp_path):
    """CIFAR's binary files, and an input of 48 pixels for an encoder of 32, whose positions are interpolated."""
    folder, pixels = tmp_path / "cifar-10-batches-bin", np.random.default_rng(0)
    folder.mkdir()
    for file, count in [*((f"data_batch_{i}.bin", 6) for i in range(1, 6)), ("test_batch.bin", 7)]:
        records = pixels.integers(0, 256, (count, 1 + 3 * 32 * 32), np.uint8)
        records[:, 0] %= 10
        (folder / file).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    records = classifier.here("cifar", f"--data_set CIFAR --data_path {tmp_path} --batch_size 10 --max_train_step 3")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert load(classifier.folder / "cifar/checkpoint-0.pd").meta["classes"][9] == "class9"
    assert epochs(classifier, "cifar")[0]["test_acc5"] % (100 / 7) == pytest.approx(0, abs=1e-3)

    classifier.here("larger", "--input_size 48 --batch_size 12 --max_train_step 1")
    assert load(classifier.folder / "larger/checkpoint-latest.pd").model["encoder.pos_embed"].shape == (1, 1 + 36, 32)
