"""Comparison of our optimizer updates with the oracle's AdamW and learning-rate schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plsc_mae.config.training import UpdateScheduleOptions
from plsc_mae.optim import build_optimizer
from plsc_mae.parity.cases import AnyCase
from plsc_mae.parity.compare import Arrays, Section, difference, differences
from plsc_mae.parity.oracle.training import AdamW

PEAK_RATE = 1e-3
WARMUP = 1  # updates; the first update has rate 0 and only fills the moments


def update_section(case: AnyCase, steps: int, tolerance: float) -> Section:
    """Train the network of `case` for `steps` updates and pass its gradients to the oracle's AdamW.

    Return the comparison of learning rates, trained weights and the loss after the last update. The weights of `case`
    change.
    """
    rates, expected = our_rates(case, steps), oracle_rates(case, steps)
    config = case.config
    undecayed = case.undecayed.get(config.method, ())
    optimizer = AdamW(case.parameters(), undecayed, config.opt_betas, config.opt_eps, config.weight_decay)

    def update_oracle(update: int, gradients: Arrays) -> None:
        optimizer.step({name: g.astype(np.float64) for name, g in gradients.items()}, expected[update])

    train(case, rates, update_oracle)
    ours, trained = case.parameters(), list(case.gradients())
    rows = [difference("learning rates", np.array(rates), np.array(expected), tolerance)]
    rows += differences(ours, {name: optimizer.parameters[name] for name in trained}, tolerance)
    loss = np.array(case.oracle(optimizer.parameters)["loss"])
    rows.append(difference("loss after the updates", np.array(case.backward()), loss, tolerance))
    note = (
        f"{steps} updates of the same small network by our AdamW and schedule (warm-up {WARMUP} update, peak rate "
        f"{PEAK_RATE:g}), against the oracle's AdamW and schedule with our gradients as input."
    )
    return Section("updates", note, rows)


def our_rates(case: AnyCase, steps: int) -> list[float]:
    """Return our schedule's learning rates for the first `steps` updates of a run with one update per epoch."""
    run: dict[str, Any] = {"epochs": steps + WARMUP, "warmup_epochs": float(WARMUP)}
    if isinstance(case.config, UpdateScheduleOptions):
        run["warmup_steps"] = -1
    schedule = case.task.schedule(dataclasses.replace(case.config, **run), PEAK_RATE, 1)
    return [schedule(float(update), update).lr for update in range(steps)]


def oracle_rates(case: AnyCase, steps: int) -> list[float]:
    """Return the oracle's learning rates for the run of `our_rates`."""
    return [case.rate(update, updates=steps + WARMUP, warmup=WARMUP, peak=PEAK_RATE) for update in range(steps)]


def train(case: AnyCase, rates: Sequence[float], watch: Callable[[int, Arrays], None] | None = None) -> list[float]:
    """Train the network of a case with our AdamW and the weight decay of its options, one update per rate.

    Args:
        case: the network and its batch; the weights change.
        rates: learning rate of each update.
        watch: called before each update with its zero-based index and the gradients.

    Returns:
        The loss before each update.
    """
    config = case.config
    groups = case.task.param_groups(config.weight_decay)
    optimizer = build_optimizer("adamw", groups, betas=config.opt_betas, eps=config.opt_eps, momentum=config.momentum)
    losses = []
    for update, rate in enumerate(rates):
        optimizer.set_lr(rate)
        losses.append(case.backward())
        if watch is not None:
            watch(update, case.gradients())
        optimizer.step()
    return losses
