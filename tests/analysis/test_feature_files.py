"""Files of features hold arrays and texts, in every format, and the same features give the same bytes."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
from safetensors import safe_open

from plsc_mae import weights
from plsc_mae.analysis import feature_files
from plsc_mae.analysis.feature_files import save_arrays
from plsc_mae.errors import ConfigError, DataError

ARRAYS = {
    "layer1/cls": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1],
    "layer1/patch": np.arange(12, dtype=np.float16).reshape(2, 2, 3),
    "labels": np.array([1, -1]),
}
TEXTS = {"paths": ["a/ä.jpg", "b.jpg"], "classes": ["cat", "dog"]}


@pytest.fixture(params=[1, 1 << 24])
def piece(request, monkeypatch):
    """Write row by row, or all rows at once."""
    monkeypatch.setattr(feature_files, "PIECE_BYTES", request.param)


@pytest.mark.compat
def test_npz(piece, tmp_path):
    save_arrays(tmp_path / "new/x.npz", ARRAYS, TEXTS)
    with np.load(tmp_path / "new/x.npz", allow_pickle=False) as file:
        assert set(file.files) == {*ARRAYS, *TEXTS}
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file[name], array)
            assert file[name].dtype == array.dtype
        assert file["paths"].tolist() == TEXTS["paths"]
    np.testing.assert_array_equal(weights.read(tmp_path / "new/x.npz").tensors["layer1/cls"], ARRAYS["layer1/cls"])


@pytest.mark.compat
def test_safetensors(piece, tmp_path):
    save_arrays(tmp_path / "x.safetensors", ARRAYS, TEXTS)
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        assert {name: json.loads(file.metadata()[name]) for name in TEXTS} == TEXTS
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


def test_parquet(piece, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    save_arrays(tmp_path / "x.parquet", ARRAYS, TEXTS)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["paths", "class", "layer1/cls", "layer1/patch", "labels"]
    assert table["paths"].to_pylist() == TEXTS["paths"]
    assert table["class"].to_pylist() == ["dog", None]
    assert table["labels"].to_pylist() == [1, -1]
    for name in ("layer1/cls", "layer1/patch"):
        np.testing.assert_array_equal(np.array(table[name].to_pylist()), ARRAYS[name])
    assert str(table.schema.field("layer1/patch").type).count("fixed_size_list") == 2


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "parquet"])
def test_the_same_features_give_the_same_bytes_and_replace_their_own_file(tmp_path, suffix, monkeypatch):
    if suffix == "parquet":
        pytest.importorskip("pyarrow.parquet")
    path = tmp_path / f"x.{suffix}"
    save_arrays(path, ARRAYS, TEXTS)
    before = path.read_bytes()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    save_arrays(path, ARRAYS, TEXTS)
    assert path.read_bytes() == before


def test_a_missing_package_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"parquet files need pyarrow .*plsc_mae\[parquet\]"):
        save_arrays(tmp_path / "x.parquet", ARRAYS, TEXTS)
    assert not list(tmp_path.iterdir())


def test_a_file_as_folder_and_a_large_header_are_sentences(tmp_path, monkeypatch):
    (tmp_path / "x.npz").write_text("")
    for suffix in ("npz", "safetensors"):
        with pytest.raises(DataError, match=r"cannot write .*; choose another --save_path"):
            save_arrays(tmp_path / f"x.npz/y.{suffix}", ARRAYS)
    monkeypatch.setattr(feature_files, "LARGEST_HEADER", 100)
    with pytest.raises(DataError, match=r"take \d+ bytes.* at most 100; .*\.npz or \.parquet"):
        save_arrays(tmp_path / "y.safetensors", ARRAYS, TEXTS)
    assert not (tmp_path / "y.safetensors").exists()
