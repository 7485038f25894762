"""Weighted k-nearest-neighbor classification of features, as in BUPT-PRIV/MAE-priv tools/run_knn.py (after DINO).

Similarities are computed for one block of queries and one block of the bank at a time, so the features take most of
the memory: for ImageNet, the bank of 1.28 M x 768 takes 3.9 GB, the 50 000 queries 0.2 GB, their 200 neighbors 0.1 GB,
and one block 0.2 GB. Notation: Q queries, N bank features, D width, k neighbors, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import ConfigError, DataError, flag

TEMPERATURE = 0.07
QUERY_BLOCK, BANK_BLOCK = 512, 16384

Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class KNNAccuracy(NamedTuple):
    """Accuracies, in percent, of a vote among `k` neighbors."""

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
    """Classify each query by a weighted vote of its nearest neighbors in the bank; return the accuracies for each k.

    As in the original, top-5 uses the best min(5, k) classes. They can include classes without a vote, in the order of
    their numbers.

    Args:
        bank: features [N, D].
        bank_labels: class numbers [N].
        queries: features [Q, D].
        query_labels: class numbers [Q].
        ks: numbers of neighbors; the results are in this order.
        temperature: T of the votes' weights exp(similarity / T).

    Raises:
        ConfigError: the bank has fewer features than the largest k.
        DataError: a feature is not finite.
    """
    if max(ks) > len(bank):
        raise ConfigError(
            f"{flag('nb_knn', 'knn_k')} {max(ks)} exceeds the {len(bank)} images of the bank; lower it or add images"
        )
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
    """Find the k features of the bank with the largest cosine similarity to each query.

    Args:
        bank: features [N, D], N >= k.
        queries: features [Q, D].
        k: number of neighbors.

    Returns:
        Similarities [Q, k] in descending order and indices in the bank [Q, k]; equal similarities are ordered by index.

    Raises:
        DataError: a feature is not finite.
    """
    queries = unit_rows(queries)
    similarities = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    step = max(BANK_BLOCK, k)
    for start in range(0, len(bank), step):
        block = unit_rows(bank[start : start + step])
        for first in range(0, len(queries), QUERY_BLOCK):
            rows = slice(first, first + QUERY_BLOCK)
            candidates = queries[rows] @ block.T
            if start == 0:
                best = None
                threshold = np.partition(candidates, -k, axis=1)[:, -k:][:, :1]
            else:
                best = (similarities[rows], indices[rows])
                threshold = similarities[rows, -1:]
            similarities[rows], indices[rows] = _merge_best(best, candidates, threshold, start, k)
    return similarities, indices


def class_scores(
    similarities: Features, votes: Indices, num_classes: int, temperature: float = TEMPERATURE
) -> npt.NDArray[np.float64]:
    """Sum the neighbors' weights exp(similarity / T) by class.

    Args:
        similarities: [Q, k].
        votes: class numbers [Q, k] of the neighbors.
        num_classes: C.
        temperature: T.

    Returns:
        Scores [Q, C].
    """
    scores = np.zeros((len(votes), num_classes))
    np.add.at(scores, (np.arange(len(votes))[:, None], votes), np.exp(similarities.astype(np.float64) / temperature))
    return scores


def unit_rows(features: Features) -> Features:
    """Divide the rows of [N, D] by their lengths; rows of zeros stay zero.

    Raises:
        DataError: a feature is not finite.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        bad = int((~np.isfinite(lengths)).sum())
        raise DataError(
            f"the features of {bad} of {len(features)} images are not finite; choose an undamaged checkpoint"
        )
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)


def _merge_best(
    best: tuple[Features, Indices] | None, candidates: Features, threshold: npt.NDArray[Any], start: int, k: int
) -> tuple[Features, Indices]:
    """Return the k largest similarities of each row so far, and their indices.

    Args:
        best: similarities and indices of the previous blocks, [rows, k] each; None for the first block.
        candidates: similarities [rows, block] of the current block.
        threshold: [rows, 1]; smaller candidates are ignored.
        start: index of the first candidate in the bank.
        k: number of neighbors.
    """
    rows, columns = np.nonzero(candidates >= threshold)
    values = candidates[rows, columns]
    indices = columns + start
    if best is not None:
        rows = np.concatenate([np.repeat(np.arange(len(candidates)), k), rows])
        values = np.concatenate([best[0].ravel(), values])
        indices = np.concatenate([best[1].ravel(), indices])
    order = np.lexsort((-values, rows))  # stable: equal values stay in the order of their indices
    starts = np.searchsorted(rows[order], np.arange(len(candidates)))
    chosen = order[starts[:, None] + np.arange(k)]
    return values[chosen], indices[chosen]
