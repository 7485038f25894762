"""Classes of patches, their classifiers, and the step from patches to pixels."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.nn.functional import interpolate

from plsc_mae.analysis import patch_classifiers
from plsc_mae.analysis.linear import linear_accuracy
from plsc_mae.analysis.patch_classifiers import fit_patch_classifiers, patch_labels, upsample_classes
from plsc_mae.data.segmentation import UNLABELED


def test_a_patch_has_its_most_frequent_class():
    mask = np.array([[1, 1, 0, 2], [1, 0, 2, 2], [-1, -1, 0, 0], [-1, 3, -1, -1]])
    assert patch_labels(mask, (2, 2), 4).tolist() == [1, 2, UNLABELED, 0]


@pytest.mark.parametrize(("size", "grid"), [((48, 32), (3, 4)), ((7, 5), (3, 2)), ((3, 2), (5, 5))])
def test_patches_share_masks_of_any_size(size, grid):
    """Every pixel votes in the patch that holds its center; patches without pixels are unlabeled."""
    mask = np.random.default_rng(0).integers(-1, 3, size)
    labels = patch_labels(mask, grid, 3).reshape(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            rows = (np.arange(size[0]) + 0.5) * grid[0] / size[0] // 1 == row
            columns = (np.arange(size[1]) + 0.5) * grid[1] / size[1] // 1 == column
            inside = mask[np.ix_(rows, columns)].ravel()
            votes = np.bincount(inside[inside >= 0], minlength=3)
            expected = votes.argmax() if inside.size and 2 * votes.sum() >= inside.size else UNLABELED
            assert labels[row, column] == expected


@pytest.mark.parametrize("band", [1 << 24, 1])
def test_upsampling_is_the_bilinear_one_of_segmentation_heads(band, monkeypatch):
    monkeypatch.setattr(patch_classifiers, "_BAND_VALUES", band)
    scores = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    maps = paddle.to_tensor(scores.T.reshape(1, 5, 3, 4))
    expected = interpolate(maps, (31, 22), mode="bilinear", align_corners=False).numpy()[0].argmax(axis=0)
    assert (upsample_classes(scores, (3, 4), (31, 22)) == expected).all()


def test_classifiers_separate_clusters_and_agree_with_the_linear_accuracy():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 8))
    labels, truth = rng.integers(0, 3, 300), rng.integers(0, 3, 90)
    features, queries = (
        (centers[classes] + rng.normal(scale=0.8, size=(len(classes), 8))).astype(np.float32)
        for classes in (labels, truth)
    )
    held = np.arange(300) % 10 == 9
    classifiers = fit_patch_classifiers(features, labels, held, 3, k=10)
    scores = classifiers.scores(queries)
    expected = linear_accuracy(features, labels, queries, truth)
    assert classifiers.l2 == expected.l2
    accuracies = {name: 100 * float((values.argmax(axis=1) == truth).mean()) for name, values in scores.items()}
    assert accuracies["linear"] == pytest.approx(expected.top1)
    assert accuracies["knn"] > 80
    assert scores["knn"].sum(axis=1) == pytest.approx(1)
