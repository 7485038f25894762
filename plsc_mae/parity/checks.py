"""Complete comparisons of a network with the oracle and with an original implementation."""

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
# Gradients that are zero in exact arithmetic (of key biases, for example) stay below this fraction of the largest
# gradient in float64.
ZERO = 1e-12
# Factor on the tolerance of updated weights: AdamW moves a weight by the full rate even if its gradient is as small as
# its rounding error, in either direction.
MOVEMENT_FACTOR = 100
DIRECTIONS = 2
DIFFERENCE_STEP = 1e-5  # central differences: truncation error about 1e-10, rounding error about 1e-11 in float64
# Errors of a gradient are relative to its norm, or to this fraction of the largest norm if that is more.
NORM_FLOOR = 1e-3


def against_oracle(case: AnyCase, steps: int, tolerance: float, seed: int) -> Comparison:
    """Compare the layers of the network itself, and gradients and updates of a small network with the same options.

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
    return Comparison(case.name, ORACLE, sections)


def gradient_section(case: AnyCase, tolerance: float, seed: int) -> Section:
    """Compare directional derivatives of the loss, along random directions in each parameter tensor.

    A direction moves every element of a tensor by plus or minus DIFFERENCE_STEP. The derivative is therefore the
    product of the gradient and a vector of random signs. It has the magnitude of the gradient's norm, and an error in
    any element changes it.

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
    """Compare layers, all gradients and updates with those of the original code; this changes the case's weights.

    Args:
        case: the network, its weights and a batch.
        original: the original implementation.
        steps: number of optimizer updates.
        tolerance: upper limit of relative differences.
        reference: checkout of the original; unused for an installed package.
        python: interpreter for the original code; empty for the running one.

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
    return Comparison(case.name, original.title, sections, versions)


def _gradients(ours: Arrays, answer: Message, tolerance: float) -> list[Row]:
    """Compare the gradient of every parameter that either side trains; the side that does not train it counts as 0."""
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
    """Compare the losses of all updates, and the trained weights relative to the distance that training moved them."""
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
