"""The check of all files before the first update, and bad files in training and evaluation."""

from __future__ import annotations

import json
import shutil
import types

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.config.mae import MAEFinetuneConfig
from plsc_mae.data.listing import list_images
from plsc_mae.train import data_check

pytestmark = [pytest.mark.compat, pytest.mark.once]
ONE_STEP = "--batch_size 12 --max_train_step 1 --no_save_ckpt"


@pytest.fixture
def damaged(shades, tmp_path):
    """A copy of the two shades with bad files: two of 120 for training, three of 20 for validation."""
    folder = tmp_path / "图片"
    shutil.copytree(shades, folder)
    for name in ("train/dark/bright0.png", "train/dark/bright1.png", "val/dark/dark2.png", "val/bright/bright3.png"):
        (folder / name).write_bytes(b"no image")
    path = folder / "val/bright/bright4.png"
    path.write_bytes(path.read_bytes()[:300])
    return folder


@pytest.fixture
def finetune(damaged, pretrained, new_runs, tmp_path, capfd):
    """Run fine-tuning on the damaged images; gives exit code, output and warnings."""
    runs = new_runs("finetune", "", damaged, tmp_path)

    def run(flags: str, name: str = "out") -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["finetune", *runs.arguments(name, flags)])
        return code, *capfd.readouterr()

    return run


def test_a_run_ends_before_any_update_with_all_bad_files(finetune, damaged, tmp_path):
    code, out, err = finetune(ONE_STEP)
    assert code == 2
    assert "trainable parameters" not in out
    assert "2 of 120 files" in err
    assert "3 of 20 files" in err
    assert err.count("\n") == 1
    assert f"files of {damaged}/train cannot be used: dark/bright0.png: it is not an image" in err
    assert "--bad_image skip" in err
    text = (tmp_path / "out/data_check.json").read_text(encoding="utf-8")
    assert str(damaged) in text
    entries = json.loads(text)
    assert len(entries["train"]["bad"]) == 2
    assert len(entries["val"]["bad"]) == 3
    assert "truncated" in entries["val"]["bad"][f"{damaged}/val/bright/bright4.png"]


def test_with_skip_bad_files_are_named_once_and_have_no_part_in_the_accuracy(finetune, damaged, tmp_path):
    code, _, err = finetune("--batch_size 59 --epochs 2 --bad_image skip")
    assert code == 0
    assert err.count("dark/dark2.png") == 1
    assert "; dark/bright1.png: it is" in err
    assert err.count("files of ") == 2
    assert err.count("3 of 20 images cannot be read") == 1
    line = "--eval --resume {} --batch_size 6 --bad_image {}"
    checkpoint = tmp_path / "out/checkpoint-1.pd"
    code, out, err = finetune(line.format(checkpoint, "skip"), "eval")
    assert code == 0
    assert any(line.endswith(", 17 images") for line in out.splitlines())
    for path in (damaged / "val").glob("*/*.png"):
        if path.read_bytes() == b"no image" or path.name == "bright4.png":
            path.unlink()
    assert finetune(line.format(checkpoint, "error"), "eval")[1].splitlines()[-1] == out.splitlines()[-1]


def test_the_overview_counts_bad_files_and_a_later_start_names_them_only_if_they_changed(finetune, damaged, tmp_path):
    code, out, err = finetune(f"{ONE_STEP} --bad_image skip")
    assert code == 0
    assert "120 images (2 of them unreadable: others take their places)" in " ".join(out.split())
    assert "cannot be used: dark/bright0.png: it is not an image" in err
    for overview in ("", " --json"):
        code, out, err = finetune(f"{ONE_STEP} --bad_image skip --overwrite{overview}")
        (line,) = [line for line in err.splitlines() if "cannot be used" in line]
        assert "bright0.png" not in err
        assert "2 of 120 files" in line
        assert "3 of 20 files" in line
        assert f"{tmp_path}/out/data_check.json lists them" in line
    assert json.loads(out.splitlines()[1])["unreadable_images"] == 2
    shutil.copy(damaged / "train/dark/dark5.png", damaged / "train/dark/bright0.png")
    code, out, err = finetune(f"{ONE_STEP} --bad_image skip --overwrite")
    assert "120 images (1 of them unreadable: another takes its place)" in " ".join(out.split())
    assert "bright1.png: it is not an image" in err, "the list of training images has changed"
    assert "dark2.png" not in err, "that of validation images has not"


def test_files_of_other_bands_are_described_once_with_the_option_that_reads_them(finetune, damaged):
    """Also among damaged files, and without advice to skip nearly all files."""
    tifffile = pytest.importorskip("tifffile")
    values = np.zeros((32, 32, 4), np.uint16)
    for path in (damaged / "train").glob("*/*.png"):
        tifffile.imwrite(path.with_suffix(".tif"), values, photometric="minisblack", planarconfig="contig")
        if path.name not in ("bright0.png", "bright2.png"):
            path.unlink()
    code, _, err = finetune(ONE_STEP)
    assert code == 2
    assert err.count("4 bands") == 1
    assert "120 of 122 files" in err
    assert "--in_chans 4" in err
    assert "--bad_image" not in err
    assert finetune(f"{ONE_STEP} --bad_image skip")[::2] == (2, err)  # one file of 122 would be left


def test_a_list_without_a_good_file_is_refused_before_the_run(finetune, damaged):
    for path in (damaged / "train").glob("*/*.png"):
        path.write_bytes(b"no image")
    code, _, err = finetune(f"{ONE_STEP} --bad_image skip")
    assert code == 2
    assert "120 of 120 files" in err
    assert err.endswith("repair or remove the files\n")


def test_eval_stops_at_a_bad_image_by_default(finetune, damaged, pretrained, tmp_path):
    assert finetune(f"{ONE_STEP} --save_ckpt --bad_image skip")[0] == 0
    code, _, err = finetune(f"--eval --resume {tmp_path}/out/checkpoint-latest.pd --batch_size 6", "eval")
    assert code == 2
    assert f"{damaged}/val/" in err
    assert "--bad_image skip" in err


def test_a_long_check_is_not_repeated(finetune, damaged, monkeypatch, tmp_path):
    """A run with the same files examines the bad ones only; a repaired file is used again."""
    monkeypatch.setattr(data_check, "KEPT_FILES", 1)
    checked = []
    check_files = data_check.check_files
    monkeypatch.setattr(
        data_check,
        "check_files",
        lambda images, **options: checked.append(images.root) or check_files(images, **options),
    )
    assert finetune(ONE_STEP)[0] == 2
    assert len(checked) == 2
    for name in ("train/dark/bright0.png", "train/dark/bright1.png"):
        shutil.copy(damaged / "train/dark/dark5.png", damaged / name)
    code, _, err = finetune(ONE_STEP)
    assert code == 2
    assert len(checked) == 2
    assert "3 of 20 files" in err
    shutil.copy(damaged / "val/dark/dark3.png", damaged / "val/dark/new.png")
    finetune(ONE_STEP)
    assert [root.rpartition("/")[2] for root in checked[2:]] == ["val"]


def test_a_file_that_crashed_a_worker_is_not_read_again(finetune, damaged, tmp_path):
    """Its result is kept even if the file is intact by now; without the record it is checked again."""
    shutil.copy(damaged / "val/dark/dark3.png", damaged / "val/dark/dark2.png")
    assert finetune(ONE_STEP)[0] == 2
    record = tmp_path / "out/data_check.json"
    entries = json.loads(record.read_text())
    entries["val"]["bad"] = {
        f"{damaged}/val/dark/dark2.png": f"{damaged}/val/dark/dark2.png crashed or blocked a data worker"
    }
    record.write_text(json.dumps(entries))
    code, _, err = finetune(ONE_STEP)
    assert code == 2
    assert "dark2.png crashed or blocked a data worker" in err
    record.unlink()
    assert "dark2.png" not in finetune(ONE_STEP)[2]


@pytest.mark.parametrize("content", ["{", "[]", '{"train": [3]}'])
def test_a_damaged_result_counts_as_none(tmp_path, content):
    (tmp_path / data_check.RESULT).write_text(content)
    assert data_check._read(tmp_path / data_check.RESULT) == {}


def test_the_check_can_be_left_out(finetune, tmp_path):
    code, _, err = finetune(f"{ONE_STEP} --no_check_data --bad_image skip")
    assert code == 0
    assert "files of" not in err
    assert not (tmp_path / "out/data_check.json").exists()


@pytest.mark.parametrize("names", [(), ("train",), ("train", "val")])
def test_all_processes_meet_once_however_many_lists_they_read(damaged, tmp_path, names):
    """Pipeline stages after the first one read no files; they must not wait for each other's meetings."""
    meetings = []
    world = types.SimpleNamespace(
        is_main=True, rank=0, size=1, sum=lambda values: values, barrier=lambda: meetings.append("meet")
    )
    config = MAEFinetuneConfig(output_dir=str(tmp_path / "out"), bad_image="skip", num_workers=0)
    found = data_check.check_data(config, world, {name: list_images(str(damaged), name) for name in names})
    assert meetings == ["meet"]
    assert {name: len(bad) for name, bad in found.items()} == {name: {"train": 2, "val": 3}[name] for name in names}
