"""Checkpoint files: whole or not at all, damage is noticed, the newest good one is found."""

from __future__ import annotations

import os
import pickle
import struct

import numpy as np
import paddle
import pytest

from plsc_mae.errors import CheckpointError
from plsc_mae.train.checkpoint import file as checkpoint_file

pytestmark = pytest.mark.compat


def state(step: int) -> dict:
    return {"model": {"w": np.full((64, 64), step, np.float32)}, "epoch": step // 10, "step": step, "args": {"seed": 0}}


def saved(folder, tag, step):
    path = checkpoint_file.checkpoint_path(str(folder), "", tag)
    checkpoint_file.save(path, state(step))
    return path


def test_what_is_saved_comes_back(tmp_path):
    path = saved(tmp_path, 3, 40)
    assert path.name == "checkpoint-3.pd"
    assert checkpoint_file.checkpoint_path("d", "run", 3).name == "run_checkpoint-3.pd"
    found = checkpoint_file.load(path)
    np.testing.assert_array_equal(found.model["w"], state(40)["model"]["w"])
    assert found.meta["step"] == 40
    assert found.meta["args"] == {"seed": 0}
    assert os.listdir(tmp_path) == ["checkpoint-3.pd"]


def test_paddle_reads_it_too(tmp_path):
    found = paddle.load(str(saved(tmp_path, 0, 7)))
    np.testing.assert_array_equal(np.asarray(found["model"]["w"]), state(7)["model"]["w"])


@pytest.mark.parametrize("position", [100, 9000, -1, -60])
def test_one_changed_byte_is_noticed(tmp_path, position):
    path = saved(tmp_path, 0, 7)
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|not a complete training checkpoint"):
        checkpoint_file.load(path)


@pytest.mark.parametrize("kept", [0, 10, 5000, -1])
def test_a_cut_file_is_noticed(tmp_path, kept):
    path = saved(tmp_path, 0, 7)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="not a complete training checkpoint"):
        checkpoint_file.load(path)


def test_the_newest_undamaged_one_is_found_by_its_step(tmp_path, caplog):
    assert checkpoint_file.find_newest(str(tmp_path), "") is None
    latest, old = saved(tmp_path, "latest", 15), saved(tmp_path, 0, 10)
    saved(tmp_path, 1, 20).write_bytes(b"cut off")
    damaged = saved(tmp_path, 2, 30)
    content = bytearray(damaged.read_bytes())
    content[500] ^= 1
    damaged.write_bytes(content)
    saved(tmp_path, "latest", 99).replace(tmp_path / "other_checkpoint-9.pd")
    checkpoint_file.save(latest, state(15))
    assert checkpoint_file.find_newest(str(tmp_path), "") == latest
    latest.unlink()
    assert checkpoint_file.find_newest(str(tmp_path), "") == old
    assert checkpoint_file.find_newest(str(tmp_path), "other").name == "other_checkpoint-9.pd"


@pytest.mark.long
def test_a_save_that_fails_leaves_the_old_file(tmp_path, fork_server):
    path = saved(tmp_path, "latest", 1)
    before = path.read_bytes()
    script = (
        "import resource, signal, sys, numpy as np; from pathlib import Path\n"
        "from plsc_mae.errors import CheckpointError; from plsc_mae.train.checkpoint import file as checkpoint_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try: checkpoint_file.save(Path(sys.argv[1]), {'model': {'w': np.ones([64, 64])}, 'epoch': 0, 'step': 2})\n"
        "except CheckpointError as error: print(error); sys.exit(2)\n"
    )
    done = fork_server.run(["-c", script, path])
    assert done.returncode == 2, done.stderr
    assert "earlier checkpoints are untouched" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_save_whose_renaming_may_be_lost_claims_nothing_of_earlier_files(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(5, "disk error")

    path = saved(tmp_path, "latest", 1)
    monkeypatch.setattr(checkpoint_file, "sync_folder", refuse)
    with pytest.raises(CheckpointError, match=r"disk error; .*power failure"):
        checkpoint_file.save(path, state(2))
    assert checkpoint_file.verify(path)["step"] == 2


@pytest.mark.parametrize("footer", ["[" * 20000, '{"bytes": "9", "epoch": 0, "sha256": "", "step": 1}', "[]", "3"])
def test_a_malformed_footer_is_noticed(tmp_path, footer):
    path = tmp_path / "checkpoint-0.pd"
    path.write_bytes(b"content" + footer.encode() + struct.pack("<Q", len(footer)) + checkpoint_file.MAGIC)
    with pytest.raises(CheckpointError, match="not a complete training checkpoint"):
        checkpoint_file.load(path)


def test_a_foreign_pickle_is_no_training_checkpoint(tmp_path):
    path = tmp_path / "checkpoint-0.pd"
    path.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(CheckpointError, match="not a complete training checkpoint"):
        checkpoint_file.load(path)


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    (tmp_path / "checkpoint-3.pd.tmp").write_bytes(b"half")
    (tmp_path / "other_checkpoint-3.pd.tmp").write_bytes(b"half")
    checkpoint_file.remove_leftovers(str(tmp_path), "")
    assert os.listdir(tmp_path) == ["other_checkpoint-3.pd.tmp"]


def test_the_one_before_the_latest_is_kept(tmp_path, monkeypatch):
    latest, previous = (checkpoint_file.checkpoint_path(str(tmp_path), "", tag) for tag in ("latest", "previous"))
    for step in (1, 2, 3):
        checkpoint_file.save(latest, state(step), predecessor=previous)
    assert [checkpoint_file.verify(path)["step"] for path in (latest, previous)] == [3, 2]
    latest.write_bytes(latest.read_bytes()[:-1])
    assert checkpoint_file.find_newest(str(tmp_path), "") == previous

    def refuse(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    checkpoint_file.save(latest, state(4), predecessor=previous)
    checkpoint_file.save(latest, state(5), predecessor=previous)
    assert [checkpoint_file.verify(path)["step"] for path in (latest, previous)] == [5, 4]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-latest.pd", "checkpoint-previous.pd"]


def test_what_is_read_back_otherwise_than_written_gets_no_name(tmp_path, monkeypatch):
    path = saved(tmp_path, "latest", 1)
    write = checkpoint_file._write

    def write_on_a_bad_disk(temporary, content):
        write(temporary, content)
        with open(temporary, "r+b") as file:
            file.seek(300)
            file.write(b"\xff\x00\xff")

    monkeypatch.setattr(checkpoint_file, "_write", write_on_a_bad_disk)
    with pytest.raises(CheckpointError, match="read back differs"):
        saved(tmp_path, "latest", 2)
    assert checkpoint_file.verify(path)["step"] == 1
    assert os.listdir(tmp_path) == [path.name]


def test_as_many_numbered_checkpoints_stay_as_asked_for(tmp_path):
    for number in range(6):
        saved(tmp_path, number, 10 * number)
    for tag in ("latest", "previous", "best"):
        saved(tmp_path, tag, 1)
    (tmp_path / "checkpoint-3.pd").write_bytes(b"damaged")
    checkpoint_file.remove_older(str(tmp_path), "", 4, 2)  # 5 is of a run that had come further
    assert sorted(path.stem.rpartition("-")[2] for path in tmp_path.iterdir()) == sorted(
        ["2", "3", "4", "5", "latest", "previous", "best"]
    )


def test_any_damage_to_the_newest_falls_back(tmp_path):
    """Every byte of the footer and some before, lost ends, nothing left, no file at all."""
    old, newest = saved(tmp_path, 0, 10), saved(tmp_path, 1, 20)
    whole = newest.read_bytes()
    for position in [*range(0, len(whole) - 400, 997), *range(len(whole) - 230, len(whole))]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        newest.write_bytes(damaged)
        assert checkpoint_file.find_newest(str(tmp_path), "") == old, position
    for size in (0, 1, 16, 17, len(whole) // 2, len(whole) - 1):
        newest.write_bytes(whole[:size])
        assert checkpoint_file.find_newest(str(tmp_path), "") == old
    newest.unlink()
    newest.mkdir()  # like a file without permission, and so also for root
    assert checkpoint_file.find_newest(str(tmp_path), "") == old


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    path = checkpoint_file.checkpoint_path(str(tmp_path), "run[1]", 0)
    checkpoint_file.save(path, state(1))
    assert checkpoint_file.find_newest(str(tmp_path), "run[1]") == path
