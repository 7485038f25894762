"""The list of a large folder is kept, and made again after any change of the folder."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from plsc_mae.data import folder_walk, kept_lists
from plsc_mae.data.folder_walk import LeftOut, recording_scans, scan
from plsc_mae.data.imagefolder import find_images
from plsc_mae.data.listing import list_images

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with hidden, loose and foreign files, old enough to be kept whatever its size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_lists, "KEPT_IMAGES", 1)
    root = tmp_path / "images" / "train"
    for name in (
        "cat/0.jpg",
        "cat/deep/1.jpg",
        "dog/0.jpg",
        "dog/.hidden.jpg",
        "dog/x.gif",
        "loose.jpg",
        "\udcb9/a.jpg",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    age(root)
    return tmp_path / "images"


def age(root) -> None:
    for path, _, _ in os.walk(root.parent):
        os.utime(path, (time.time() - 100,) * 2)


@pytest.fixture
def scans(monkeypatch):
    """Record the folders that are scanned."""
    found = []
    scandir = os.scandir
    monkeypatch.setattr(folder_walk.os, "scandir", lambda path: found.append(str(path)) or scandir(path))
    return found


def content(images):
    left_out = images.left_out
    counts = (left_out.hidden, left_out.loose, left_out.suffixes)
    return list(images.paths), images.labels.tolist(), images.classes, images.root, counts


def test_an_unchanged_folder_is_not_scanned_again(folder, scans):
    first = find_images(folder, "train")
    assert scans
    scans.clear()
    second = find_images(folder, "train")
    assert scans == []
    assert content(second) == content(first)
    assert second.labels.dtype == np.int64
    assert second.classes[2] == "\\xb9"
    unlabeled = list_images(folder, "train", labeled=False)
    assert len(unlabeled) == len(first) + 1


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "added deep", "new class", "folder replaced"])
def test_a_change_is_noticed(folder, change):
    find_images(folder, "train")
    cat = folder / "train" / "cat"
    if change == "added":
        (cat / "2.jpg").touch()
    elif change == "removed":
        (cat / "0.jpg").unlink()
    elif change == "renamed":
        (cat / "0.jpg").rename(cat / "3.jpg")
    elif change == "added deep":
        (cat / "deep" / "2.jpg").touch()
    elif change == "new class":
        (folder / "train" / "emu").mkdir()
        (folder / "train" / "emu" / "0.jpg").touch()
    else:
        cat.rename(folder.parent / "old")
        cat.mkdir()
        (cat / "7.jpg").touch()
    kept = list(find_images(folder, "train").paths)
    (folder.parent / "cache").rename(folder.parent / "unused")
    assert kept == list(find_images(folder, "train").paths)


def test_a_folder_that_has_just_changed_is_not_kept(folder, scans):
    (folder / "train" / "cat" / "2.jpg").touch()
    find_images(folder, "train")
    scans.clear()
    find_images(folder, "train")
    assert scans


def test_damaged_and_unwritable_caches_are_ignored(folder, monkeypatch):
    first = content(find_images(folder, "train"))
    (entry,) = (folder.parent / "cache").rglob("*.npz")
    for damage in (b"", b"x" * 100, entry.read_bytes()[:-30]):
        entry.write_bytes(damage)
        assert content(find_images(folder, "train")) == first
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert content(find_images(folder, "train")) == first


def test_small_folders_are_not_kept(folder, monkeypatch):
    monkeypatch.setattr(kept_lists, "KEPT_IMAGES", 100)
    find_images(folder, "train")
    assert not (folder.parent / "cache").exists()


def test_records_of_scans_can_be_nested(tmp_path):
    with recording_scans() as outer:
        with recording_scans() as inner:
            scan(tmp_path, LeftOut())
        scan(tmp_path, LeftOut())
    assert len(inner) == 1
    assert outer == inner * 2
    scan(tmp_path, LeftOut())
    assert len(outer) == 2
