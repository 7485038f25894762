"""A machine loses its power while a checkpoint is saved: whatever the disk has kept, there is a whole checkpoint.

The disk is modelled as POSIX promises it and no better: a file's content is safe once the file is flushed, its name
once the folder is flushed, and before that any of the changes to names may be kept and any lost, and of a content
nothing, a part or all. Every call that changes the disk is recorded, then every state that can survive any prefix of
the calls is built in a folder of its own.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.train.checkpoint import file as checkpoint_file

pytestmark = pytest.mark.compat

Names = dict[str, int]  # inode by name


class Disk:
    """Follows what a folder's calls leave on the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.safe_names: Names = {path.name: path.stat().st_ino for path in folder.iterdir()}
        self.safe = {path.stat().st_ino: path.read_bytes() for path in folder.iterdir()}
        self.now = dict(self.safe)  # content that programs see
        self.changes: list[Names] = []  # of names, not yet safe; -1 removes
        self.states: set[tuple[tuple[str, bytes], ...]] = set()

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Record every call from now on."""
        for name in ("fsync", "replace", "link", "unlink"):
            call = getattr(os, name)
            monkeypatch.setattr(os, name, self._recorded(name, call))

    def _recorded(self, name, call):
        def run(*arguments, **options):
            self._look()  # a file may have been opened or written meanwhile
            self._crash()
            before = self._inodes()
            opened = os.fstat(arguments[0]).st_ino if name == "fsync" else 0
            result = call(*arguments, **options)
            self._note(name, opened, before)
            self._crash()
            return result

        return run

    def _inodes(self) -> Names:
        return {path.name: path.stat().st_ino for path in self.folder.iterdir()}

    def _look(self) -> None:
        for path in self.folder.iterdir():
            inode, content = path.stat().st_ino, path.read_bytes()
            if inode not in self._known_inodes():
                self.changes.append({path.name: inode})  # a file was made
            if self.now.get(inode) != content and self.safe.get(inode) != content:
                self.safe.pop(inode, None)
            self.now[inode] = content

    def _known_inodes(self) -> set[int]:
        return set(self.safe_names.values()) | {inode for change in self.changes for inode in change.values()}

    def _note(self, name: str, opened: int, before: Names) -> None:
        if name == "fsync" and opened == self.folder.stat().st_ino:
            for change in self.changes:
                self.safe_names = applied(self.safe_names, change)
            self.changes = []
        elif name == "fsync":
            self.safe[opened] = self.now[opened]
        else:
            after = self._inodes()
            names = before.keys() | after.keys()
            self.changes.append({n: after.get(n, -1) for n in names if before.get(n) != after.get(n)})

    def _crash(self) -> None:
        """Add all states that may survive if the power is lost now."""
        for kept in itertools.product((False, True), repeat=len(self.changes)):
            names = self.safe_names
            for change, is_kept in zip(self.changes, kept, strict=True):
                names = applied(names, change) if is_kept else names
            choices = [[(name, content) for content in self._contents(inode)] for name, inode in sorted(names.items())]
            self.states.update(itertools.product(*choices))

    def _contents(self, inode: int) -> Iterator[bytes]:
        if inode in self.safe:
            yield self.safe[inode]
        else:
            content = self.now[inode]
            yield from {b"", content[: len(content) // 2], content}


def applied(names: Names, change: Names) -> Names:
    return {name: inode for name, inode in {**names, **change}.items() if inode != -1}


def state(step: int) -> dict:
    return {"model": {"w": np.full((8, 8), step, np.float32)}, "epoch": 0, "step": step}


def surviving(disk: Disk, tmp_path: Path) -> Iterator[Path]:
    for number, files in enumerate(sorted(disk.states)):
        folder = tmp_path / f"after{number}"
        folder.mkdir()
        for name, content in files:
            (folder / name).write_bytes(content)
        yield folder


@pytest.mark.parametrize("damaged", ["none", "latest", "previous"])
@pytest.mark.parametrize("tag", [1, "latest"])
def test_a_whole_checkpoint_survives_any_loss_of_power(tag, damaged, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    path, previous = (checkpoint_file.checkpoint_path(str(folder), "", name) for name in (tag, "previous"))
    for step in (1, 2):
        checkpoint_file.save(
            checkpoint_file.checkpoint_path(str(folder), "", "latest"), state(step), predecessor=previous
        )
    if damaged != "none":
        (folder / f"checkpoint-{damaged}.pd").write_bytes(b"of no use")
    before = 2 if damaged != "latest" else 1
    disk = Disk(folder)
    disk.watch(monkeypatch)
    checkpoint_file.save(path, state(3), predecessor=previous if tag == "latest" else None)
    monkeypatch.undo()

    steps = []
    for after in surviving(disk, tmp_path):
        newest = checkpoint_file.find_newest(str(after), "")
        assert newest is not None, sorted(after.iterdir())
        steps.append(int(checkpoint_file.load(newest).model["w"][0, 0]))
        checkpoint_file.remove_leftovers(str(after), "")
    assert set(steps) == {before, 3}
    assert len(steps) >= 5
    assert checkpoint_file.verify(path)["step"] == 3


def test_the_model_of_a_disk_finds_a_rename_that_was_not_flushed(tmp_path, monkeypatch):
    """The same harness must object to the same steps without flushing the new file."""
    folder = tmp_path / "run"
    folder.mkdir()
    path = checkpoint_file.checkpoint_path(str(folder), "", "latest")
    checkpoint_file.save(path, state(1))
    disk = Disk(folder)
    disk.watch(monkeypatch)
    temporary = path.with_name("other")
    temporary.write_bytes(path.read_bytes())
    os.replace(temporary, path)
    monkeypatch.undo()
    assert any(checkpoint_file.find_newest(str(after), "") is None for after in surviving(disk, tmp_path))
