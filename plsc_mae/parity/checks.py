"""Whole comparisons of a network: with the oracle, and with the code of an original."""

from __future__ import annotations

import numpy as np

from plsc_mae import weights
from plsc_mae.parity.build_cases import small_case
from plsc_mae.parity.cases import AnyCase
from plsc_mae.parity.compare import Arrays, Comparison, Row, Section, difference, differences
from plsc_mae.parity.gradients import gradient_section
from plsc_mae.parity.originals import Original, ask
from plsc_mae.parity.references.exchange import Message
from plsc_mae.parity.updates import WARMUP, our_rates, train, update_section

ORACLE = "the float64 oracle"
# Gradients that are zero in exact arithmetic, as those of key biases, are below this share of the largest one when
# float64 computes them.
ZERO = 1e-12
# Where a gradient is as small as its own rounding, AdamW moves a weight by the full rate either way.
MOVEMENT_FACTOR = 100


def against_oracle(case: AnyCase, steps: int, tolerance: float, seed: int) -> Comparison:
    """Compare layers of the network itself, gradients and updates of a small one like it."""
    layers = differences(case.layers(), case.oracle(case.parameters()), tolerance)
    note = f"Outputs of every layer and the loss, for {len(case.batch['images'])} images."
    small = small_case(case.config, seed)
    sections = [
        Section("forward", note, layers, in_order=True),
        gradient_section(small, tolerance, seed),
        update_section(small, steps, tolerance),
    ]
    return Comparison(case.name, ORACLE, sections)


def against_original(
    case: AnyCase, original: Original, steps: int, tolerance: float, reference: str, python: str
) -> Comparison:
    """Compare layers, all gradients and updates with the original's own code; the case's network is trained by it.

    Raises:
        ConfigError: the original's code does not run.
    """
    rates = our_rates(case, steps)
    answer = ask(original, case, rates, reference, python)
    ours = case.layers()
    theirs = {name: value for name, value in answer.groups["layers"].items() if name in ours}
    case.backward()
    gradients = weights.export(case.model, original.dialect, case.gradients())
    start = weights.export(case.model, original.dialect)
    losses = np.array(train(case, rates))
    trained = weights.export(case.model, original.dialect)

    versions = ", ".join(f"{name} {version}" for name, version in answer.settings["versions"].items())
    note = f"Outputs of every layer and the loss, for {len(case.batch['images'])} images; the original in float64."
    sections = [
        Section("forward", note, differences(ours, theirs, tolerance), in_order=True),
        Section(
            "gradients", "Of all parameters, under the original's names.", _gradients(gradients, answer, tolerance)
        ),
        _updates(start, trained, losses, answer, tolerance),
    ]
    return Comparison(case.name, original.title, sections, versions)


def _gradients(ours: Arrays, answer: Message, tolerance: float) -> list[Row]:
    """Every parameter that either of the two trains; what only one trains has a gradient of zero in the other."""
    theirs = answer.groups["gradients"]
    largest = _largest(theirs)
    rows = []
    for name in dict.fromkeys([*theirs, *ours]):
        absent = np.zeros((theirs if name in theirs else ours)[name].shape)
        mine, its = ours.get(name, absent), theirs.get(name, absent)
        reach = float(np.abs(its).max())
        rows.append(difference(name, mine, its, tolerance, reach if reach > ZERO * largest else largest))
    return rows


def _updates(start: Arrays, trained: Arrays, losses: np.ndarray, answer: Message, tolerance: float) -> Section:
    """The losses on the way, and how far weights moved apart, as a share of how far they moved."""
    theirs, gradients = answer.groups["trained"], answer.groups["gradients"]
    least = ZERO * _largest(gradients)
    rows = [difference("losses", losses, answer.groups["losses"]["losses"], tolerance)]
    for name, gradient in gradients.items():
        moving = np.abs(gradient) > least
        movement = float(np.linalg.norm((theirs[name] - start[name])[moving]))
        apart = (trained[name].astype(np.float64) - theirs[name])[moving]
        if movement:
            share = float(np.linalg.norm(apart)), float(np.abs(apart).mean())
            rows.append(Row(name, *share, movement, MOVEMENT_FACTOR * tolerance))
    note = (
        f"{len(losses)} updates on one batch, AdamW with a warm-up of {WARMUP}: losses before each, then the distance "
        "of weights from the original's as a share of the way they went (L2). Weights whose gradient is zero in exact "
        "arithmetic are left out: AdamW makes full steps of their rounding."
    )
    return Section("updates", note, rows)


def _largest(arrays: Arrays) -> float:
    return max(float(np.abs(value).max()) for value in arrays.values())
