"""The same images in a folder and in archives give the same samples, in the same order."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.data.check import Note, check_files, examine_file
from plsc_mae.data.imagefolder import ImageDataset, balanced_subset, find_images
from plsc_mae.data.listing import list_images
from plsc_mae.data.loader import build_loader
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.transfer import INDEX
from plsc_mae.data.transforms import RandomCropFlip
from plsc_mae.errors import DataError

pytestmark = [pytest.mark.compat, pytest.mark.once]


def contents(images) -> list[np.ndarray]:
    return [images.open(i).resize((16, 16)) for i in range(len(images))]


def test_the_order_the_labels_and_the_pixels_are_those_of_the_folder(packed, image_folder):
    folder, images = find_images(image_folder, "train"), find_images(packed, "train")
    assert images.labels.tolist() == folder.labels.tolist()
    if not images.numbered:
        assert images.classes == folder.classes == ("cat", "dog")
    for ours, theirs in zip(contents(images), contents(folder), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    unlabeled = list_images(packed, "train", labeled=False)
    assert (len(unlabeled), unlabeled.classes, set(unlabeled.labels.tolist())) == (22, (), {-1})
    assert not check_files(images, num_workers=0).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_of_an_epoch_are_those_of_the_folder(packer, image_folder, workers):
    epochs = []
    for path in (image_folder, packer.tar()):
        dataset = ImageDataset(find_images(path, "train"), RandomCropFlip((16, 16)), seed=3)
        sampler = EpochBatchSampler(len(dataset), 5, 0, 1, 3)
        epochs.append(
            [
                (batch[INDEX], np.asarray(batch["image"]))
                for batch in build_loader(dataset, sampler, num_workers=workers)
            ]
        )
    for (ours, image), (theirs, other) in zip(*epochs, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(image, other)


def test_subsets_read_the_same_members(packer):
    images = find_images(packer.tar(), "train")
    subset = balanced_subset(images, 4)
    assert subset.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(contents(subset)[2], contents(images)[11])


def test_messages_name_the_archive_and_the_member(packer):
    name = next(iter(packer.members))
    packer.members[name] = packer.members[name][:300]
    images = find_images(packer.tar(), "train")
    notes = check_files(images, num_workers=0)
    (bad,) = np.flatnonzero(notes & Note.BAD)
    assert images.path(bad).endswith(f".tar/{name}")
    assert images.path(bad) in examine_file(images.path(bad)).reason
    with pytest.raises(DataError, match=rf"\.tar/{name}"):
        images.open(bad).resize((8, 8))


def test_a_list_file_may_name_members(packer, tmp_path):
    tar = find_images(packer.tar(), "train")
    (tmp_path / "list.txt").write_text(f"{tar.path(3)} 1\n{tar.path(0)} 0\n")
    images = find_images(tmp_path / "list.txt", "train")
    np.testing.assert_array_equal(contents(images)[0], contents(tar)[3])
    assert images.labels.tolist() == [1, 0]
