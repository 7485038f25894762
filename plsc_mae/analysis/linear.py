"""Linear classification of frozen features by logistic regression, minimized to its optimum by SciPy's L-BFGS-B.

Nothing is drawn at random, and there is no learning rate or number of epochs: the same features always give the same
accuracy. Features and their second moments, D x D or n x n, whichever is smaller, are held in memory, so this is for
thousands of images and features. n training features, Q queries, D width, R rank, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.optimize
from scipy.special import log_softmax

from plsc_mae.errors import DataError

Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
HELD_OUT = 10  # every tenth training feature is held out to choose the penalty
RANK_TOLERANCE = 1e-7  # of the largest mean square along an axis; below it is what rounding leaves of dependent columns
# The gradient alone ends L-BFGS-B: a limit on the decrease of the value (ftol) would stop flat problems early.
LBFGS_OPTIONS = {"maxcor": 20, "maxiter": 500, "gtol": 1e-5, "ftol": 0.0}


class LinearAccuracy(NamedTuple):
    """Accuracies in percent, and the L2 penalty chosen by the held-out features."""

    l2: float
    top1: float
    top5: float


class LinearClassifier(NamedTuple):
    """Weights [R, C] and biases [C]."""

    weight: Doubles
    bias: Doubles

    def log_probabilities(self, features: Features) -> Doubles:
        """Log-softmax of the scores of features [n, R], [n, C]."""
        return log_softmax(features @ self.weight.astype(np.float32) + self.bias, axis=1)


def linear_accuracy(
    features: Features,
    labels: Indices,
    queries: Features,
    query_labels: Indices,
    penalties: Sequence[float] = PENALTIES,
) -> LinearAccuracy:
    """Classify queries by multinomial logistic regression on standardized training features.

    The penalty is the one with the smallest cross entropy on every tenth training feature when fitted to the others;
    with it, all training features are fitted. Queries decide nothing.

    Args:
        features: [n, D].
        labels: class numbers [n].
        queries: [Q, D].
        query_labels: class numbers [Q].
        penalties: L2 penalties to choose from.

    Raises:
        DataError: a feature is not finite.
    """
    train, test = standardize(features, queries)
    basis, variance = principal_axes(train)
    train, test = train @ basis, test @ basis
    num_classes = int(max(labels.max(), query_labels.max())) + 1
    held = np.arange(len(labels)) % HELD_OUT == HELD_OUT - 1

    def held_out_loss(l2: float) -> float:
        model = fit_on_axes(train[~held], labels[~held], num_classes, l2, variance)
        return -float(model.log_probabilities(train[held])[np.arange(held.sum()), labels[held]].mean())

    l2 = min(penalties, key=held_out_loss)
    scores = fit_on_axes(train, labels, num_classes, l2, variance).log_probabilities(test)
    hit = np.argsort(-scores, axis=1, kind="stable")[:, :5] == query_labels[:, None]
    return LinearAccuracy(l2, 100 * float(hit[:, 0].mean()), 100 * float(hit.any(axis=1).mean()))


def standardize(features: Features, queries: Features) -> tuple[Features, Features]:
    """Bring features [n, D] to mean 0 and variance 1 by column, and queries [Q, D] with the same numbers.

    Columns that do not vary become 0.

    Raises:
        DataError: a feature is not finite.
    """
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    if not (np.isfinite(std).all() and np.isfinite(queries).all()):
        raise DataError("the features are not finite; the checkpoint is unusable")
    varies = std > 1e-6 * np.abs(mean)  # a constant varies by rounding only
    scale = np.where(varies, 1 / np.where(varies, std, 1), 0)
    return ((features - mean) * scale).astype(np.float32), ((queries - mean) * scale).astype(np.float32)


def principal_axes(features: Features) -> tuple[Features, Doubles]:
    """Find orthonormal axes [D, R] that span features [n, D], R <= min(n, D), and the mean square along each [R].

    A penalized solution lies within their span, so nothing is lost by leaving the other directions out.
    """
    number, width = features.shape
    doubles = features.astype(np.float64)
    moments = doubles.T @ doubles if width <= number else doubles @ doubles.T
    variance, basis = np.linalg.eigh(moments / number)
    kept = variance > RANK_TOLERANCE * variance[-1]
    variance, basis = variance[kept], basis[:, kept]
    if width > number:
        basis = doubles.T @ (basis / np.sqrt(number * variance))
    return basis.astype(np.float32), variance


def fit_on_axes(
    features: Features, labels: Indices, num_classes: int, l2: float, variance: Doubles
) -> LinearClassifier:
    """Minimize the mean cross entropy + l2 / 2 * |weight|^2; biases are free.

    The Hessian of a weight on an axis lies below variance / 2 + l2 (Boehning 1992, "Multinomial logistic regression
    algorithm"). In units of one over its root all axes are about equally steep, so L-BFGS-B converges in few steps.

    Args:
        features: [n, R], coordinates on principal axes.
        labels: class numbers [n].
        num_classes: C.
        l2: the penalty.
        variance: mean square of the coordinates [R]; it affects the speed only.
    """
    unit = 1 / np.sqrt(variance / 2 + l2)[:, None]
    scaled = features * unit.T.astype(np.float32)
    one_hot = np.eye(num_classes)[labels]

    def objective(parameters: Doubles) -> tuple[float, Doubles]:
        bias, weight = parameters[:num_classes], parameters[num_classes:].reshape(-1, num_classes)
        logs = LinearClassifier(weight, bias).log_probabilities(scaled)
        error = (np.exp(logs) - one_hot) / len(labels)
        shrinkage = l2 * unit**2 * weight
        slope = scaled.T @ error.astype(np.float32) + shrinkage
        loss = -(one_hot * logs).sum() / len(labels) + (shrinkage * weight).sum() / 2
        return float(loss), np.concatenate([error.sum(axis=0), slope.ravel()])

    start = np.zeros((1 + len(unit)) * num_classes)
    found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=LBFGS_OPTIONS).x
    return LinearClassifier(unit * found[num_classes:].reshape(-1, num_classes), found[:num_classes])
