"""Random division of labeled images into training and validation images."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from plsc_mae.data.few_labels import Rows, rows_by_class
from plsc_mae.data.listing import ImageList
from plsc_mae.errors import DataError


def validation_rows(images: ImageList, share: float, seed: int) -> Rows:
    """Return the sorted indices of the fraction `share` of every class, at least one image but never all of a class."""
    chosen = [rows[: _wanted(len(rows), share)] for rows in rows_by_class(images, seed)]
    return np.sort(np.concatenate(chosen))


def grouped_validation_rows(images: ImageList, groups: Sequence[str], share: float, seed: int) -> Rows:
    """Choose whole groups of images, so that no group is divided, and return the sorted indices of their images.

    The groups are visited in random order. A group is chosen if its most frequent class has no validation images yet,
    or comes closer to the number that `validation_rows` would choose, and if every class keeps training images. So the
    numbers can be larger or smaller, and a class with a single group has no validation images.

    Args:
        images: the labeled images.
        groups: name of each image's group.
        share: fraction of the images for validation.
        seed: seed of the order.
    """
    totals = np.bincount(images.labels, minlength=len(images.classes))
    wanted = np.array([_wanted(int(total), share) for total in totals])
    held = np.zeros_like(totals)
    names, numbers = np.unique(np.array(groups, object).astype(str), return_inverse=True)
    chosen: list[Rows] = [np.empty(0, np.int64)]
    for group in np.random.default_rng(seed).permutation(len(names)).tolist():
        rows = np.flatnonzero(numbers == group)
        counts = np.bincount(images.labels[rows], minlength=len(totals))
        main = int(counts.argmax())
        comes_closer = held[main] + counts[main] / 2 < wanted[main]
        if (comes_closer or not held[main]) and (held + counts < totals)[counts > 0].all():
            held += counts
            chosen.append(rows)
    return np.sort(np.concatenate(chosen))


def groups_of(images: ImageList, pattern: str) -> list[str]:
    """Return the part of each image's path that matches the regular expression, or its first group if it has one.

    Raises:
        DataError: a path has no match.
    """
    expression, groups = re.compile(pattern), []
    for row in range(len(images)):
        match = expression.search(images.name(row))
        if match is None:
            raise DataError(
                f"--group_by {pattern} does not match {images.name(row)}; give a regular expression for a part of "
                "every path"
            )
        groups.append(match[1] or "" if expression.groups else match[0])
    return groups


def _wanted(total: int, share: float) -> int:
    return min(max(1, round(share * total)), max(total - 1, 0))
