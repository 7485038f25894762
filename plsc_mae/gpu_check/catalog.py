"""The checks by name, in order, with their time limits. This file does not import the code that computes them."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """A check."""

    # time limit if all checks together have MINUTES minutes. The limit of the first
    # check of a process includes the start of the process.
    seconds: float
    purpose: str  # description for the user


MINUTES = 3.0  # for all checks, by default
CHECKS = {
    "kernels": Check(40, "does this wheel of Paddle have kernels for this chip?"),
    "copies": Check(20, "do non-blocking copies from pinned memory have the sums of their sources?"),
    "attention": Check(30, "does flash attention equal plain products, gradients too?"),
    "precision": Check(40, "are loss and gradient in mixed precision near those in float32?"),
    "speed": Check(70, "images/s and memory of the published runs, with their options"),
    "determinism": Check(50, "does a repeated update give the same bits, with fast and with deterministic kernels?"),
}
PROCESSES = (tuple(name for name in CHECKS if name != "determinism"), ("determinism",))  # checks that share a process
COLLECTIVES = "collectives"
COLLECTIVES_CHECK = Check(60, "are sums, broadcasts and other collectives exact, over all visible GPUs?")
