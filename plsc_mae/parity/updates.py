"""Several optimizer updates of our network, and the same by the oracle's optimizer and schedule."""

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
WARMUP = 1  # of the updates; the first one then has rate 0 and only fills the moments


def update_section(case: AnyCase, steps: int, tolerance: float) -> Section:
    """Train a small network, and give its gradients to the oracle's AdamW; compare rates, weights and the last loss."""
    rates, expected = our_rates(case, steps), oracle_rates(case, steps)
    config = case.config
    spared = case.undecayed.get(config.method, ())
    optimizer = AdamW(case.parameters(), spared, config.opt_betas, config.opt_eps, config.weight_decay)

    def follow(update: int, gradients: Arrays) -> None:
        optimizer.step({name: g.astype(np.float64) for name, g in gradients.items()}, expected[update])

    train(case, rates, follow)
    ours, trained = case.parameters(), list(case.gradients())
    rows = [difference("learning rates", np.array(rates), np.array(expected), tolerance)]
    rows += differences(ours, {name: optimizer.parameters[name] for name in trained}, tolerance)
    loss = np.array(case.oracle(optimizer.parameters)["loss"])
    rows.append(difference("loss after the updates", np.array(case.backward()), loss, tolerance))
    note = (
        f"On the same small network: {steps} updates by our AdamW and schedule (warm-up {WARMUP} update, peak "
        f"{PEAK_RATE:g}), against the oracle's AdamW and schedule given our gradients."
    )
    return Section("updates", note, rows)


def our_rates(case: AnyCase, steps: int) -> list[float]:
    """Learning rates that our schedule gives to a run of so many updates, one per epoch."""
    run: dict[str, Any] = {"epochs": steps + WARMUP, "warmup_epochs": float(WARMUP)}
    if isinstance(case.config, UpdateScheduleOptions):
        run["warmup_steps"] = -1
    schedule = case.task.schedule(dataclasses.replace(case.config, **run), PEAK_RATE, 1)
    return [schedule(float(update), update).lr for update in range(steps)]


def oracle_rates(case: AnyCase, steps: int) -> list[float]:
    """Return the learning rates that the oracle gives to the same run."""
    return [case.rate(update, updates=steps + WARMUP, warmup=WARMUP, peak=PEAK_RATE) for update in range(steps)]


def train(case: AnyCase, rates: Sequence[float], watch: Callable[[int, Arrays], None] | None = None) -> list[float]:
    """Update the network once per rate, by AdamW with the recipe's decay; returns the losses before the updates.

    Args:
        case: what is trained.
        rates: learning rates.
        watch: told the number and the gradients of every update.
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
