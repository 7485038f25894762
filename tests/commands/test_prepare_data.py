"""`plsc-mae prepare-data` packs images so that runs see the same data, and continues after an interruption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae import folder_lock
from plsc_mae.cli import main
from plsc_mae.commands import prepare_data
from plsc_mae.data.imagefolder import find_images, find_validation

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path) -> Path:
    """3 training and 1 validation images of 2 classes, in JPEG and PNG; some are small, one is deep."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (16, 20, 3) if i == 1 else (48, 64, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.{'png' if name == 'dog' else 'jpg'}")
    Image.fromarray(np.full((48, 64), 40000, np.uint16)).save(tmp_path / "images/train/cat/deep.png")
    return tmp_path / "images"


def bits(images) -> list[bytes]:
    return [images.open(i).resize((24, 24)).tobytes() for i in range(len(images))]


def prepare(*words: object) -> int:
    return main(["prepare-data", *map(str, words)])


def test_files_are_packed_unchanged(source, tmp_path, capsys):
    assert prepare(source, tmp_path / "out", "--shards", "10K") == 0
    assert "7 images in" in capsys.readouterr().out
    for split in ("train", "val"):
        ours, theirs = find_images(tmp_path / "out", split), find_images(source, split)
        assert bits(ours) == bits(theirs)
        assert (ours.labels.tolist(), ours.classes) == (theirs.labels.tolist(), theirs.classes)
    shards = sorted((tmp_path / "out" / "train").glob("*.tar"))
    assert len(shards) > 2
    for shard in shards:
        with tarfile.open(shard) as archive:
            files = [item for item in archive if item.isfile()]
        assert shard.stat().st_size <= 10_240 or len(files) == 1
        assert {item.mtime for item in files} == {0}
    train = find_images(tmp_path / "out", "train")
    assert find_validation(train, str(tmp_path / "out")).labels.tolist() == [0, 1]


def test_larger_images_are_resized(source, tmp_path):
    assert prepare(source, tmp_path / "out", "--short", 24, "--quality", 80) == 0
    images = find_images(tmp_path / "out", "train")
    names = [path.partition("/")[2] for path in images.paths]
    assert names == [
        "cat/0.jpg",
        "cat/1.jpg",
        "cat/2.jpg",
        "cat/deep.png",
        "dog/0.png.jpg",
        "dog/1.png",
        "dog/2.png.jpg",
    ]
    sizes = [(image.height, image.width) for image in map(images.open, range(len(images)))]
    assert sizes == [(24, 32), (16, 20), (24, 32), (48, 64), (24, 32), (16, 20), (24, 32)]
    theirs = find_images(source, "train")
    for number in (1, 3, 5):
        np.testing.assert_array_equal(images.open(number).resize((9, 9)), theirs.open(number).resize((9, 9)))


def test_a_list_of_the_user_is_kept(source, tmp_path, capsys):
    """DST is the folder of the list that is packed: its place is that of the new list."""
    images = find_images(str(source), "train")
    folder = tmp_path / "lists"
    folder.mkdir()
    lines = "".join(f"{images.path(i)} {label}\n" for i, label in enumerate(images.labels))
    (folder / "images.txt").write_text(lines)
    words = ["prepare-data", str(folder / "images.txt"), str(folder)]
    assert main(words) == 2
    assert f"{folder}/images.txt exists" in capsys.readouterr().err
    assert (folder / "images.txt").read_text() == lines


def test_class_names_beside_a_list_are_copied(source, tmp_path, capsys):
    (source / "list.txt").write_text("train/dog/0.png 1\ntrain/cat/0.jpg 0\n")
    assert prepare(source / "list.txt", tmp_path / "out") == 0
    (source / "classes.txt").write_text("cat\ndog\n")
    assert prepare(source / "list.txt", tmp_path / "out") == 0  # shards that were written before the names
    packed = find_images(tmp_path / "out/images.txt", "train")
    assert (packed.classes, packed.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert all(re.search(r"/\d{9}-", path) for path in packed.paths)
    (tmp_path / "out/classes.txt").write_text("mine\nyours\n")
    assert prepare(source / "list.txt", tmp_path / "out") == 2
    assert f"{tmp_path}/out/classes.txt exists" in capsys.readouterr().err
    assert (tmp_path / "out/classes.txt").read_text() == "mine\nyours\n"


@pytest.mark.parametrize("kind", ["tar", "list", "numbers"])
def test_archives_and_lists_keep_order_and_labels(source, tmp_path, kind):
    first = tmp_path / "first"
    assert prepare(source / "train", first) == 0
    path = first
    if kind != "tar":
        names = ["train/dog/0.png", "train/cat/0.jpg", "train/dog/0.png"]
        labels = [" 1", " 0", " 1"] if kind == "numbers" else [""] * 3
        path = source / "list.txt"
        path.write_text("".join(f"{name}{label}\n" for name, label in zip(names, labels, strict=True)))
    assert prepare(path, tmp_path / "second") == 0
    packed = tmp_path / "second" / "images.txt" if kind == "numbers" else tmp_path / "second"
    ours, theirs = find_images(packed, "train"), find_images(path, "train")
    assert bits(ours) == bits(theirs)
    assert (ours.labels.tolist(), ours.classes) == (theirs.labels.tolist(), theirs.classes)
    assert ours.numbered == (kind == "numbers")


def test_unreadable_images(source, tmp_path, capsys):
    (source / "train/cat/0.jpg").write_bytes(b"")
    (source / "train/dog/0.png").write_bytes((source / "train/dog/0.png").read_bytes()[:200])
    assert prepare(source, tmp_path / "out", "--short", 24) == 2
    assert "--bad_image skip" in capsys.readouterr().err
    assert prepare(source, tmp_path / "skipped", "--short", 24, "--bad_image", "skip") == 0
    assert "5 images in 1 shard" in capsys.readouterr().out


def test_foreign_files_are_kept(source, tmp_path, capsys):
    target = tmp_path / "out" / "train"
    target.mkdir(parents=True)
    (target / "mine.tar").write_bytes(b"x")
    assert prepare(source, tmp_path / "out") == 2
    assert str(target) in capsys.readouterr().err
    assert prepare(source, source / "packed") == 2
    assert prepare(source, tmp_path / "new", "--shards", "1000X") == 2
    assert prepare(source, tmp_path / "new", "--quality", "90") == 2
    assert prepare(source, tmp_path / "new") == 0
    assert prepare(source, tmp_path / "new", "--short", 24, "--shards", "10K") == 2
    message = capsys.readouterr().err
    assert all(words in message for words in ("without --short", "without --quality", "--shards 1000000000")), message
    next((source / "train/cat").iterdir()).unlink()
    assert prepare(source, tmp_path / "new") == 2
    assert "other images" in capsys.readouterr().err


def test_a_folder_that_another_call_writes_to_is_refused(source, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(folder_lock, "WAIT", 0.0)
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/.hidden").touch()
    with folder_lock.locked(tmp_path / "out/train", "DST"):
        child = os.fork()  # the lock is one of processes
        if child == 0:
            os._exit(prepare(source, tmp_path / "out"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    message = capfd.readouterr().err
    assert all(words in message for words in (f"DST {tmp_path}/out/train", f"process {os.getpid()}")), message
    assert prepare(source, tmp_path / "out") == 0
    assert not list((tmp_path / "out").rglob(folder_lock.LOCK))


def test_finished_shards_may_be_read_only(source, tmp_path, monkeypatch):
    assert prepare(source, tmp_path / "out") == 0
    monkeypatch.setattr(prepare_data, "locked", lambda *_: pytest.fail("a lock needs a writable folder"))
    assert prepare(source, tmp_path / "out") == 0


@pytest.mark.parametrize(
    "change",
    [{"options": [1, 2]}, {"options": [["short", None]]}, {"options": None}, {"shards": [1]}, {"shards": [["a"] * 4]}],
)
def test_a_damaged_record_is_named(source, tmp_path, capsys, change):
    assert prepare(source, tmp_path / "out") == 0
    record = tmp_path / "out/train/prepare.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    assert prepare(source, tmp_path / "out") == 2
    assert str(record.parent) in capsys.readouterr().err


def test_an_interrupted_call_continues(source, tmp_path, monkeypatch):
    """The shards are those of an undisturbed call, bit for bit."""
    from plsc_mae.data.packed.shards import ShardWriter

    assert prepare(source, tmp_path / "whole", "--shards", "10K") == 0
    add, calls = ShardWriter.add, []

    def interrupted(writer, name, content):
        calls.append(name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return add(writer, name, content)

    monkeypatch.setattr(ShardWriter, "add", interrupted)
    assert prepare(source, tmp_path / "out", "--shards", "10K") == 130
    done = set((tmp_path / "out/train").glob("*.tar"))
    assert done
    monkeypatch.setattr(ShardWriter, "add", add)
    stamps = {path: path.stat().st_mtime_ns for path in done}
    assert prepare(source, tmp_path / "out", "--shards", "10K") == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in done}
    files = [path.relative_to(tmp_path / "whole") for path in sorted((tmp_path / "whole").rglob("*")) if path.is_file()]
    for file in files:
        ours, theirs = (tmp_path / name / file for name in ("out", "whole"))
        assert ours.read_bytes() == theirs.read_bytes(), file
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.slow
def test_a_killed_call_continues(source, tmp_path, fork_server):
    """SIGKILL at random moments; no process is left over."""
    for i in range(300):
        Image.effect_noise((200, 200), 50).save(source / "train/cat" / f"n{i}.png")
    words = [
        str(ROOT / "plsc_mae/__main__.py"),
        "prepare-data",
        str(source),
        str(tmp_path / "out"),
        "--short",
        "32",
        "--shards",
        "20K",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for seconds in (0.2, 0.4, 0.6, 0.8):
        process = fork_server.start(words, env=environment, stderr=subprocess.STDOUT)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert prepare(source, tmp_path / "whole", "--short", 32, "--shards", "20K") == 0
    assert prepare(source, tmp_path / "out", "--short", 32, "--shards", "20K") == 0
    records = [json.loads((tmp_path / name / "train/prepare.json").read_text())["shards"] for name in ("out", "whole")]
    assert records[0] == records[1]
    for path in sorted((tmp_path / "whole").rglob("*.tar")):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes()
