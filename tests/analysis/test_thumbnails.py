"""Places of maps, and pictures of thumbnails."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from plsc_mae.analysis.thumbnails import (
    FRAME,
    OTHER,
    SAME,
    Neighbor,
    map_picture,
    neighbor_picture,
    project,
)
from plsc_mae.errors import ConfigError

GREEN = (10, 200, 90)  # unlike any gray of the text


def clusters(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return features [n, 16] near three directions, and their numbers."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return (rng.standard_normal((3, 16))[labels] + 0.05 * rng.standard_normal((count, 16))).astype(np.float32), labels


def is_separated(places: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether every point has its nearest other point in its own cluster."""
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(len(places))
    return bool((labels[distances.argmin(axis=1)] == labels).all())


@pytest.mark.parametrize("method", ["pca", "tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_maps_separate_clusters_and_repeat(method):
    if method != "pca":
        pytest.importorskip({"tsne": "sklearn", "umap": "umap"}[method])
    features, labels = clusters()
    places = project(features, method)
    assert places.shape == (60, 2)
    assert places.min() >= 0
    assert places.max() <= 1
    assert is_separated(places, labels)
    np.testing.assert_array_equal(project(features.astype(np.float32), method), places)


def test_pca_keeps_the_distances_of_a_plane():
    """Points on a circle are of unit length already; a map only turns, moves and scales them."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    places = project(np.pad(circle, ((0, 0), (0, 3))), "pca")
    np.testing.assert_allclose(np.linalg.norm(places - places.max(axis=0) / 2, axis=1), 0.5, atol=0.02)


@pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
def test_three_images_have_a_map(method):
    if method != "pca":
        pytest.importorskip({"tsne": "sklearn", "umap": "umap"}[method])
    assert np.isfinite(project(np.eye(3, 8, dtype=np.float32), method)).all()


@pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
def test_equal_features_are_at_one_position(method):
    noise = 1e-8 * np.random.default_rng(0).standard_normal((6, 3))
    assert (project((1 + noise).astype(np.float32), method) == 0).all()


def test_a_missing_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ConfigError, match=r"--map tsne needs scikit-learn .*plsc_mae\[maps\]"):
        project(clusters()[0], "tsne")


def test_neighbors_have_frames_by_class_and_cut_captions():
    green = np.full((32, 32, 3), GREEN, np.uint8)
    row = [Neighbor(green, "a name that does not fit"), Neighbor(green, "cat\n0.9", True)]
    row.append(Neighbor(green, "dog\n0.8", False))
    pixels = np.asarray(neighbor_picture([row, row[:2]]))
    colors = {tuple(color) for color in pixels.reshape(-1, 3).tolist()}
    assert {SAME, OTHER, GREEN} <= colors
    assert (pixels == GREEN).all(axis=2).sum() == 5 * 32 * 32
    assert (pixels == SAME).all(axis=2).sum() == 2 * ((32 + 2 * FRAME) ** 2 - 32**2)


@pytest.mark.parametrize("labeled", [True, False])
def test_a_map_shows_each_image_once(labeled):
    places = np.array([[0.0, 0.0], [0.001, 0.0], [1.0, 1.0]])
    pixels = [np.full((16, 16, 3), (*GREEN[:2], i), np.uint8) for i in range(3)]
    labels = np.array([0, 1, 1]) if labeled else np.full(3, -1)
    picture = np.asarray(map_picture(places, pixels, labels, ("cat", "dog") if labeled else ()))
    shown = [(picture == (*GREEN[:2], i)).all(axis=2).sum() for i in range(3)]
    assert shown[2] == 256
    assert shown[1] == 0  # it would cover the first one, so it is a dot
    assert shown[0] > 200
