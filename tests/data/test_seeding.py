"""A sample's draws depend on the seed and its key alone, and never change between versions."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.data.seeding import SampleKey, balanced_order, epoch_order, sample_rng, stand_in_offsets

pytestmark = [pytest.mark.compat, pytest.mark.once]


def test_streams_are_pinned():
    """Recorded under numpy 1.26 and 2.4, which agree. A change here changes every run of every seed."""
    assert sample_rng(0, 0, 0).random(2).tolist() == [0.6761563496717979, 0.9958481267976347]
    assert sample_rng(7, 3, 11).integers(1000) == 410
    assert epoch_order(0, 0, 8).tolist() == [0, 3, 5, 4, 2, 1, 6, 7]
    assert epoch_order(0, 1, 8).tolist() == [7, 6, 4, 5, 0, 3, 1, 2]
    assert stand_in_offsets(0, 0, 1000, 4) == [438, 56, 674, 292]
    draws = balanced_order(0, 1, np.array([0, 0, 0, 0, 0, 1]))
    assert draws.tolist() == [[5, 2], [4, 0], [0, 0], [5, 1], [5, 0], [3, 0]]


def test_every_part_of_the_key_counts():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (2**40, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2)]
    draws = {key: sample_rng(*key).random() for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert sample_rng(1, 0, 0).random() == sample_rng(1, 0, 0, 0).random() == draws[1, 0, 0]


def test_order_is_an_int64_permutation():
    order = epoch_order(5, 2, 1000)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))


def test_order_and_samples_do_not_share_a_stream():
    expected = np.random.Generator(sample_rng(3, 4, 0).bit_generator).permutation(50)
    assert epoch_order(3, 4, 50).tolist() != expected.tolist()


def test_key_is_epoch_then_index():
    assert SampleKey(2, 9) == (2, 9, 0)
    assert SampleKey(epoch=2, index=9).index == 9


@pytest.mark.parametrize("sizes", [(115, 46, 46), (1, 1, 200), (7, 0, 3, 12), (5, 5), (9,), (1,) * 40])
@pytest.mark.parametrize("seed", [0, 5])
def test_every_class_is_drawn_equally_often(sizes, seed):
    """An image is drawn floor or ceil times of its class's draws per image; so is every image over the epochs."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    present, images = np.unique(labels, return_counts=True)
    total = np.zeros(len(labels), np.int64)
    for epoch in range(9):
        indices, repeats = balanced_order(seed, epoch, labels).T
        assert len(indices) == len(labels)
        by_class = np.bincount(labels[indices], minlength=len(sizes))[present]
        assert set(by_class.tolist()) <= {len(labels) // len(present), -(-len(labels) // len(present))}
        drawn = np.bincount(indices, minlength=len(labels))
        total += drawn
        for counts in (drawn, total):
            for number in present:
                own = counts[labels == number]
                assert own.max() - own.min() <= 1
        for index in range(len(labels)):
            assert sorted(repeats[indices == index].tolist()) == list(range(drawn[index]))
    assert (total > 0).all() or images.max() * len(present) > 9 * len(labels)


def test_the_balanced_order_depends_on_seed_epoch_and_labels_alone():
    labels = np.repeat([0, 1, 2], [30, 6, 6])
    order = balanced_order(3, 4, labels)
    np.testing.assert_array_equal(balanced_order(3, 4, labels), order)
    for other in (balanced_order(4, 4, labels), balanced_order(3, 5, labels), balanced_order(3, 4, labels[::-1])):
        assert other.tolist() != order.tolist()
    assert np.ptp(np.flatnonzero(labels[order[:, 0]] == 1)) > 21  # its draws are spread over the epoch


@pytest.mark.parametrize("length", [1, 2, 3, 40, 101])
def test_stand_ins_of_a_short_list_are_all_other_files(length):
    for epoch in range(3):
        offsets = stand_in_offsets(5, epoch, length, 100)
        assert sorted(offsets) == list(range(1, length))
        assert not offsets[1:] or length / 4 - 1 < offsets[0] < 3 * length / 4
