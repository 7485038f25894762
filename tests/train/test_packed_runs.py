"""Training on archives: the weights of a run on a folder, also after SIGKILL, and all commands after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.train.checkpoint.file import find_newest, load

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(images, archives, tmp_path_factory) -> Path:
    """Five shards of train/ and one of val/."""
    folder = tmp_path_factory.mktemp("shards")
    for split, count in (("train", 5), ("val", 1)):
        archives.write_shards(images / split, folder / split, count)
    return folder


@pytest.fixture(scope="module")
def tables(images, archives, tmp_path_factory) -> Path:
    return archives.write_hub(images, tmp_path_factory.mktemp("tables"))


def assert_same_tensors(one: Path, other: Path) -> None:
    ours, theirs = (load(find_newest(str(folder), "")).tensors for folder in (one, other))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], name)


@pytest.mark.parametrize("kind", ["shards", "tables"])
@pytest.mark.parametrize("workers", [0, 2])
def test_pretraining_continues_after_sigkill(request, new_runs, images, tmp_path, kind, workers):
    packed = request.getfixturevalue(kind)
    flags = f"--batch_size 12 --max_train_step 20 --num_workers {workers}"
    folder_run = new_runs("mae", "", images, tmp_path / "folder")
    run = new_runs("mae", "", packed, tmp_path / "packed")
    whole = folder_run.here("whole", flags)
    flags += " --save_ckpt_steps 3"
    process = run.start("cut", flags.replace("--max_train_step 20", ""))
    run.kill_at(process, "cut", 8)
    rest = run.here("cut", f"{flags} --auto_resume")
    assert [record["loss"] for record in rest] == [record["loss"] for record in whole]
    assert_same_tensors(tmp_path / "folder" / "whole", tmp_path / "packed" / "cut")


@pytest.mark.parametrize("kind", ["shards", "tables"])
@pytest.mark.parametrize("classifier", ["finetune", "linprobe"])
def test_classifiers_and_their_evaluation(request, new_runs, images, tmp_path, kind, classifier, capfd):
    packed = request.getfixturevalue(kind)
    printed = []
    for name, path in (("folder", images), ("packed", packed)):
        runs = new_runs(classifier, "", path, tmp_path / name)
        runs.here("run", "--batch_size 12 --max_train_step 12")
        capfd.readouterr()
        checkpoint = find_newest(str(tmp_path / name / "run"), "")
        assert main([classifier, *runs.arguments("run", f"--eval --resume {checkpoint}")]) == 0
        printed.append([line for line in capfd.readouterr().out.splitlines() if line.startswith("* Acc@1")])
    assert_same_tensors(tmp_path / "folder" / "run", tmp_path / "packed" / "run")
    assert printed[0] == printed[1]
    assert printed[0]
