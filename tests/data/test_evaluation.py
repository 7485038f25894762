"""The data set that replaces no unreadable file."""

from __future__ import annotations

import pytest

from plsc_mae.data.evaluation import UNREADABLE, EvaluationDataset
from plsc_mae.data.imagefolder import find_images
from plsc_mae.data.loader import build_loader
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.transfer import INDEX
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.errors import DataError

pytestmark = pytest.mark.compat
VIEW = ResizeCenterCrop((16, 16), 16)


@pytest.fixture
def images(image_folder):
    found = find_images(image_folder, "train")
    for index in (0, 12):
        (image_folder / "train" / found.paths[index]).write_bytes(b"no image")
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_marked_and_black(images, workers):
    dataset = EvaluationDataset(images, VIEW, bad_image="skip")
    sampler = EpochBatchSampler(len(images), 5, 0, 1, seed=0, shuffle=False, drop_last=False)
    marks, indices = [], []
    for batch in build_loader(dataset, sampler, num_workers=workers):
        marks += batch[UNREADABLE].tolist()
        indices += batch[INDEX].tolist()
        black = batch["image"].numpy().reshape(len(batch[INDEX]), -1).max(axis=1) == 0
        assert black.tolist() == [mark == 1 for mark in batch[UNREADABLE]]
    assert indices == list(range(len(images)))
    assert [index for index, mark in zip(indices, marks, strict=True) if mark] == [0, 12]


def test_errors_and_known_bad_files(images):
    strict = EvaluationDataset(images, VIEW, bad_image="error")
    with pytest.raises(DataError, match=rf"{images.path(0)}: .*--bad_image skip"):
        strict[SampleKey(0, 0)]
    assert not strict.mark_bad(1, "x")
    dataset = EvaluationDataset(images, VIEW, bad_image="skip")
    assert dataset.mark_bad(1, "1 is slow")
    assert dataset[SampleKey(0, 1)][UNREADABLE] == 1
    assert dataset.reason(1) == "1 is slow"
    assert images.path(12) in dataset.reason(12)


def test_a_file_is_named_once(images, messages):
    dataset = EvaluationDataset(images, VIEW, bad_image="skip")
    for indices in ([0], [0, 12], [12]):
        dataset.log_unreadable(indices)
    EvaluationDataset(images, VIEW, bad_image="skip").log_unreadable([0, 12])  # as for a second network
    assert [images.path(index) in text for index, text in zip((0, 12), messages, strict=True)] == [True, True]
