"""Trivial predictors against loops over single pixels."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.analysis.trivial import (
    ALL_TOKENS,
    BATCH_TOKENS,
    BILINEAR,
    MEAN_COLOR,
    NEAREST_PATCH,
    UNIFORM,
    fill_hidden,
    token_losses,
)

ROWS, COLUMNS, SIDE = 3, 4, 2


def to_patches(images):
    """[B, H, W, C] -> [B, L, P*P*C], written as a loop."""
    return np.stack(
        [
            [
                image[r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE].reshape(-1)
                for r in range(ROWS)
                for c in range(COLUMNS)
            ]
            for image in images
        ]
    )


def by_pixels(image, hidden):
    """The three fills of one image [H, W, C], one pixel at a time."""
    height, width, _ = image.shape
    seen = np.array([[not hidden[y // SIDE, x // SIDE] for x in range(width)] for y in range(height)])
    mean = np.mean([image[y, x] for y in range(height) for x in range(width) if seen[y, x]], axis=0)
    fills = {name: np.zeros_like(image) for name in (MEAN_COLOR, NEAREST_PATCH, BILINEAR)}
    visible = [(r, c) for r in range(ROWS) for c in range(COLUMNS) if not hidden[r, c]]
    for y in range(height):
        for x in range(width):
            fills[MEAN_COLOR][y, x] = mean
            r, c = min(visible, key=lambda p: (p[0] - y // SIDE) ** 2 + (p[1] - x // SIDE) ** 2)
            fills[NEAREST_PATCH][y, x] = image[r * SIDE + y % SIDE, c * SIDE + x % SIDE]
            found = []
            for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0)):
                for distance in range(1, max(height, width)):
                    b, a = y + dy * distance, x + dx * distance
                    inside = 0 <= b < height and 0 <= a < width
                    if inside and seen[b, a] and (b // SIDE, a // SIDE) != (y // SIDE, x // SIDE):
                        found.append((1 / distance, image[b, a]))
                        break
            total = sum(weight for weight, _ in found)
            fills[BILINEAR][y, x] = sum(w * color for w, color in found) / total if found else mean
    return fills


@pytest.mark.parametrize("shown", [1, 3, 6])
def test_fills_are_those_of_a_loop_over_pixels(shown):
    rng = np.random.default_rng(shown)
    images = rng.normal(size=(2, ROWS * SIDE, COLUMNS * SIDE, 3)).astype(np.float32)
    hidden = np.ones((2, ROWS * COLUMNS), bool)
    for row in hidden:
        row[rng.permutation(ROWS * COLUMNS)[:shown]] = False
    fills = fill_hidden(to_patches(images), hidden, (ROWS, COLUMNS), SIDE)
    for i, image in enumerate(images):
        for name, expected in by_pixels(image, hidden[i].reshape(ROWS, COLUMNS)).items():
            np.testing.assert_allclose(fills[name][i][hidden[i]], to_patches([expected])[0][hidden[i]], atol=1e-6)


def test_a_ramp_is_filled_exactly():
    ramp = np.broadcast_to(np.arange(COLUMNS * SIDE, dtype=np.float32)[:, None], (ROWS * SIDE, COLUMNS * SIDE, 1))
    hidden = np.tile([False, True, True, False], ROWS)[None]
    fills = fill_hidden(to_patches(ramp[None]), hidden, (ROWS, COLUMNS), SIDE)
    np.testing.assert_allclose(fills[BILINEAR][hidden], to_patches(ramp[None])[hidden], atol=1e-5)


def test_token_losses():
    batches = [np.array([0, 0, 0, 1]), np.array([2, 2, 2, 2])]
    losses = token_losses(batches, 8)
    assert losses[UNIFORM] == pytest.approx(np.log(8))
    assert losses[BATCH_TOKENS] == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / 2)
    shares = np.array([3, 1, 4]) / 8
    assert losses[ALL_TOKENS] == pytest.approx(-(shares * np.log(shares)).sum())
