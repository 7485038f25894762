"""Archives for tests; conftest.py files load this module with `runpy`."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shards(images: Path, target: Path, count: int) -> Path:
    """Write the JPEG files below a folder to `count` tar archives, every file to the next one."""
    files = sorted(images.rglob("*.jpg"))
    for shard in range(count):
        members = {str(file.relative_to(images)): file.read_bytes() for file in files[shard::count]}
        write_tar(target / f"{shard}.tar", members)
    return target


def write_parquet(path: Path, names: list[str | None], contents: list[bytes], labels: list, classes=()) -> Path:
    """Write the table that Hugging Face's `datasets` writes."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": b, "path": n} for b, n in zip(contents, names, strict=True)], kind)
    label = {"names": list(classes), "_type": "ClassLabel"} if classes else {"dtype": "int64", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "label": label}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("image", kind), ("label", pa.array(labels).type)], metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table([images, pa.array(labels)], schema), path, row_group_size=4)
    return path


def write_hub(images: Path, target: Path) -> Path:
    """Write train/ and val/ of a folder as the files of a data set on Hugging Face's Hub, in reversed order."""
    classes = sorted(path.name for path in (images / "train").iterdir())
    for split, name in (("train", "train"), ("val", "validation")):
        files = sorted((images / split).rglob("*.jpg"))[::-1]
        labels = [classes.index(file.parent.name) for file in files]
        contents = [file.read_bytes() for file in files]
        write_parquet(
            target / "data" / f"{name}-00000.parquet", [file.name for file in files], contents, labels, classes
        )
    return target
