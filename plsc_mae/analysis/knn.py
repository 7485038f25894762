"""Weighted k-nearest-neighbor classification of features, as in BUPT-PRIV/MAE-priv tools/run_knn.py (after DINO).

The bank can be a memory map: one block of it at a time is read, converted to float32 and compared with all queries. For
the 50 000 queries of ImageNet, D = 1024 and k = 200, the queries take 0.2 GB of memory, their neighbors up to 0.4 GB,
and the blocks 0.1 GB. Notation: Q queries, N bank features, D width, k neighbors, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import ConfigError, DataError, flag
from plsc_mae.wording import counted

TEMPERATURE = 0.07
QUERY_BLOCK, BANK_BLOCK = 512, 16384
DEFAULT_KS, COMPARED_K, TRAINING_K = (10, 20, 100, 200), 10, 20  # of `knn`, `compare`, and --knn_freq
PLACE_BITS = 23  # a packed 64-bit integer has 9 bits for the row, 32 for the value and 23 for the place

logger = logging.getLogger(__name__)

Features = npt.NDArray[np.floating[Any]]  # float16 or float32
Similarities = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class KNNAccuracy(NamedTuple):
    """Accuracies, in percent, of a vote among `k` neighbors."""

    k: int
    top1: float
    top5: float


def default_ks(defaults: Sequence[int], bank: int) -> list[int]:
    """Return the default numbers of neighbors that do not exceed the bank; if all do, half of the bank, at least 1.

    The log names the defaults that are left out.
    """
    ks = [k for k in defaults if k <= bank] or [max(1, bank // 2)]
    if left := ", ".join(str(k) for k in defaults if k > bank):
        logger.info("k-NN with k = %s: the default k = %s exceeds the bank of %d", ", ".join(map(str, ks)), left, bank)
    return ks


def knn_accuracy(
    bank: Features,
    bank_labels: Indices,
    queries: Features,
    query_labels: Indices,
    ks: Sequence[int] = DEFAULT_KS,
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
        DataError: see `unit_rows`.
    """
    if max(ks) > len(bank):
        raise ConfigError(
            f"{flag('nb_knn', 'knn_k')} {max(ks)} exceeds the {counted(len(bank), 'image')} of the bank; lower it or "
            "add images"
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


def nearest_neighbors(bank: Features, queries: Features, k: int) -> tuple[Similarities, Indices]:
    """Find the k features of the bank with the largest cosine similarity to each query.

    Args:
        bank: features [N, D], N >= k.
        queries: features [Q, D].
        k: number of neighbors.

    Returns:
        Similarities [Q, k] in descending order and indices in the bank [Q, k]; equal similarities are ordered by index.
    """
    queries = unit_rows(queries)
    similarities = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    blocks = [slice(first, first + QUERY_BLOCK) for first in range(0, len(queries), QUERY_BLOCK)]
    found = [_Neighbors(similarities[rows], indices[rows]) for rows in blocks]
    step = max(BANK_BLOCK, k)
    for start in range(0, len(bank), step):
        block = unit_rows(bank[start : start + step])
        for rows, best in zip(blocks, found, strict=True):
            best.add(queries[rows] @ block.T, start)
    for best in found:
        best.merge()
    return similarities, indices


class _Neighbors:
    """The k nearest bank features of a block of queries.

    Candidates from later blocks of the bank are collected, and merged once their number is that of the results. With a
    bank in random order this takes about log2(N / BANK_BLOCK) merges, instead of one per block of the bank.
    """

    def __init__(self, similarities: Similarities, indices: Indices) -> None:
        self.similarities, self.indices = similarities, indices
        self._threshold: Similarities | None = None  # [rows, 1]; smaller candidates are not among the k nearest
        self._pending: list[tuple[Indices, Similarities, Indices]] = []  # rows, similarities, indices
        self._count = 0

    def add(self, candidates: Similarities, start: int) -> None:
        """Add the similarities [rows, block] of bank features from index `start` on; the first block has at least k."""
        rows, k = self.similarities.shape
        is_first = self._threshold is None
        if self._threshold is None:
            self._threshold = np.partition(candidates, -k, axis=1)[:, -k, None]
        places = np.flatnonzero(candidates >= self._threshold)
        at, columns = np.divmod(places, candidates.shape[1])
        self._pending.append((at, candidates[at, columns], columns + start))
        self._count += len(places)
        if is_first or self._count >= rows * k:
            self.merge(is_first=is_first)

    def merge(self, *, is_first: bool = False) -> None:
        """Merge the collected candidates into the results; with `is_first`, there are no results yet."""
        rows, k = self.similarities.shape
        if not is_first:
            known = (np.repeat(np.arange(rows), k), self.similarities.ravel(), self.indices.ravel())
            self._pending.insert(0, known)
        at, values, indices = (np.concatenate(parts) for parts in zip(*self._pending, strict=True))
        order = _descending(at, values)
        starts = np.searchsorted(at[order], np.arange(rows))
        chosen = order[starts[:, None] + np.arange(k)]
        self.similarities[:], self.indices[:] = values[chosen], indices[chosen]
        self._threshold = self.similarities[:, -1:].copy()
        self._pending, self._count = [], 0


def _descending(rows: Indices, values: Similarities) -> Indices:
    """Return the indices that sort by row and, within a row, by descending value; equal values keep their order.

    Row, value and place (the index) are packed into one integer, because plain integers are sorted faster.
    """
    if len(rows) > 1 << PLACE_BITS or int(rows.max()) >= 1 << (32 - PLACE_BITS):
        return np.lexsort((-values, rows))
    bits = (values + 0).view(np.uint32)  # + 0 turns -0 into 0
    falling = np.where(bits >> 31, bits, ~bits & 0x7FFFFFFF).astype(np.uint64)  # ascend as values descend
    packed = rows.astype(np.uint64) << np.uint64(32 + PLACE_BITS) | falling << np.uint64(PLACE_BITS)
    packed |= np.arange(len(rows), dtype=np.uint64)
    packed.sort()
    return (packed & np.uint64((1 << PLACE_BITS) - 1)).astype(np.int64)


def class_scores(
    similarities: Similarities, votes: Indices, num_classes: int, temperature: float = TEMPERATURE
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


def unit_rows(features: Features) -> npt.NDArray[np.float32]:
    """Divide the rows of [N, D] by their lengths, in float32; rows of zeros stay zero.

    Raises:
        DataError: the length of a feature is not finite in float32.
    """
    unit = np.array(features, np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", unit, unit))[:, None]
    if not np.isfinite(lengths).all():
        bad = int((~np.isfinite(lengths)).sum())
        raise DataError(
            f"the features of {bad} of {len(features)} images are not finite; choose an undamaged checkpoint"
        )
    unit /= np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
