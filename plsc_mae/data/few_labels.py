"""Fixed choices of a few training images, for evaluation and training with few labels.

The choice in a class depends on the seed, the name of the class and the order of its images, not on other classes.
With one seed, choices by class are nested: the images of a smaller choice belong to every larger one. Choices
without classes are nested too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import DataError
from plsc_mae.wording import counted

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
    """Return an array of image indices for each class that has images, in a random order determined by the seed."""
    groups = []
    for label in np.unique(images.labels).tolist():
        rng = np.random.default_rng([seed, *images.classes[label].encode("utf-8", "backslashreplace")])
        groups.append(rng.permutation(np.flatnonzero(images.labels == label)))
    return groups


def shots(images: _Labeled, count: int, seed: int) -> Rows:
    """Return the sorted indices of `count` images of every class that has images.

    Raises:
        DataError: one of these classes has fewer images.
    """
    groups = rows_by_class(images, seed)
    smallest = min(groups, key=len)
    if len(smallest) < count:
        name = images.classes[images.labels[smallest[0]]]
        raise DataError(
            f"{images.source}: class {name} has {counted(len(smallest), 'image')}, but --shots {count} asks for "
            f"{count} of every class; remove {count} from --shots"
        )
    return np.sort(np.concatenate([rows[:count] for rows in groups]))


def fraction(images: _Labeled, share: float, seed: int) -> Rows:
    """Return sorted indices of the fraction `share` of each class's images, rounded but at least one per class."""
    groups = rows_by_class(images, seed)
    return np.sort(np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in groups]))


def fraction_of_all(count: int, share: float, seed: int) -> Rows:
    """Return sorted indices of the fraction `share` of `count` images without classes, rounded but at least one."""
    chosen = np.random.default_rng(seed).permutation(count)[: max(1, round(share * count))]
    return np.sort(chosen).astype(np.int64)


def union(choices: Sequence[Rows]) -> Rows:
    """Return the sorted indices that occur in at least one of the choices."""
    return np.unique(np.concatenate(choices))
