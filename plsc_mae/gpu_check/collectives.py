"""Check of collectives that training uses, some of them in several data types; all processes of a launch take part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae.gpu_check.results import Number, Result, failure, judged
from plsc_mae.parallel.group import Group
from plsc_mae.parallel.world import World

SUMMED = ("float32", "float64", "int64")
COMPARED = ("float64", "int64")
SENT = ("float32", "float64", "int64", "int32", "uint8", "bool")
SENT_ON_GPU = ("float16", "bfloat16")
ELEMENTS = 1000

Trial = Callable[[World], bool]


def check_collectives(world: World) -> Result:
    """Run collectives on values with known results; all processes must call, and all get the same outcome.

    If a collective raises an exception, its message is recorded as the result, and the next one runs.
    """
    numbers: dict[str, Number] = {}
    for name, trial in _trials(world):
        try:
            right = trial(world)
        except Exception as error:  # NCCL's and Paddle's errors have many types
            numbers[name] = failure(name, error).summary
        else:
            numbers[name] = "exact" if right else "wrong"
    wrong = [name for name, value in numbers.items() if value != "exact"]
    wrong_anywhere = int(world.largest([float(len(wrong))])[0])
    others = "" if wrong else f" in this process, {wrong_anywhere} wrong in another"
    backend = "NCCL" if world.is_gpu else "gloo"
    summary = f"{len(numbers) - len(wrong)} of {len(numbers)} collectives over {world.processes} processes are exact"
    summary += f" ({backend})" + (f"; wrong: {', '.join(wrong)}" if wrong else others if wrong_anywhere else "")
    return judged("collectives", good=wrong_anywhere == 0, summary=summary, numbers=numbers)


def _trials(world: World) -> Iterator[tuple[str, Trial]]:
    for dtype in SUMMED:
        yield f"sum {dtype}", partial(_sums, dtype=dtype)
    for dtype in COMPARED:
        yield f"max {dtype}", partial(_compares, dtype=dtype)
    for dtype in (*SENT, *(SENT_ON_GPU if world.is_gpu else ())):
        yield f"broadcast {dtype}", partial(_broadcasts, dtype=dtype)
    yield "gather objects", _gathers
    yield "send and receive", _passes_on
    yield "averaged gradients", _averages
    yield "barrier", _waits


def _pattern(dtype: str, rank: int) -> Tensor:
    """Return ELEMENTS small integers as `dtype`, which depend on the process and the position."""
    values = (np.arange(ELEMENTS) % 13 + rank) % 2 if dtype == "bool" else np.arange(ELEMENTS) % 64 + rank
    return paddle.to_tensor(values).astype(dtype)


def _equal(found: Tensor, expected: Tensor) -> bool:
    return bool((found.astype("float64") == expected.astype("float64")).all())


def _sums(world: World, dtype: str) -> bool:
    expected = sum(_pattern(dtype, rank).numpy() for rank in range(world.size))
    return _equal(world.sum(_pattern(dtype, world.rank)), paddle.to_tensor(expected))


def _compares(world: World, dtype: str) -> bool:
    values = _pattern(dtype, world.rank)
    paddle.distributed.all_reduce(values, op=paddle.distributed.ReduceOp.MAX)
    return _equal(values, _pattern(dtype, world.size - 1))


def _broadcasts(world: World, dtype: str) -> bool:
    last = world.size - 1
    return _equal(world.data.broadcast(_pattern(dtype, world.rank), last), _pattern(dtype, last))


def _gathers(world: World) -> bool:
    gathered: list[tuple[int, str]] = []
    paddle.distributed.all_gather_object(gathered, (world.rank, "x" * world.rank))
    return gathered == [(rank, "x" * rank) for rank in range(world.size)]


def _passes_on(world: World) -> bool:
    """Send numbers from the first process to the last, which returns False if it receives others."""
    pair = Group.of([0, world.size - 1], world.process, world.processes, on_gloo=not world.is_gpu)
    if pair.rank == 0:
        pair.send(_pattern("float32", 7), 1)
    elif pair.rank == 1:
        return _equal(pair.receive(paddle.zeros([ELEMENTS]), 0), _pattern("float32", 7))
    return True


def _averages(world: World) -> bool:
    layer = nn.Linear(4, 2)
    wrapped = world.wrap(layer)
    wrapped(paddle.full([1, 4], float(world.rank))).sum().backward()
    if not world.is_gpu:
        world.average_gradients(layer.parameters())
    return _equal(layer.weight.grad, paddle.full([4, 2], (world.size - 1) / 2))


def _waits(world: World) -> bool:
    world.barrier()
    return True
