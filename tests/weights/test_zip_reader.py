"""Zip files: npz files, decompression bombs and malformed members. Torch's zip files are in test_reader.py."""

from __future__ import annotations

import struct
import zipfile

import numpy as np
import pytest

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.reader import read_file

pytestmark = [pytest.mark.compat, pytest.mark.once]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    arrays = {"model/w": np.arange(6.0).reshape(2, 3), "model/b": np.array(True), "note": np.array("text")}
    save(tmp_path / "a.npz", **arrays)
    checkpoint = read_file(tmp_path / "a.npz")
    assert set(checkpoint.model) == {"w", "b"}
    for name, array in checkpoint.model.items():
        assert array.dtype == arrays[f"model/{name}"].dtype
        np.testing.assert_array_equal(array, arrays[f"model/{name}"])
    assert checkpoint.meta == {"note": "text"}


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match="Python objects"):
        read_file(tmp_path / "a.npz")


def test_zip_bomb_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", w=np.zeros(32 << 20, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="would unpack from"):
        read_file(tmp_path / "bomb.npz")


def test_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="neither torch's"):
        read_file(tmp_path / "a.zip")


def test_two_entries_of_one_name_are_refused(tmp_path):
    member = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", member)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("w.npy", member)
    with pytest.raises(CheckpointError, match=r"two entries .*same name"):
        read_file(tmp_path / "a.npz")


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    return b"\x93NUMPY" + struct.pack("<BBH", version, 0, len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("member", "trouble"),
    [
        (b"", "header of its array w is malformed"),
        (npy("{'descr': '<f4', ("), "header of its array w is malformed"),  # tokenize's own kind of error
        (npy("(" * 5000), "header of its array w is malformed"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4), version=9), "is malformed"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", bytes(4)), "non-negative integers"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", bytes(7)), "has 7 bytes"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", bytes(12)), "has 12 bytes"),
        (npy("{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,)}"), "far more memory"),
        (npy("{'descr': '<f16', 'fortran_order': False, 'shape': (1,)}", bytes(16)), "<f16, which is not supported"),
        (npy("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,)}", bytes(8)), "which is not supported"),
    ],
)
def test_malformed_members_of_npz_are_refused(tmp_path, member, trouble):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", member)
    with pytest.raises(CheckpointError, match=trouble):
        read_file(tmp_path / "a.npz")
