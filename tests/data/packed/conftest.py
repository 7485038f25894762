"""The images of a folder in archives of every kind."""

from __future__ import annotations

import random
import runpy
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

ARCHIVES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "archives.py")))


class Packer:
    """Packs the folder DIR/CLASS/NAME in a shuffled order; each method returns the --data_path."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder, self.target = folder, target
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        random.Random(0).shuffle(files)
        self.members = {str(path.relative_to(folder)): path.read_bytes() for path in files}

    def folder_itself(self) -> str:
        return str(self.folder)

    def tar(self) -> str:
        names = list(self.members)
        for shard in range(5):
            part = {name: self.members[name] for name in names[shard::5]}
            ARCHIVES.write_tar(self.target / "tar" / f"{shard:03d}.tar", part)
        return f"{self.target}/tar/*.tar"

    def webdataset(self) -> str:
        """Keys without folders, and class numbers."""
        classes = sorted({name.split("/")[0] for name in self.members})
        for shard in range(2):
            part = {}
            for name in list(self.members)[shard::2]:
                key = name.replace("/", "_").rpartition(".")[0]
                part[f"{key}.jpg"] = self.members[name]
                part[f"{key}.cls"] = str(classes.index(name.split("/")[0])).encode()
                part[f"{key}.json"] = b"{}"
            ARCHIVES.write_tar(self.target / "webdataset" / f"{shard:06d}.tar", part)
        return f"{self.target}/webdataset/{{000000..000001}}.tar"

    def zip(self, method: int = zipfile.ZIP_DEFLATED) -> str:
        path = self.target / f"images-{method}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in self.members.items():
                archive.writestr(name, content)
        return str(path)

    def stored_zip(self) -> str:
        return self.zip(zipfile.ZIP_STORED)

    def parquet(self) -> str:
        classes = sorted({name.split("/")[0] for name in self.members})
        for shard in range(2):
            names = list(self.members)[shard::2]
            labels = [classes.index(name.split("/")[0]) for name in names]
            contents = [self.members[name] for name in names]
            bases: list[str | None] = [name.split("/")[1] for name in names]
            ARCHIVES.write_parquet(
                self.target / "hub" / "data" / f"train-{shard:05d}-of-00002.parquet", bases, contents, labels, classes
            )
        return str(self.target / "hub")

    def arrow(self) -> str:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        self.parquet()
        files = sorted((self.target / "hub" / "data").glob("*.parquet"))
        for number, file in enumerate(files):
            path = self.target / "saved" / "train" / f"data-{number:05d}-of-00002.arrow"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pq.read_table(file)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        return str(self.target / "saved")


KINDS: tuple[Callable[[Packer], str], ...] = (
    Packer.tar,
    Packer.webdataset,
    Packer.zip,
    Packer.stored_zip,
    Packer.parquet,
    Packer.arrow,
)


@pytest.fixture
def packer(image_folder, tmp_path) -> Packer:
    return Packer(image_folder / "train", tmp_path / "packed")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def packed(request, packer) -> str:
    """The --data_path of the images in one kind of archive."""
    return request.param(packer)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> Path:
    """Keep lists and indexes in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tar() -> Callable[[Path, dict[str, bytes]], Path]:
    return ARCHIVES.write_tar


@pytest.fixture
def parquet() -> Callable[..., Path]:
    return ARCHIVES.write_parquet
