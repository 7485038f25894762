"""The memory of a process in an optimizer step: a walk through its forward and backward passes and its update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from plsc_mae.plan.activation_memory import FLOAT32, Part
from plsc_mae.plan.networks import Anatomy


class States(NamedTuple):
    """What a process keeps of every parameter beside activations.

    Attributes:
        weight: bytes of a trained weight; frozen ones are float32.
        gradient: bytes of its gradient.
        optimizer: bytes of its optimizer state.
        master: bytes of its float32 copy beside a weight of 16 bits.
        average: bytes of its moving average.
        sharding_stage: what `sharded` processes share out: 1 optimizer state and master weights, 2 gradients too,
            3 weights too.
        sharded: how many processes share it out.
        data_parallel: processes that exchange gradients. Paddle's DataParallel never lets go of the gradients, and has
            a second copy of them, fused.
        accumulates: whether gradients of several iterations are added up.
    """

    weight: int = FLOAT32
    gradient: int = FLOAT32
    optimizer: int = 2 * FLOAT32
    master: int = 0
    average: int = 0
    sharding_stage: int = 0
    sharded: int = 1
    data_parallel: int = 1
    accumulates: bool = False


class Usage(NamedTuple):
    """Bytes in use at a moment, by what they are for."""

    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    exchange: int = 0  # copies of gradients for other processes
    batch: int = 0
    activations: int = 0  # kept for the backward pass
    working: int = 0  # in use for a moment beside them
    moment: str = ""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self[:-1])


def peak(anatomy: Anatomy, states: States, *, recompute: bool = False, in_flight: int = 1) -> Usage:
    """The moment of an optimizer step at which a process uses most.

    Args:
        anatomy: of one pass.
        states: bytes beside activations.
        recompute: whether blocks keep their input only and are computed again in the backward pass.
        in_flight: passes whose activations are kept at once, as pipelines have them.
    """
    return max(moments(anatomy, states, recompute=recompute, in_flight=in_flight), key=lambda usage: usage.total)


def moments(anatomy: Anatomy, states: States, *, recompute: bool = False, in_flight: int = 1) -> Iterator[Usage]:
    """The candidates for it: every step forward and backward, making targets, and the update."""
    parts, trained = anatomy.parts, sum(part.trained for part in anatomy.parts)
    fixed = _fixed(anatomy, states)
    gradients = _shared(states, 2, states.gradient * trained)
    stay = states.accumulates or states.data_parallel > 1
    before = fixed._replace(gradients=gradients if stay else 0, batch=anatomy.batch)
    yield before._replace(working=anatomy.preparing, moment="preparing the batch")
    kept = (in_flight - 1) * sum(_resting(part, recompute) for part in parts)
    for part in parts:
        start = kept
        for step in part.steps:
            working = step.forward + anatomy.during_forward
            yield before._replace(activations=kept, working=working, moment=f"forward, {part.name}")
            kept += step.kept
        kept = start + _resting(part, recompute)
    done = 0
    for part in reversed(parts):
        if not part.backward:
            continue
        kept -= _resting(part, recompute)
        done += part.trained
        known = before._replace(gradients=max(before.gradients, _shared(states, 2, states.gradient * done)))
        again = kept
        for step in part.steps if recompute and part.block else ():
            yield known._replace(activations=again, working=step.forward, moment=f"forward again, {part.name}")
            again += step.kept
        again = kept + part.kept
        for step in reversed(part.steps):
            working = step.backward - step.kept
            yield known._replace(activations=again, working=working, moment=f"backward, {part.name}")
            if not recompute:  # which holds all of a block until it is done with it
                again -= step.kept
    yield fixed._replace(
        gradients=gradients, batch=anatomy.batch, working=FLOAT32 * anatomy.largest, moment="update of the weights"
    )


def _resting(part: Part, recompute: bool) -> int:
    """Bytes that a part keeps while others work."""
    return min(part.kept, part.entry) if recompute and part.block else part.kept


def _fixed(anatomy: Anatomy, states: States) -> Usage:
    trained, frozen = (sum(getattr(part, kind) for part in anatomy.parts) for kind in ("trained", "frozen"))
    weights = _shared(states, 3, states.weight * trained) + FLOAT32 * (frozen + anatomy.apart)
    optimizer = _shared(states, 1, (states.optimizer + states.master) * trained) + states.average * trained
    fused = states.gradient * trained if states.data_parallel > 1 and states.sharding_stage < 2 else 0
    return Usage(weights=weights, optimizer=optimizer, exchange=fused)


def _shared(states: States, stage: int, total: int) -> int:
    """What is left of bytes that are shared out from a stage of sharding on."""
    return -(-total // states.sharded) if states.sharding_stage >= stage else total


def stages(parts: Sequence[Part], count: int) -> list[tuple[Part, ...]]:
    """Cut parts into pipeline stages whose blocks cost about the same; what is no block stays with its neighbor."""
    total, spent = sum(part.macs for part in parts), 0
    found: list[tuple[Part, ...]] = []
    current: list[Part] = []
    for part in parts:
        if part.block and len(found) < count - 1 and spent >= total * (len(found) + 1) / count:
            found.append(tuple(current))
            current = []
        current.append(part)
        spent += part.macs
    return [*found, tuple(current)]
