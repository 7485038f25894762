"""Colors of pictures."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae.analysis.pictures import MAX_COLORS, distinct_colors


@pytest.mark.parametrize(("number", "distance"), [(10, 90), (20, 60)])
def test_colors_of_classes_are_far_apart(number, distance):
    """Distances in levels of RGB, also from white and from the gray of unlabeled images."""
    colors = np.concatenate([distinct_colors(number), [[255, 255, 255], [120, 120, 120]]]).astype(int)
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e9 * np.eye(len(colors))
    assert apart.min() > distance


def test_the_color_of_a_class_does_not_depend_on_their_number():
    many = distinct_colors(2 * MAX_COLORS)
    np.testing.assert_array_equal(many[:7], distinct_colors(7))
    np.testing.assert_array_equal(many[MAX_COLORS:], many[:MAX_COLORS])
    assert len(np.unique(many, axis=0)) == MAX_COLORS
    assert distinct_colors(0).shape == (0, 3)
