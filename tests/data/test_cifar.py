"""Reading of CIFAR's binary version, from files written here in the published record layout."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.data.cifar import CifarDataset, read_cifar
from plsc_mae.data.classify import FinetuneAugment, evaluation_transform
from plsc_mae.data.imagefolder import find_images
from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.transfer import INDEX
from plsc_mae.errors import DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]


def write(file: Path, pixels: np.ndarray, *labels: np.ndarray) -> None:
    """<label bytes><1024 red><1024 green><1024 blue> per image, each plane row by row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        for number, picture in enumerate(pixels):
            stream.write(bytes(int(column[number]) for column in labels))
            for channel in range(3):
                stream.write(picture[:, :, channel].tobytes())


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (15, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cifar10(tmp_path, pixels) -> Path:
    """Five training files of 2 images, 5 test images; ten classes."""
    folder = tmp_path / "cifar-10-batches-bin"
    labels = np.arange(15) % 10
    for number in range(5):
        part = slice(2 * number, 2 * number + 2)
        write(folder / f"data_batch_{number + 1}.bin", pixels[part], labels[part])
    write(folder / "test_batch.bin", pixels[10:], labels[10:])
    (folder / "batches.meta.txt").write_text("".join(f"class{number}\n" for number in range(10)) + "\n")
    return folder


@pytest.fixture
def cifar100(tmp_path, pixels) -> Path:
    folder = tmp_path / "cifar-100-binary"
    write(folder / "train.bin", pixels[:10], np.arange(10) % 20, np.arange(10) + 90)
    write(folder / "test.bin", pixels[10:], np.arange(5), np.arange(5) + 7)
    (folder / "fine_label_names.txt").write_text("".join(f"fine{number}\n" for number in range(100)))
    return folder


@pytest.mark.parametrize("below", [True, False])
def test_cifar10(cifar10, pixels, below):
    path = cifar10 if below else cifar10.parent
    train, val = read_cifar(path, "train"), read_cifar(str(path), "val")
    np.testing.assert_array_equal(train.pixels, pixels[:10])
    np.testing.assert_array_equal(val.pixels, pixels[10:])
    assert train.labels.tolist() == list(range(10))
    assert val.labels.tolist() == [0, 1, 2, 3, 4]
    assert train.classes == tuple(f"class{number}" for number in range(10))
    assert (len(train), len(val)) == (10, 5)


def test_the_example_of_the_documents_writes_a_folder(cifar10, pixels, root, tmp_path, monkeypatch):
    (example,) = re.findall(r"^```python\n(.*?)^```", (root / "docs/choose-a-recipe.md").read_text(), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    written = find_images("cifar", "train")
    assert len(written.classes) == 10
    assert len(written) == 10
    np.testing.assert_array_equal(np.asarray(Image.open("cifar/val/class3/00003.png")), pixels[13])


def test_cifar100_takes_the_fine_labels(cifar100, pixels):
    train, val = read_cifar(cifar100.parent, "train"), read_cifar(cifar100, "test")
    np.testing.assert_array_equal(train.pixels, pixels[:10])
    np.testing.assert_array_equal(val.pixels, pixels[10:])
    assert train.labels.tolist() == list(range(90, 100))
    assert val.labels.tolist() == list(range(7, 12))
    assert train.classes[99] == "fine99"


def test_a_renamed_folder_is_recognized(cifar100, tmp_path):
    assert len(read_cifar(cifar100.rename(tmp_path / "mine"), "train")) == 10


def test_samples_belong_to_their_key(cifar10, pixels):
    images = read_cifar(cifar10, "train")
    plain = CifarDataset(images, evaluation_transform((32, 32)), seed=0)
    assert len(plain) == 10
    sample = plain[SampleKey(0, 7)]
    np.testing.assert_array_equal(sample["image"], pixels[7])
    assert {name: int(sample[name]) for name in (INDEX, "label", "skipped")} == {INDEX: 7, "label": 7, "skipped": 0}
    crops = CifarDataset(images, FinetuneAugment((32, 32)), seed=0)
    np.testing.assert_array_equal(crops[SampleKey(2, 3)]["image"], crops[SampleKey(2, 3)]["image"])
    assert any((crops[SampleKey(epoch, 3)]["image"] != pixels[3]).any() for epoch in range(3))


def test_a_missing_folder_is_told(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"cifar-10-batches-bin or cifar-100-binary; .*'binary version'"):
        read_cifar(tmp_path, "train")


def test_a_missing_file_is_named(cifar10):
    (cifar10 / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"cannot read .*data_batch_3\.bin: No such file"):
        read_cifar(cifar10, "train")


@pytest.mark.parametrize("size", [0, 3072, 3073 + 1])
def test_a_cut_file_is_named(cifar10, size):
    (cifar10 / "test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"test_batch\.bin .*\b{size} .*\b3073\b"):
        read_cifar(cifar10, "val")


def test_labels_beyond_the_classes_are_refused(cifar10):
    (cifar10 / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(DataError, match=r"test_batch\.bin .*10 classes"):
        read_cifar(cifar10, "val")
