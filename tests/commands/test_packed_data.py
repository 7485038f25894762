"""Commands on archives give the results that they give on a folder of the same images."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.cli import main

FEW = "--num_workers 0 --batch_size 16"


def run(line: str, capfd) -> str:
    capfd.readouterr()
    code = main(line.split())
    out, err = capfd.readouterr()
    assert (code, err) == (0, ""), err
    return out


@pytest.fixture(scope="module")
def as_tar(images, archives, tmp_path_factory) -> Path:
    """Five tar archives, each with a part of train/ and val/."""
    return archives.write_shards(images, tmp_path_factory.mktemp("tar"), 5)


@pytest.fixture(scope="module")
def as_zip(images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("zip") / "demo.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(images.rglob("*.jpg")):
            archive.write(file, f"demo/{file.relative_to(images)}")
    return path


@pytest.fixture(scope="module")
def as_parquet(images, archives, tmp_path_factory) -> Path:
    return archives.write_hub(images, tmp_path_factory.mktemp("hub"))


@pytest.fixture
def packed(request) -> Path:
    return request.getfixturevalue(request.param)


def kinds(quick: str) -> pytest.MarkDecorator:
    """Run a test on every kind of archive, by default on `quick` only."""
    others = [kind for kind in ("as_tar", "as_zip", "as_parquet") if kind != quick]
    values = [quick, *(pytest.param(kind, marks=pytest.mark.slow) for kind in others)]
    return pytest.mark.parametrize("packed", values, indirect=True)


@kinds("as_tar")
def test_knn_and_extract(trained, images, packed, tmp_path, capfd):
    model = trained() / "checkpoint-1.pd"
    tables, features = [], []
    for name, path in (("folder", images), ("packed", packed)):
        line = f"knn --model_path {model} --data_path {path} --nb_knn 1 10 {FEW}"
        tables.append(run(line, capfd))
        target = tmp_path / f"{name}.npz"
        run(f"extract --model_path {model} --data_path {path} --save_path {target} {FEW}", capfd)
        features.append(np.load(target))
    assert tables[0] == tables[1]
    names = set(features[0].files) - {"paths"}
    assert len(names) == 4
    for array in names:
        np.testing.assert_array_equal(features[0][array], features[1][array])


@kinds("as_parquet")
def test_reconstruct_and_predict(trained, classifier, images, packed, tmp_path, capfd):
    model = trained() / "checkpoint-1.pd"
    panels, predictions = [], []
    for name, path in (("folder", images), ("packed", packed)):
        out = run(f"reconstruct --model_path {model} --img_path {path} --save_path {tmp_path / name}", capfd)
        panels.append([np.asarray(Image.open(line)) for line in out.splitlines() if line.endswith(".png")])
        target = tmp_path / f"{name}.jsonl"
        run(f"predict --model_path {classifier} --img_path {path} --save_path {target}", capfd)
        rows = [json.loads(line) for line in target.read_text().splitlines()]
        predictions.append([(row["classes"], row["probabilities"]) for row in rows])
    assert len(panels[0]) == 11
    for one, other in zip(*(pictures[:-1] for pictures in panels), strict=True):  # the sheet has the names of the files
        np.testing.assert_array_equal(one, other)
    assert predictions[0] == predictions[1]


def test_a_member_is_an_image(trained, as_tar, tmp_path, capfd):
    with tarfile.open(as_tar / "0.tar") as archive:
        name = archive.getnames()[0]
    model = trained() / "checkpoint-1.pd"
    out = run(f"reconstruct --model_path {model} --img_path {as_tar}/0.tar/{name} --save_path {tmp_path}", capfd)
    assert len([line for line in out.splitlines() if line.endswith(".png")]) == 1


@kinds("as_zip")
def test_doctor_describes_archives(archives, packed, capfd, tmp_path):
    main(["doctor", "--data_path", str(packed)])
    out = capfd.readouterr().out
    assert "train: 30 images in 10 classes" in out
    assert "val: 10 images in 10 classes" in out
    bad = archives.write_tar(tmp_path / "bad.tar", {"cat/0.jpg": b"none", "dog/0.jpg": b"none"})
    assert main(["doctor", "--data_path", str(bad)]) == 1
    assert "bad.tar/cat/0.jpg" in capfd.readouterr().out
