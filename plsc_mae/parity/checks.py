"""Comparisons of a network's layers, gradients and updates with the oracle and with an original implementation."""

from __future__ import annotations

import numpy as np

from plsc_mae import weights
from plsc_mae.parity.build_cases import small_case
from plsc_mae.parity.cases import AnyCase
from plsc_mae.parity.compare import Arrays, Comparison, Row, Section, difference, differences
from plsc_mae.parity.originals import Original, run_original
from plsc_mae.parity.references.exchange import Message
from plsc_mae.parity.updates import WARMUP, our_rates, train, update_section

ORACLE = "the float64 oracle"
# In float64, gradients that are zero in exact arithmetic, such as those of key biases, stay below this fraction of the
# largest gradient.
ZERO = 1e-12
# Against an original, the tolerance of updated weights is larger by this factor: AdamW moves a weight by the full rate
# even if its gradient is as small as the rounding error, which can have either sign.
MOVEMENT_FACTOR = 100
DIRECTIONS = 2
DIFFERENCE_STEP = 1e-5  # central differences: truncation error about 1e-10, rounding error about 1e-11 in float64
# Errors of a gradient are divided by its norm, but at least by this fraction of the largest gradient norm.
NORM_FLOOR = 1e-3


def against_oracle(case: AnyCase, steps: int, tolerance: float, seed: int) -> Comparison:
    """Return the comparison of a case with the oracle: its layers, then gradients and updates of a small network.

    The small network has the options of the case except for the sizes. It has random weights and runs in float32.

    Args:
        case: the network, its weights and a batch.
        steps: number of optimizer updates.
        tolerance: upper limit of relative differences.
        seed: seed of the small network and of the directions of its derivatives.
    """
    layers = differences(case.layers(), case.oracle(case.parameters()), tolerance)
    note = f"Outputs of every layer and the loss, for {len(case.batch['images'])} images."
    small = small_case(case.config, seed)
    sections = [
        Section("forward", note, layers, in_order=True),
        gradient_section(small, tolerance, seed),
        update_section(small, steps, tolerance),
    ]
    return Comparison(case.name, ORACLE, sections, remark=case.remark)


def gradient_section(case: AnyCase, tolerance: float, seed: int) -> Section:
    """Return the comparison of our gradients with finite differences of the oracle's loss, a row per parameter.

    Each parameter is checked along DIRECTIONS random directions, vectors of random signs. Our derivative is the product
    of direction and gradient; the oracle's is the central difference when every element moves by plus or minus
    DIFFERENCE_STEP. The derivative has the magnitude of the gradient's norm, and an error in any element changes it.

    Args:
        case: a small network; the oracle runs 2 * DIRECTIONS times per tensor.
        tolerance: upper limit of the relative difference.
        seed: seed of the directions.
    """
    rng = np.random.default_rng(seed)
    case.backward()
    gradients = case.gradients()
    parameters, objective = case.parameters(), case.objective()
    floor = NORM_FLOOR * max(float(np.linalg.norm(gradient)) for gradient in gradients.values())
    rows = []
    for name, gradient in gradients.items():
        errors = []
        for _ in range(DIRECTIONS):
            signs = rng.choice([-1.0, 1.0], gradient.shape)
            ahead = objective({**parameters, name: parameters[name] + DIFFERENCE_STEP * signs})
            behind = objective({**parameters, name: parameters[name] - DIFFERENCE_STEP * signs})
            slope = (ahead - behind) / (2 * DIFFERENCE_STEP)
            errors.append(abs(slope - float((gradient.astype(np.float64) * signs).sum())))
        norm = float(np.linalg.norm(gradient))
        rows.append(Row(name, max(errors), float(np.mean(errors)), max(norm, floor), tolerance))
    note = (
        f"Gradients of a small network with the same options ({len(rows)} tensors). Each tensor is checked along "
        f"{DIRECTIONS} random directions of signs: our derivative against central differences of the oracle's loss "
        f"(step {DIFFERENCE_STEP:g}). Differences are relative to the norm of the gradient."
    )
    return Section("gradients", note, rows)


def against_original(
    case: AnyCase, original: Original, steps: int, tolerance: float, reference: str, python: str
) -> Comparison:
    """Return the comparison of layers, all gradients and updates of a case with the original code.

    The weights of the case change.

    Args:
        case: the network, its weights and a batch.
        original: the original implementation.
        steps: number of optimizer updates.
        tolerance: upper limit of relative differences.
        reference: folder of the original's checkout; ignored if the original is an installed package.
        python: interpreter that runs the original code; "" for the current one.

    Raises:
        ConfigError: the original code does not run.
    """
    rates = our_rates(case, steps)
    answer = run_original(original, case, rates, reference, python)
    ours = case.layers()
    theirs = {name: value for name, value in answer.groups["layers"].items() if name in ours}
    case.backward()
    gradients = weights.export(case.model, original.dialect, case.gradients())
    start = weights.export(case.model, original.dialect)
    losses = np.array(train(case, rates))
    trained = weights.export(case.model, original.dialect)

    versions = ", ".join(f"{name} {version}" for name, version in answer.settings["versions"].items())
    note = f"Outputs of every layer and the loss, for {len(case.batch['images'])} images; the original runs in float64."
    sections = [
        Section("forward", note, differences(ours, theirs, tolerance), in_order=True),
        Section(
            "gradients",
            "Gradients of all parameters, by their original names.",
            _gradients(gradients, answer, tolerance),
        ),
        _updates(start, trained, losses, answer, tolerance),
    ]
    return Comparison(case.name, original.title, sections, versions, case.remark)


def _gradients(ours: Arrays, answer: Message, tolerance: float) -> list[Row]:
    """Return a row for every parameter that either side trains; a gradient that one side lacks counts as 0."""
    theirs = answer.groups["gradients"]
    largest = _largest(theirs)
    rows = []
    for name in dict.fromkeys([*theirs, *ours]):
        zeros = np.zeros((theirs if name in theirs else ours)[name].shape)
        expected = theirs.get(name, zeros)
        scale = float(np.abs(expected).max())
        if scale <= ZERO * largest:
            scale = largest
        rows.append(difference(name, ours.get(name, zeros), expected, tolerance, scale))
    return rows


def _updates(start: Arrays, trained: Arrays, losses: np.ndarray, answer: Message, tolerance: float) -> Section:
    """Return the comparison of losses and trained weights; a tensor's error is relative to the distance it moved."""
    theirs, gradients = answer.groups["trained"], answer.groups["gradients"]
    threshold = ZERO * _largest(gradients)
    rows = [difference("losses", losses, answer.groups["losses"]["losses"], tolerance)]
    for name, gradient in gradients.items():
        nonzero = np.abs(gradient) > threshold
        movement = float(np.linalg.norm((theirs[name] - start[name])[nonzero]))
        error = (trained[name].astype(np.float64) - theirs[name])[nonzero]
        if movement:
            norm_and_mean = float(np.linalg.norm(error)), float(np.abs(error).mean())
            rows.append(Row(name, *norm_and_mean, movement, MOVEMENT_FACTOR * tolerance))
    note = (
        f"{len(losses)} AdamW updates on one batch, {WARMUP} of them warm-up. The first row compares the loss before "
        "each update. The others compare the trained weights with the original's: the L2 norm of their "
        "difference, relative to the L2 distance that training moved them. Weights whose gradient is zero in exact "
        "arithmetic are excluded, because AdamW turns their rounding errors into full steps."
    )
    return Section("updates", note, rows)


def _largest(arrays: Arrays) -> float:
    return max(float(np.abs(value).max()) for value in arrays.values())
