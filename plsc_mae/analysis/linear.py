"""Linear classification of frozen features: logistic regression, solved to its optimum instead of trained.

Nothing is drawn at random and nothing depends on a learning rate or a number of epochs: the same features always give
the same accuracy. Everything is in memory, and the second moments are D x D (or n x n, if that is smaller), so this is
for thousands of images and of features. n training features, Q queries, D width, R rank, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.errors import DataError

Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Objective = Callable[[Doubles], tuple[float, Doubles]]

PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
HELD_OUT = 10  # every so many-th training feature judges the penalties
RANK_TOLERANCE = 1e-7  # of the largest mean square along an axis; below it is what rounding leaves of dependent columns
MEMORY, MAX_STEPS = 20, 500  # of L-BFGS
TOLERANCE = 1e-5  # largest partial derivative at the optimum
SUFFICIENT = 1e-4  # share of the decrease promised by the slope that a step must bring (Armijo)


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
        scores = features @ self.weight.astype(np.float32) + self.bias
        scores -= scores.max(axis=1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


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
    algorithm"). In units of one over its root all axes are about equally steep, which L-BFGS needs to get there soon.

    Args:
        features: [n, R], coordinates on principal axes.
        labels: class numbers [n].
        num_classes: C.
        l2: the penalty.
        variance: mean square of the coordinates [R]; it decides about speed only.
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

    found = minimize(objective, np.zeros((1 + len(unit)) * num_classes))
    return LinearClassifier(unit * found[num_classes:].reshape(-1, num_classes), found[:num_classes])


def minimize(objective: Objective, start: Doubles) -> Doubles:
    """Find the minimum of a smooth convex function by L-BFGS (Nocedal 1980) with backtracking.

    Args:
        objective: gives value and gradient at a point.
        start: the first point [P].
    """
    point = start
    value, slope = objective(point)
    history: list[tuple[Doubles, Doubles]] = []
    for _ in range(MAX_STEPS):
        if np.abs(slope).max() < TOLERANCE:
            break
        direction = -_times_inverse_hessian(history, slope)
        promised, length = float(direction @ slope), 1.0
        new_value, new_slope = objective(point + direction)
        while new_value > value + SUFFICIENT * length * promised:
            length /= 2
            if length < 1e-9:  # the value is flat within rounding
                return point
            new_value, new_slope = objective(point + length * direction)
        step, change = length * direction, new_slope - slope
        if step @ change > 0:
            history = [*history, (step, change)][-MEMORY:]
        point, value, slope = point + step, new_value, new_slope
    return point


def _times_inverse_hessian(history: Sequence[tuple[Doubles, Doubles]], slope: Doubles) -> Doubles:
    """Multiply by the inverse Hessian that past steps and changes of the gradient suggest: the two-loop recursion."""
    result = slope.copy()
    shares = []
    for step, change in reversed(history):
        shares.append(float(step @ result) / float(step @ change))
        result -= shares[-1] * change
    if history:
        step, change = history[-1]
        result *= float(step @ change) / float(change @ change)
    for (step, change), share in zip(history, reversed(shares), strict=True):
        result += (share - float(change @ result) / float(step @ change)) * step
    return result
