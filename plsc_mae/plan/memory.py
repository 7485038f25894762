"""Peak memory of a process in an optimizer step.

Weights, optimizer state and the batch are in memory all the time. During the backward pass, each block adds gradients
and releases activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from paddle import nn

from plsc_mae.methods.memory_outline import FLOAT32, MemoryOutline
from plsc_mae.parallel.tensor import share_sizes
from plsc_mae.plan.activations import HALF, BlockMemory, Conditions, block_memory


class Parameters(NamedTuple):
    """Parameter counts of a process."""

    trained: int  # trained parameters
    frozen: int = 0  # frozen parameters
    matrices: int = 0  # trained parameters with two axes or more, which mixed precision copies in 16 bits
    largest: int = 0  # elements of the largest trained tensor, which determine the working memory of an update

    @classmethod
    def of(cls, network: nn.Layer, tensor_parallel: int) -> Parameters:
        """Return the counts of the parameters of `network` that each of `tensor_parallel` processes holds."""
        sizes, params = share_sizes(network, tensor_parallel), network.parameters()
        trained = [param for param in params if not param.stop_gradient]
        return cls(
            sum(sizes[id(param)] for param in trained),
            sum(sizes[id(param)] for param in params if param.stop_gradient),
            sum(sizes[id(param)] for param in trained if param.ndim > 1),
            max((sizes[id(param)] for param in trained), default=0),
        )


class States(NamedTuple):
    """Bytes that an unsharded run keeps for every trained parameter, and the processes that divide them."""

    weight: int = FLOAT32  # bytes of a trained weight; frozen ones are float32
    gradient: int = FLOAT32  # bytes of its gradient
    optimizer: int = 2 * FLOAT32  # bytes of its optimizer state
    master: int = 0  # bytes of its float32 copy beside a 16-bit weight
    average: int = 0  # bytes of its moving average
    # 1 divides optimizer state and master weights among `sharded` processes, 2 also
    # gradients, 3 also weights; 0 divides nothing
    sharding_stage: int = 0
    sharded: int = 1  # number of processes that divide states
    # number of processes that exchange gradients by Paddle's DataParallel, which never releases the gradients and holds
    # a second, fused copy; 1 on CPUs, which do not use DataParallel
    data_parallel: int = 1
    accumulates: bool = False  # whether the gradients of several passes are added up

    def share(self, stage: int, size: int) -> int:
        """Return the bytes that one process keeps of a total `size` that ZeRO divides in `stage` and higher stages."""
        return -(-size // self.sharded) if self.sharding_stage >= stage else size


class Usage(NamedTuple):
    """Bytes in use at one moment of an optimizer step, by purpose; `moment` names that moment."""

    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    exchange: int = 0  # copies of gradients for other processes
    batch: int = 0
    activations: int = 0  # kept for the backward pass
    working: int = 0  # temporary tensors
    moment: str = ""

    @property
    def total(self) -> int:
        """Bytes of all purposes together."""
        return sum(self[:-1])


class PassMemory(NamedTuple):
    """Memory of one forward and backward pass, without the states of parameters."""

    outline: MemoryOutline  # the task's outline of the pass
    blocks: tuple[BlockMemory, ...]  # memory of the transformer blocks, in the order of the forward pass
    kept: int  # bytes kept for the backward pass outside of blocks, 16-bit copies of weights included

    @classmethod
    def of(cls, outline: MemoryOutline, parameters: Parameters, conditions: Conditions, *, cast: bool) -> PassMemory:
        """Return the memory of a pass.

        With `cast` and without recompute, autograd keeps 16-bit copies of float32 matrices.
        """
        blocks = [block_memory(block, stack, conditions) for stack in outline.stacks for block in stack.blocks]
        copies = HALF * parameters.matrices if cast and not conditions.recompute else 0
        return cls(outline, tuple(blocks), outline.kept + copies)


def peak(memory: PassMemory, parameters: Parameters, states: States, in_flight: int = 1) -> Usage:
    """Return the memory in use at the moment of an optimizer step that needs the most.

    Args:
        memory: memory of one pass.
        parameters: numbers of parameters that the process holds.
        states: bytes per parameter.
        in_flight: number of passes whose activations are kept at once; 1 without a pipeline.
    """
    return max(moments(memory, parameters, states, in_flight), key=lambda usage: usage.total)


def moments(memory: PassMemory, parameters: Parameters, states: States, in_flight: int = 1) -> Iterator[Usage]:
    """Yield the memory in use at each moment of an optimizer step; the arguments are those of `peak`.

    The moments are the preparation of the batch, the end of the forward pass, the backward pass of each block that has
    one, from the last to the first, and the update. Gradients that are not in memory all the time count from the
    backward pass of their block on, those of parameters outside of blocks from the first of these passes on.
    """
    trained, outline = parameters.trained, memory.outline
    gradients = states.share(2, states.gradient * trained)
    fixed = Usage(
        weights=states.share(3, states.weight * trained) + FLOAT32 * parameters.frozen,
        optimizer=states.share(1, (states.optimizer + states.master) * trained) + states.average * trained,
        gradients=gradients if states.accumulates or states.data_parallel > 1 else 0,
        exchange=states.gradient * trained if states.data_parallel > 1 and states.sharding_stage < 2 else 0,
        batch=outline.batch,
    )
    yield fixed._replace(working=outline.prepare, moment="preparing the batch")
    kept = memory.kept + sum(block.kept for block in memory.blocks)
    others = (in_flight - 1) * kept
    working = max([outline.working, *(block.working for block in memory.blocks)])
    yield fixed._replace(activations=others + kept, working=working, moment="end of the forward pass")
    done = trained - sum(block.trained for block in memory.blocks)
    for block in reversed(memory.blocks):
        if block.backward:
            done += block.trained
            known = max(fixed.gradients, states.share(2, states.gradient * done))
            yield fixed._replace(
                gradients=known, activations=others + kept, working=block.working, moment="backward pass"
            )
            kept -= block.kept
    yield fixed._replace(gradients=gradients, working=FLOAT32 * parameters.largest, moment="update of the weights")
