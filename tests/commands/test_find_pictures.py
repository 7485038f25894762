"""The tools say what they leave out, and print and write names of any bytes."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.cli import main
from plsc_mae.commands.pictures import choose_images, find_pictures
from plsc_mae.data.imagefolder import find_images
from plsc_mae.errors import DataError
from plsc_mae.names import restore_name

GBK = os.fsdecode("狗".encode("gbk"))


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def names(folder: Path) -> list[str]:
    images = find_pictures(str(folder))
    return [images.paths[index] for index in range(len(images))]


def test_a_folder_gives_loose_images_and_those_of_its_folders(tmp_path, caplog):
    folder = touch(tmp_path, "b/0.png", "a/0.png", "1.png", "docs/x.txt", "._1.png", "@eaDir/0.png", ".cache/0.png")
    with caplog.at_level(logging.INFO, logger="plsc_mae"):
        assert names(folder) == ["1.png", "a/0.png", "b/0.png"]
    (record,) = caplog.records
    assert "ignored 3 hidden" in record.message


def test_images_of_other_formats_are_named_with_a_remedy_of_the_tool(tmp_path, caplog):
    names(touch(tmp_path, "1.png", "2.gif", "a/3.gif"))
    (record,) = caplog.records
    assert "left out 2 files of other formats (2 .gif" in record.message
    assert "--img_path" in record.message


def test_of_a_folder_with_splits_val_is_used(tmp_path):
    assert names(touch(tmp_path, "train/a/0.png", "test/0.png", "val/a/0.png")) == ["a/0.png"]


def test_two_readings_are_refused(tmp_path):
    with pytest.raises(DataError, match=f"if 'val' is a split, pass --img_path {tmp_path}/val"):
        names(touch(tmp_path, "val/0.png", "cat/0.png"))


def test_files_that_are_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(DataError, match=r"--img_path .*a\.png is a gzip archive; expected an image"):
        names(tmp_path / "a.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match="an empty file"):
        names(tmp_path / "empty.png")
    (tmp_path / "b.gif").write_bytes(b"GIF89a\0")
    assert names(tmp_path / "b.gif") == ["b.gif"]
    (tmp_path / "c.tga").write_bytes(bytes(20))  # a format without a signature
    assert names(tmp_path / "c.tga") == ["c.tga"]


def test_a_part_of_a_folder_is_named(tmp_path, caplog):
    """Of a divided folder the validation images are read, which the user did not write."""
    caplog.set_level(logging.INFO, logger="plsc_mae")
    touch(tmp_path, "photos/a/0.png", "photos/b/1.png", "split/train/a/0.png", "split/val/a/1.png")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("../photos/a/0.png 0\n")
    (lists / "val.txt").write_text("../photos/b/1.png 1\n")
    (lists / "classes.txt").write_text("cat\ndog\n")
    for whole in ("photos", "lists/val.txt"):
        names(tmp_path / whole)
    assert caplog.messages == []
    found = find_pictures(str(lists))
    assert ([found.name(0)], found.classes, found.labels.tolist()) == (["../photos/b/1.png"], ("cat", "dog"), [1])
    names(tmp_path / "split")
    assert caplog.messages == [f"reading 1 image of {lists}/val.txt", f"reading 1 image of {tmp_path}/split/val"]


def test_a_list_file_gives_its_images(tmp_path):
    touch(tmp_path, "a b/0.png", "1.png")
    (tmp_path / "list.txt").write_text("a b/0.png 1\n1.png 0\n")
    assert names(tmp_path / "list.txt") == ["a b/0.png", "1.png"]
    (tmp_path / "notes.md").write_text("nothing\n")
    with pytest.raises(DataError, match=r"list file .*notes\.md names nothing"):
        names(tmp_path / "notes.md")


def test_a_limit_is_said(tmp_path, caplog):
    images = find_images(touch(tmp_path, *(f"{i}.png" for i in range(20))), "val")
    with caplog.at_level(logging.INFO, logger="plsc_mae"):
        assert choose_images(images, 20) == list(range(20))
        assert caplog.records == []
        assert choose_images(images, 5) == [0, 4, 8, 12, 16]
    assert "5 of 20 images" in caplog.text
    assert "--max_images 20" in caplog.text


@pytest.fixture
def gbk_images(images, tmp_path) -> Path:
    """A folder of two images in folders and files with names in GBK."""
    folder = tmp_path / "gbk"
    for number, source in enumerate(sorted((images / "val").rglob("*.jpg"))[:2]):
        place = folder / f"{GBK}{number}" / f"{GBK}.jpg"
        place.parent.mkdir(parents=True)
        shutil.copy(source, place)
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_predictions_of_names_that_are_not_utf8(classifier, gbk_images, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict"))
    (tmp_path / "classes.txt").write_bytes("".join(f"狗{i}\n" for i in range(10)).encode("gbk"))
    file = tmp_path / f"found{suffix}"
    flags = f"--num_workers 0 --topk 2 --classes {tmp_path}/classes.txt --save_path {file}"
    assert main(f"predict --model_path {classifier} --img_path {gbk_images} {flags}".split()) == 0
    text = file.read_text(encoding="utf-8-sig" if suffix == ".csv" else "utf-8")
    if suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        found = [(row["image"], row["class"]) for row in rows if row["rank"] == "1"]
    else:
        records = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        found = [(record["image"], record["classes"][0]) for record in records]
    assert [name for name, _ in found] == [r"\xb9\xb70/\xb9\xb7.jpg", r"\xb9\xb71/\xb9\xb7.jpg"]
    for name, label in found:
        assert (gbk_images / restore_name(name)).exists()
        assert label in {f"狗{i}" for i in range(10)}
    sys.stdout.flush()
    assert rb"\xb9\xb70/\xb9\xb7.jpg" in sys.stdout.buffer.getvalue()


def test_features_of_names_that_are_not_utf8(trained, gbk_images, tmp_path):
    model, file = trained() / "checkpoint-1.pd", tmp_path / "features.npz"
    line = f"extract --model_path {model} --data_path {gbk_images} --save_path {file} --num_workers 0"
    assert main(line.split()) == 0
    arrays = np.load(file)
    assert arrays["classes"].tolist() == [r"\xb9\xb70", r"\xb9\xb71"]
    assert all((gbk_images / restore_name(str(path))).exists() for path in arrays["paths"])
