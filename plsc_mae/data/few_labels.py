"""Fixed choices of a few training images, for evaluation and training with few labels.

A choice depends on the seed, the names of the classes and the order of the images within each class, not on other
classes. Choices of one seed are nested: the images of a smaller choice belong to every larger one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import DataError

Rows = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)


class _Labeled(Protocol):
    @property
    def labels(self) -> npt.NDArray[np.int64]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def source(self) -> str: ...


def rows_by_class(images: _Labeled, seed: int) -> list[Rows]:
    """Return the numbers of the images of every class that has images, in a random order that the seed determines."""
    groups = []
    for label in np.unique(images.labels).tolist():
        rng = np.random.default_rng([seed, *images.classes[label].encode("utf-8", "backslashreplace")])
        groups.append(rng.permutation(np.flatnonzero(images.labels == label)))
    return groups


def shots(images: _Labeled, count: int, seed: int) -> Rows:
    """Return the sorted numbers of `count` images of every class.

    Raises:
        DataError: a class has fewer images.
    """
    groups = rows_by_class(images, seed)
    smallest = min(groups, key=len)
    if len(smallest) < count:
        name = images.classes[images.labels[smallest[0]]]
        raise DataError(
            f"{images.source}: class {name} has {len(smallest)} images, but --shots {count} asks for {count} of every "
            "class; leave out this number"
        )
    return np.sort(np.concatenate([rows[:count] for rows in groups]))


def fraction(images: _Labeled, share: float, seed: int) -> Rows:
    """Return the sorted numbers of a share of the images of every class, rounded, and at least one."""
    groups = rows_by_class(images, seed)
    return np.sort(np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in groups]))


def fraction_of_all(count: int, share: float, seed: int) -> Rows:
    """Return the sorted numbers of a share of `count` images without classes, rounded, and at least one."""
    chosen = np.random.default_rng(seed).permutation(count)[: max(1, round(share * count))]
    return np.sort(chosen).astype(np.int64)


def union(choices: Sequence[Rows]) -> Rows:
    """Return the sorted numbers that occur in any of several choices."""
    return np.unique(np.concatenate(choices))
