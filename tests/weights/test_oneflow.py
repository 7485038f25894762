"""Checkpoints of OneFlow 0.9: LiBai's folders, all types, and damaged folders."""

from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pytest

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.reader import read_file

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.fixture
def oneflow(root):
    return root / "tests" / "golden" / "oneflow"


@pytest.fixture
def copied(oneflow, tmp_path):
    """Return a copy of the folder with all types, and the folder of its first tensor."""
    folder = tmp_path / "dtypes"
    shutil.copytree(oneflow / "dtypes", folder)
    return folder, min(path.parent for path in folder.glob("*/meta"))


def assert_holds(checkpoint, path) -> None:
    expected = np.load(path, allow_pickle=False)
    assert set(checkpoint.tensors) == set(expected.files)
    for name, tensor in checkpoint.tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)
        assert not tensor.flags.writeable


def test_libai_checkpoint(oneflow):
    checkpoint = read_file(oneflow / "model_0000001")
    assert_holds(checkpoint, oneflow / "model_0000001.npz")
    assert set(checkpoint.model) == {"weight", "bias"}
    assert checkpoint.meta["lr_scheduler"]["T_max"] == 10
    assert checkpoint.meta["optimizer"]["param_groups"][0]["params"] == [0, 1]


def test_one_entry_of_a_libai_checkpoint(oneflow):
    assert set(read_file(oneflow / "model_0000001" / "model").model) == {"weight", "bias"}


def test_every_type(oneflow):
    checkpoint = read_file(oneflow / "dtypes")
    assert_holds(checkpoint, oneflow / "dtypes.npz")
    assert checkpoint.meta["epoch"] == 3
    assert checkpoint.tensors["tied"] is checkpoint.tensors["parameter"]


@pytest.mark.parametrize(
    ("file", "content", "trouble"),
    [
        ("out", None, "out is missing"),
        ("out", b"abc", "out has 3 bytes, expected 12"),
        ("meta", None, "meta is missing"),
        ("meta", b"", "meta .*shape and type"),
        ("meta", b"shape {\n  dim: -3\n}\ndata_type: kFloat\n", "meta .*shape and type"),
        ("meta", b"shape {\n  dim: 99999999999\n}\ndata_type: kFloat\n", "out has 12 bytes, expected 399999999996"),
        ("meta", b"shape {\n  dim: 3\n}\ndata_type: kTensorBuffer\n", "type kTensorBuffer"),
        ("meta", b"\xff" * 10, "codec"),
        ("meta", b" " * 3000, "meta .*shape and type"),
        ("../pickled_data", b"\x80\x04}.", "protocol version 1"),
        ("../pickled_data", b"\x80\x04", "exhausted"),
    ],
)
def test_damaged_folders_are_refused(copied, file, content, trouble):
    folder, tensor = copied
    (tensor / file).unlink()
    if content is not None:
        (tensor / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=trouble) as caught:
        read_file(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/b", "", "..", ".", "a\n", 3])
def test_tensors_outside_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "entry"
    folder.mkdir()
    tensor = b"coneflow\nTensor\n)\x81" + pickle.dumps({"path": name}, 0)[:-1] + b"b"
    data = b"\x80\x02}(X\x10\x00\x00\x00protocol_versionK\x01X\x04\x00\x00\x00data" + tensor + b"u."
    (folder / "pickled_data").write_bytes(data)
    with pytest.raises(CheckpointError, match="names no sub-folder"):
        read_file(folder)


def test_a_pipe_in_place_of_values_is_refused(copied):
    folder, tensor = copied
    (tensor / "out").unlink()
    os.mkfifo(tensor / "out")
    with pytest.raises(CheckpointError, match="out is missing"):
        read_file(folder)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder without .*OneFlow"):
        read_file(tmp_path)
