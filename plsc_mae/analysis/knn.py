"""Weighted k-nearest-neighbor classification of features, as BUPT-PRIV/MAE-priv tools/run_knn.py does (after DINO).

Q queries, N bank features, D width, k neighbors, C classes. Similarities exist for one block of queries and of the
bank at a time, so memory goes to the features themselves: an ImageNet bank of 1.28 M x 768 takes 3.9 GB, its 50 000
queries 0.2 GB, their 200 neighbors 0.1 GB and the work on a block 0.2 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import ConfigError, DataError

TEMPERATURE = 0.07
QUERY_BLOCK, BANK_BLOCK = 512, 16384

Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class KNNAccuracy(NamedTuple):
    """Accuracies in percent of a vote of `k` neighbors."""

    k: int
    top1: float
    top5: float


def knn_accuracy(
    bank: Features,
    bank_labels: Indices,
    queries: Features,
    query_labels: Indices,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = TEMPERATURE,
) -> list[KNNAccuracy]:
    """Classify queries by a weighted vote of their nearest neighbors in the bank.

    As in the original, top-5 counts the best min(5, k) classes, and a class that no neighbor voted for can be among
    them, lower numbers first.

    Args:
        bank: [N, D].
        bank_labels: class numbers [N].
        queries: [Q, D].
        query_labels: class numbers [Q].
        ks: numbers of neighbors.
        temperature: T of the votes exp(similarity / T).

    Raises:
        ConfigError: the bank has fewer features than the largest k.
        DataError: a feature is not finite.
    """
    if max(ks) > len(bank):
        raise ConfigError(f"--nb_knn {max(ks)} asks for more neighbors than the {len(bank)} images of the bank")
    similarities, neighbors = nearest_neighbors(bank, queries, max(ks))
    num_classes = int(max(bank_labels.max(), query_labels.max())) + 1
    accuracies = []
    for k in ks:
        hits = np.zeros(2)
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            votes = bank_labels[neighbors[block, :k]]
            scores = class_scores(similarities[block, :k], votes, num_classes, temperature)
            ranked = np.argsort(-scores, axis=1, kind="stable")[:, : min(5, k)]
            hit = ranked == query_labels[block, None]
            hits += hit[:, 0].sum(), hit.any(axis=1).sum()
        accuracies.append(KNNAccuracy(k, *(100 * hits / len(queries)).tolist()))
    return accuracies


def nearest_neighbors(bank: Features, queries: Features, k: int) -> tuple[Features, Indices]:
    """Find the k features of the bank that are most similar to each query by the cosine.

    Args:
        bank: [N, D], N >= k.
        queries: [Q, D].
        k: number of neighbors.

    Returns:
        Similarities [Q, k] in falling order, and places in the bank [Q, k]; among equals the lower place comes first.

    Raises:
        DataError: a feature is not finite.
    """
    queries = unit_rows(queries)
    similarities = np.empty((len(queries), k), np.float32)
    places = np.empty((len(queries), k), np.int64)
    step = max(BANK_BLOCK, k)
    for start in range(0, len(bank), step):
        block = unit_rows(bank[start : start + step])
        for first in range(0, len(queries), QUERY_BLOCK):
            rows = slice(first, first + QUERY_BLOCK)
            found = queries[rows] @ block.T
            if start == 0:
                known, floor = None, np.partition(found, -k, axis=1)[:, -k:][:, :1]
            else:
                known, floor = (similarities[rows], places[rows]), similarities[rows, -1:]
            similarities[rows], places[rows] = _merged(known, found, floor, start, k)
    return similarities, places


def class_scores(
    similarities: Features, votes: Indices, num_classes: int, temperature: float = TEMPERATURE
) -> npt.NDArray[np.float64]:
    """Sum exp(similarity / T) of the neighbors class by class.

    Args:
        similarities: [Q, k].
        votes: the neighbors' class numbers [Q, k].
        num_classes: C.
        temperature: T.

    Returns:
        [Q, C].
    """
    scores = np.zeros((len(votes), num_classes))
    np.add.at(scores, (np.arange(len(votes))[:, None], votes), np.exp(similarities.astype(np.float64) / temperature))
    return scores


def unit_rows(features: Features) -> Features:
    """Divide the rows of [N, D] by their length; a row of zeros stays.

    Raises:
        DataError: a feature is not finite.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        bad = int((~np.isfinite(lengths)).sum())
        raise DataError(f"the features of {bad} of {len(features)} images are not finite; the checkpoint is unusable")
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)


def _merged(
    known: tuple[Features, Indices] | None, found: Features, floor: npt.NDArray[Any], start: int, k: int
) -> tuple[Features, Indices]:
    """The k best of each row among those known, which come first, and those found that reach the row's floor."""
    rows, columns = np.nonzero(found >= floor)
    values, places = found[rows, columns], columns + start
    if known is not None:
        rows = np.concatenate([np.repeat(np.arange(len(found)), k), rows])
        values = np.concatenate([known[0].ravel(), values])
        places = np.concatenate([known[1].ravel(), places])
    order = np.lexsort((-values, rows))  # stable: equal values stay in the order of their places
    starts = np.searchsorted(rows[order], np.arange(len(found)))
    best = order[starts[:, None] + np.arange(k)]
    return values[best], places[best]
