"""Our gradients against differences of the oracle's loss, which knows no gradients."""

from __future__ import annotations

import numpy as np

from plsc_mae.parity.cases import AnyCase
from plsc_mae.parity.compare import Row, Section

DIRECTIONS = 2
STEP = 1e-5  # error of the quotient: of order STEP^2, and float64's 1e-16 / STEP
FLOOR = 1e-3  # a gradient is held against its own norm, or against this share of the largest one where that is more


def gradient_section(case: AnyCase, tolerance: float, seed: int) -> Section:
    """Compare slopes along random directions in each parameter tensor.

    All elements of a tensor move by the same amount up or down, so the slope is the gradient's product with a vector of
    signs: its size is that of the gradient's norm, and an error anywhere in the tensor shows.
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
        f"On a small network of this kind ({len(rows)} tensors): slopes along {DIRECTIONS} random directions of signs, "
        f"by central differences of the oracle's loss with step {STEP:g}, against our gradient; relative to its norm."
    )
    return Section("gradients", note, rows)
