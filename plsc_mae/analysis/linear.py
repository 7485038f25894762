"""Linear classification of frozen features by logistic regression, fitted by SciPy's L-BFGS-B.

The result is deterministic and does not depend on a learning rate or a number of epochs. Features and their second
moments (D x D or n x n, whichever is smaller) are held in memory, so the method suits thousands of images and features.
Notation: n training features, Q queries, D width, R rank, C classes.
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
RANK_TOLERANCE = 1e-7  # fraction of the largest mean square along an axis; axes below it are rounding errors
# ftol, the limit on the decrease of the loss, is turned off, because it would stop flat problems too early.
LBFGS_OPTIONS = {"maxcor": 20, "maxiter": 500, "gtol": 1e-5, "ftol": 0.0}


class LinearAccuracy(NamedTuple):
    """Accuracies in percent, and the L2 penalty of the fit."""

    l2: float
    top1: float
    top5: float


class LinearClassifier(NamedTuple):
    """A linear classifier of features of any width W, with weights [W, C] and biases [C]."""

    weight: Doubles
    bias: Doubles

    def log_probabilities(self, features: Features) -> Doubles:
        """Return the natural logarithms [n, C] of the class probabilities (softmax) for features [n, W]."""
        return log_softmax(features @ self.weight.astype(np.float32) + self.bias, axis=1)


def linear_accuracy(
    features: Features,
    labels: Indices,
    queries: Features,
    query_labels: Indices,
    penalties: Sequence[float] = PENALTIES,
) -> LinearAccuracy:
    """Fit multinomial logistic regression to standardized training features; return its accuracy on the queries.

    To choose the L2 penalty, every tenth training feature is held out. The chosen penalty gives the smallest cross
    entropy on the held-out features after a fit to the remaining ones; with fewer than ten training features, it is the
    largest penalty. The final fit uses all training features. The queries' features do not influence the fit.

    Args:
        features: training features [n, D].
        labels: class numbers [n].
        queries: features [Q, D].
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
    l2 = choose_penalty(train, labels, num_classes, held, variance, penalties)
    scores = fit_on_axes(train, labels, num_classes, l2, variance).log_probabilities(test)
    hit = np.argsort(-scores, axis=1, kind="stable")[:, :5] == query_labels[:, None]
    return LinearAccuracy(l2, 100 * float(hit[:, 0].mean()), 100 * float(hit.any(axis=1).mean()))


def choose_penalty(
    features: Features,
    labels: Indices,
    num_classes: int,
    held: npt.NDArray[np.bool_],
    variance: Doubles,
    penalties: Sequence[float],
) -> float:
    """Return the L2 penalty with the smallest cross entropy on held-out features after a fit to the others.

    Args:
        features: coordinates [n, R] on the principal axes.
        labels: class numbers [n].
        num_classes: C.
        held: True for held-out features, [n]; without any, the largest penalty is returned.
        variance: mean square [R] of the coordinates.
        penalties: L2 penalties to choose from.
    """

    def held_out_loss(l2: float) -> float:
        model = fit_on_axes(features[~held], labels[~held], num_classes, l2, variance)
        return -float(model.log_probabilities(features[held])[np.arange(held.sum()), labels[held]].mean())

    return min(penalties, key=held_out_loss) if held.any() else max(penalties)


class Standardization(NamedTuple):
    """Statistics that standardize features: mean [D], and scale [D], the inverse standard deviation or 0."""

    mean: Doubles
    scale: Doubles

    def apply(self, features: Features) -> Features:
        """Return features [n, D] minus the mean, times the scale.

        Raises:
            DataError: a feature is not finite.
        """
        if not np.isfinite(features).all():
            raise DataError("the features are not finite; choose an undamaged checkpoint")
        return ((features - self.mean) * self.scale).astype(np.float32)


def standardization(features: Features) -> Standardization:
    """Return the statistics that give columns of features [n, D] mean 0 and variance 1; constant columns become 0."""
    mean = features.mean(axis=0, dtype=np.float64)
    std = features.std(axis=0, dtype=np.float64)
    varies = std > 1e-6 * np.abs(mean)  # the std of a constant column is not exactly 0 because of rounding
    return Standardization(mean, np.where(varies, 1 / np.where(varies, std, 1), 0))


def standardize(features: Features, queries: Features) -> tuple[Features, Features]:
    """Standardize features [n, D] by `standardization`, and queries [Q, D] with the same statistics.

    Raises:
        DataError: a feature is not finite.
    """
    statistics = standardization(features)
    return statistics.apply(features), statistics.apply(queries)


def principal_axes(features: Features) -> tuple[Features, Doubles]:
    """Return orthonormal axes [D, R] that span features [n, D], R <= min(n, D), and the mean square [R] along each.

    The axes are in ascending order of the mean square. The solution with an L2 penalty lies in this span, so the
    reduction to the axes is exact up to rounding.
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
    """Return the classifier that minimizes mean cross entropy + l2 / 2 * |weight|^2; biases are not penalized.

    The Hessian with respect to a weight on an axis is at most variance / 2 + l2 (Boehning 1992, "Multinomial logistic
    regression algorithm"). Scaling each axis by the inverse square root of this bound makes all axes about equally
    steep, so L-BFGS-B converges in few iterations. After 500 its result is used even if it has not converged.

    Args:
        features: coordinates [n, R] on the principal axes.
        labels: class numbers [n].
        num_classes: C.
        l2: L2 penalty.
        variance: mean square [R] of the coordinates; it affects only the speed.
    """
    unit = 1 / np.sqrt(variance / 2 + l2)[:, None]
    scaled = features * unit.T.astype(np.float32)
    one_hot = np.eye(num_classes)[labels]

    def objective(parameters: Doubles) -> tuple[float, Doubles]:
        """Return the penalized loss and its gradient for bias [C] and scaled weight [R, C], flattened and joined."""
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
