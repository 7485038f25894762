"""Features on disk: continued after any kill with the same bits, never mixed with other features."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from plsc_mae import folder_lock
from plsc_mae.analysis import feature_store
from plsc_mae.analysis.feature_store import PROGRESS, FeatureStore
from plsc_mae.errors import DataError, FolderError
from plsc_mae.files import MARK

IDENTITY = {"images": "a", "--layers": "(1,)"}
ROWS = np.random.default_rng(0).standard_normal((10, 6), np.float32)
SHAPES = {"layer1/mean": (6,), "layer1/patch": (2, 3)}


def fill(store: FeatureStore, start: int, stop: int, unreadable: tuple[int, ...] = ()) -> None:
    """Add the images from `start` to `stop` in batches of two."""
    for first in range(start, stop, 2):
        kept = [i for i in range(first, first + 2) if i not in unreadable]
        arrays = {"layer1/mean": ROWS[kept], "layer1/patch": ROWS[kept].reshape(-1, 2, 3)}
        store.add(arrays, 2, [i for i in unreadable if first <= i < first + 2])


def opened(folder, dtype: str = "float32", **changed: str) -> FeatureStore:
    store = FeatureStore(folder / "x.partial", {**IDENTITY, **changed}, dtype)
    store.open(SHAPES, len(ROWS))
    return store


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """A store of 4 images, one unreadable, whose writer wrote a part of the next batch before it was killed."""
    monkeypatch.setattr(feature_store, "COMMIT_SECONDS", 0)
    store = opened(tmp_path)
    fill(store, 0, 4, (1,))
    for file in store._files.values():
        file.write(b"half a row")
        file.close()
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_those_of_the_readable_images(tmp_path, dtype):
    store = opened(tmp_path, dtype)
    fill(store, 0, 10, (1, 8))
    arrays = store.finish()
    kept = [0, 2, 3, 4, 5, 6, 7, 9]
    np.testing.assert_array_equal(arrays["layer1/mean"], ROWS[kept].astype(dtype))
    np.testing.assert_array_equal(arrays["layer1/patch"], ROWS[kept].reshape(-1, 2, 3).astype(dtype))
    assert store.unreadable == [1, 8]
    store.remove()
    assert list(tmp_path.iterdir()) == []
    assert arrays["layer1/mean"].sum() == ROWS[kept].astype(dtype).sum(dtype=dtype)  # the maps stay valid


def test_a_killed_writer_is_continued(killed):
    store = opened(killed)
    assert (store.images, store.unreadable) == (4, [1])
    fill(store, 4, 10)
    np.testing.assert_array_equal(store.finish()["layer1/mean"], ROWS[[0, *range(2, 10)]])


def test_rows_that_were_lost_are_computed_again(killed, messages):
    (killed / "x.partial/layer1-mean.rows").write_bytes(b"")
    assert opened(killed).images == 0
    assert "lacks rows" in messages[-1]


@pytest.mark.parametrize(("changed", "dtype"), [({"--layers": "(0,)"}, "float32"), ({}, "float16")])
def test_other_features_are_not_mixed(killed, messages, changed, dtype):
    store = opened(killed, dtype, **changed)
    assert (store.images, store.unreadable) == (0, [])
    assert ("--layers" if changed else "dtype") in messages[-1]
    fill(store, 0, 10)
    assert len(store.finish()["layer1/mean"]) == 10


def test_a_writer_killed_before_its_first_record_leaves_nothing(tmp_path):
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial/layer1-mean.rows").write_bytes(b"rows")
    assert opened(tmp_path).images == 0


def test_a_lock_of_an_earlier_version_is_no_obstacle(tmp_path):
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial/lock").touch()
    store = opened(tmp_path)
    assert not (tmp_path / "x.partial/lock").exists()
    store.remove()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.txt", {}),
        (PROGRESS, {"images": 3}),
        (PROGRESS, {"origin": MARK, "images": 3}),
        (PROGRESS, {"origin": MARK, "images": 3, "rows": "3", "identity": {}, "unreadable": []}),
    ],
)
def test_folders_of_the_user_are_refused(tmp_path, name, content):
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"x\.partial has files of unknown origin"):
        opened(tmp_path)
    assert (tmp_path / "x.partial" / name).exists()


def test_a_second_writer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "WAIT", 0.0)
    store = opened(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            opened(tmp_path)
        except FolderError as error:
            os._exit(0 if f"is in use by process {os.getppid()}" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    store.remove()


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write to .*file/x"):
        FeatureStore(tmp_path / "file/x", IDENTITY)


def test_float16_has_a_limit(tmp_path):
    store = opened(tmp_path, "float16")
    with pytest.raises(DataError, match=r"up to 7e\+04 exceed .*float16.*--dtype float32"):
        store.add({"layer1/mean": np.full((2, 6), 7e4, np.float32)}, 2, [])
