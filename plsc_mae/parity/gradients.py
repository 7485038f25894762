"""Comparison of our gradients with finite differences of the oracle's loss; the oracle has no backward pass."""

from __future__ import annotations

import numpy as np

from plsc_mae.parity.cases import AnyCase
from plsc_mae.parity.compare import Row, Section

DIRECTIONS = 2
STEP = 1e-5  # truncation error of order STEP^2, rounding error of order 1e-16 / STEP in float64
FLOOR = 1e-3  # differences are divided by the gradient's norm, or by this fraction of the largest norm if that is more


def gradient_section(case: AnyCase, tolerance: float, seed: int) -> Section:
    """Compare directional derivatives of the loss, along random directions in each parameter tensor.

    A direction moves every element of a tensor by plus or minus STEP. The derivative is therefore the product of the
    gradient and a vector of random signs. It has the magnitude of the gradient's norm, and an error in any element
    changes it.

    Args:
        case: a small network; the oracle runs 2 * DIRECTIONS times per tensor.
        tolerance: upper limit of the relative difference.
        seed: seed of the directions.
    """
    rng = np.random.default_rng(seed)
    case.backward()
    gradients = case.gradients()
    parameters, objective = case.parameters(), case.objective()
    floor = FLOOR * max(float(np.linalg.norm(gradient)) for gradient in gradients.values())
    rows = []
    for name, gradient in gradients.items():
        errors = []
        for _ in range(DIRECTIONS):
            signs = rng.choice([-1.0, 1.0], gradient.shape)
            ahead = objective({**parameters, name: parameters[name] + STEP * signs})
            behind = objective({**parameters, name: parameters[name] - STEP * signs})
            slope = (ahead - behind) / (2 * STEP)
            errors.append(abs(slope - float((gradient.astype(np.float64) * signs).sum())))
        norm = float(np.linalg.norm(gradient))
        rows.append(Row(name, max(errors), float(np.mean(errors)), max(norm, floor), tolerance))
    note = (
        f"Gradients of a small network with the same options ({len(rows)} tensors). Each tensor is checked along "
        f"{DIRECTIONS} random directions of signs: our derivative against central differences of the oracle's loss "
        f"(step {STEP:g}). Differences are relative to the norm of the gradient."
    )
    return Section("gradients", note, rows)
