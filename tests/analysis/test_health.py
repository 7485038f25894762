"""Statistics of features with known distributions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from plsc_mae.analysis import health
from plsc_mae.analysis.health import alignment, effective_rank, feature_health, mean_cosine, uniformity, unit_std
from plsc_mae.errors import DataError

pytestmark = pytest.mark.compat


def gaussian(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim), np.float32)


def axes(dim: int) -> np.ndarray:
    """Return both directions of every axis, a uniform set whose statistics are known exactly."""
    return np.concatenate([np.eye(dim), -np.eye(dim)]).astype(np.float32)


def test_an_even_cloud():
    """Of the 2 D - 1 other points on the axes, one is opposite at distance 2, and all others are at sqrt(2)."""
    found = feature_health(axes(16))
    potential = (30 * math.exp(-4) + math.exp(-8)) / 31
    assert found == pytest.approx(
        {
            "feature_rank": 16,
            "feature_std": 1 / math.sqrt(16),
            "feature_uniformity": math.log(potential),
            "feature_cosine": -1 / 31,
        },
        rel=1e-6,
    )


def test_an_isotropic_cloud():
    """For n = 60 D, the rank is within 2 % of D, and the others are within sampling noise of their limits."""
    found = feature_health(gaussian(2000, 32))
    assert 0.98 * 32 < found["feature_rank"] < 32
    assert found["feature_std"] == pytest.approx(1 / math.sqrt(32), rel=0.02)
    assert found["feature_uniformity"] == pytest.approx(-4, abs=0.5)  # -4 + 8 / D for D to infinity
    assert found["feature_cosine"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_collapsed_cloud(scale):
    """Float32 rounding of one repeated point must not count as variation."""
    point = gaussian(1, 64, 1).astype(np.float64)
    rounding = 1 + np.random.default_rng(2).uniform(-6e-8, 6e-8, (500, 64))
    found = feature_health((scale * point * rounding).astype(np.float32))
    assert found["feature_rank"] == 0
    assert found["feature_std"] == pytest.approx(0, abs=1e-7)
    assert found["feature_uniformity"] == pytest.approx(0, abs=1e-6)
    assert found["feature_cosine"] == pytest.approx(1, abs=1e-6)


def test_two_clusters():
    """Two orthogonal points of equal weight: the rank is 1, and for large n half of the pairs are between them."""
    clusters = np.repeat(np.eye(8, dtype=np.float32)[:2], 50, axis=0)
    within, between = 2 * 50 * 49 / (100 * 99), 2 * 50 * 50 / (100 * 99)
    assert feature_health(clusters) == pytest.approx(
        {
            "feature_rank": 1,
            "feature_std": 2 * 0.5 / 8,  # two of eight dimensions are 0 or 1 half the time
            "feature_uniformity": math.log(within + between * math.exp(-4)),
            "feature_cosine": within,
        },
        rel=1e-6,
    )


def test_effective_rank_is_the_entropy_of_singular_values():
    """Centered columns of lengths 4, 2, 2 at right angles: shares 1/2, 1/4, 1/4, entropy 1.5 ln 2."""
    hadamard = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32)
    assert effective_rank(hadamard * [2, 1, 1]) == pytest.approx(2**1.5, rel=1e-12)
    assert effective_rank(hadamard * [2, 1, 1] + 7) == pytest.approx(2**1.5, rel=1e-12)  # independent of the mean
    assert effective_rank(gaussian(5, 100)) <= 4 + 1e-9  # n - 1 directions at most


def test_length_does_not_matter_to_directions():
    features = gaussian(50, 8)
    stretched = features * np.random.default_rng(1).uniform(0.1, 10, (50, 1)).astype(np.float32)
    for measure in (unit_std, uniformity, mean_cosine):
        assert measure(stretched) == pytest.approx(measure(features), rel=1e-5)


def test_pairs_are_compared_one_by_one(monkeypatch):
    """The result follows the definition for any block size."""
    features = gaussian(23, 5) + 0.5
    doubles = features.astype(np.float64)
    pairs = list(itertools.combinations(doubles / np.linalg.norm(doubles, axis=1, keepdims=True), 2))
    potential = np.log(np.mean([np.exp(-3 * ((x - y) ** 2).sum()) for x, y in pairs]))
    for block in (4, 23, 1024):
        monkeypatch.setattr(health, "PAIR_BLOCK", block)
        assert uniformity(features, t=3) == pytest.approx(potential, rel=1e-6)
    assert mean_cosine(features) == pytest.approx(np.mean([x @ y for x, y in pairs]), rel=1e-6)


def test_what_has_no_answer():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        uniformity(gaussian(1, 4))
    with pytest.raises(DataError, match="not finite"):
        mean_cosine(np.array([[1.0, np.nan], [0.0, 1.0]], np.float32))


def test_alignment_is_the_mean_squared_distance_of_unit_pairs():
    first, second = gaussian(500, 8), gaussian(500, 8, 1)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    assert alignment(first, 3 * second) == pytest.approx(((unit[0] - unit[1]) ** 2).sum(axis=1).mean(), rel=1e-5)
    assert alignment(first, 2 * first) == pytest.approx(0, abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4)
    assert alignment(first, second) == pytest.approx(2 - 2 * mean_cosine(first), abs=0.1)  # unrelated pairs
