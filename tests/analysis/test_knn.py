"""The k-NN vote against MAE-priv's, and its block-wise search against a full sort."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.analysis import knn
from plsc_mae.analysis.knn import class_scores, default_ks, knn_accuracy, nearest_neighbors
from plsc_mae.errors import ConfigError, DataError

pytestmark = pytest.mark.compat


@pytest.fixture
def case(golden):
    return golden("mae/priv_knn")


@pytest.fixture
def small_blocks(monkeypatch):
    """Use blocks that do not divide the sets and are smaller than the number of neighbors."""
    monkeypatch.setattr(knn, "QUERY_BLOCK", 7)
    monkeypatch.setattr(knn, "BANK_BLOCK", 33)


@pytest.mark.parametrize("blocks", ["large", "small"])
def test_scores_and_accuracies_are_the_originals(case, blocks, request):
    """rtol is 1e-5, because votes exp(similarity / 0.07) amplify the float32 rounding of 1e-7 by 14."""
    if blocks == "small":
        request.getfixturevalue("small_blocks")
    bank, labels = case["input/train_features"], case["input/train_labels"]
    queries, truth = case["input/test_features"], case["input/test_labels"]
    ks = (1, 5, 10, 20)
    similarities, places = nearest_neighbors(bank, queries, max(ks) + 1)
    for k in ks:
        assert (similarities[:, k - 1] - similarities[:, k]).min() > 3e-6  # so rounding changes no neighbor
        scores = class_scores(similarities[:, :k], labels[places[:, :k]], 10)
        np.testing.assert_allclose(scores, case[f"output/scores_k{k}"], rtol=1e-5, atol=1e-3)  # of scores to 3e7
        best = np.sort(scores, axis=1)[:, -2:]
        assert (best[:, 0] / best[:, 1]).max() < 0.999  # and no vote
        np.testing.assert_array_equal(scores.argmax(axis=1), case[f"output/pred_k{k}"])
    for k, top1, top5 in knn_accuracy(bank, labels, queries, truth, ks):
        assert top1 == pytest.approx(float(case[f"output/top1_k{k}"]), rel=1e-12)
        assert top5 == pytest.approx(float(case[f"output/top5_k{k}"]), rel=1e-12)


def test_blocks_do_not_matter_and_equals_keep_their_order(small_blocks):
    """Features with few integer values have many equal cosines, which are computed identically in any block."""
    rng = np.random.default_rng(0)
    bank, queries = (rng.choice([-1.0, 1.0], (n, 4)).astype(np.float32) for n in (200, 40))
    similarities, places = nearest_neighbors(bank, queries, 50)
    whole = (queries / 2) @ (bank / 2).T
    order = np.argsort(-whole, axis=1, kind="stable")[:, :50]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(similarities, np.take_along_axis(whole, order, axis=1))


def test_few_queries_few_classes_and_lengths_that_do_not_matter():
    rng = np.random.default_rng(1)
    centers = rng.standard_normal((3, 8))
    labels = np.arange(60) % 3
    bank = (centers[labels] + 0.1 * rng.standard_normal((60, 8))).astype(np.float32)
    queries = (centers * [[1], [100], [0.01]]).astype(np.float32)
    assert knn_accuracy(bank, labels, queries, np.arange(3), [1, 20]) == [(1, 100.0, 100.0), (20, 100.0, 100.0)]
    assert knn_accuracy(bank, labels, queries, np.array([1, 2, 0]), [1, 20]) == [(1, 0.0, 0.0), (20, 0.0, 100.0)]


@pytest.mark.parametrize("order", ["by class", "rising", "falling"])
def test_any_order_and_type_of_the_bank_gives_what_a_sort_gives(small_blocks, order, tmp_path):
    """The nearest ones come late, all in one block, or early; float16 from a memory map is the rounded bank."""
    rng = np.random.default_rng(3)
    centers = rng.standard_normal((5, 12))
    bank = (centers[np.arange(300) // 60] + rng.standard_normal((300, 12))).astype(np.float16)
    queries = (centers[np.arange(20) % 5] + rng.standard_normal((20, 12))).astype(np.float32)
    if order != "by class":
        rank = np.argsort(knn.unit_rows(bank) @ knn.unit_rows(queries[:1])[0])
        bank = bank[rank if order == "rising" else rank[::-1]]
    bank.tofile(tmp_path / "bank")
    mapped = np.memmap(tmp_path / "bank", np.float16, "r", shape=bank.shape)
    similarities, places = nearest_neighbors(mapped, queries, 40)
    whole = knn.unit_rows(queries) @ knn.unit_rows(bank).T
    np.testing.assert_array_equal(places, np.argsort(-whole, axis=1, kind="stable")[:, :40])
    np.testing.assert_allclose(similarities, -np.sort(-whole, axis=1)[:, :40], atol=1e-6)  # float32 sums of 12 products


@pytest.mark.parametrize("place_bits", [23, 1])
def test_packed_integers_sort_as_a_stable_sort(monkeypatch, place_bits):
    """Also negative values, both zeros and equal values; few bits for places fall back to a sort of two keys."""
    monkeypatch.setattr(knn, "PLACE_BITS", place_bits)
    rng = np.random.default_rng(4)
    rows = rng.integers(0, 512, 5000)
    values = rng.choice([-1.0000001, -0.5, -1e-40, -0.0, 0.0, 1e-40, 0.3, 1.0000001], 5000).astype(np.float32)
    expected = sorted(range(5000), key=lambda i: (rows[i], -values[i]))
    assert knn._descending(rows, values).tolist() == expected


def test_features_of_zeros_are_unlike_all():
    similarities, _ = nearest_neighbors(np.eye(3, dtype=np.float32), np.zeros((1, 3), np.float32), 2)
    np.testing.assert_array_equal(similarities, [[0.0, 0.0]])


def test_mistakes_are_sentences():
    features, labels = np.ones((5, 2), np.float32), np.zeros(5, np.int64)
    assert [default_ks((2, 4), n) for n in (9, 3, 1)] == [[2, 4], [2], [1]]
    assert default_ks((10, 20), 9) == [4]
    with pytest.raises(ConfigError, match=r"--nb_knn 6 .*\b5 images"):
        knn_accuracy(features, labels, features, labels, [1, 6])
    broken = features.copy()
    broken[2] = np.nan
    with pytest.raises(DataError, match="1 of 5 images"):
        knn_accuracy(broken, labels, features, labels, [1])
