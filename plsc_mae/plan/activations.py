"""Memory of a transformer block in a training pass, after Korthikanti et al. 2022 (section 4).

Between the forward and the backward pass, autograd keeps the inputs of a block's two norms in float32. In the precision
of matrix products it keeps the inputs of the linear layers, q, k, v, the hidden columns before GELU and, without flash
attention, the softmax weights, in mixed precision also in float32. In float32 with inner width D and hidden width 4 D
that is 64 D bytes per token and 4 bytes per softmax weight. Layer scale and stochastic depth each keep one output of
attention and one of the MLP. Dropout is counted for the softmax weights only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paddle import nn

from plsc_mae.methods.memory_outline import FLOAT32, Stack
from plsc_mae.models.attention import uses_flash
from plsc_mae.models.recompute import Recomputable
from plsc_mae.models.tensor_split import HEADS, split_layers
from plsc_mae.parallel.tensor import share_sizes

HALF = 2  # bytes of a float16 or bfloat16


class Conditions(NamedTuple):
    """Conditions under which a process runs a forward and backward pass."""

    batch: int  # number of images in one pass
    low: int = FLOAT32  # bytes per number in matrix products, 2 in mixed precision and 4 otherwise
    # compute capability of the GPUs, which decides on the flash kernel; (0, 0) rules the kernel out
    capability: tuple[int, int] = (0, 0)
    tensor_parallel: int = 1  # number of processes that share the heads and hidden columns of every block
    # whether trained blocks that are `Recomputable` keep only their input, from which
    # the backward pass computes them again
    recompute: bool = False


class BlockMemory(NamedTuple):
    """Memory of one block in bytes, and the number of its trained parameters."""

    kept: int  # bytes kept from the forward to the backward pass
    # largest number of further bytes in use during the block's backward pass, or during
    # its forward pass if there is no backward pass
    working: int
    entry: int  # bytes of the block's input, the residual stream in float32
    # bytes that the block all-reduces over tensor-parallel processes in a forward pass, and again in a backward pass
    summed: int
    trained: int  # number of the block's trained parameters that the process holds; 0 without a backward pass
    backward: bool  # whether a backward pass goes through the block
    flash: bool  # whether its attention runs in the flash kernel, which keeps no softmax weights


class _Branch(NamedTuple):
    """Bytes of attention or an MLP with its norm: kept for the backward pass, and working memory of each pass."""

    kept: int
    forward: int
    backward: int
    flash: bool = False


def block_memory(block: nn.Layer, stack: Stack, conditions: Conditions) -> BlockMemory:
    """Return the estimated memory of `block`, one of `stack`, from its layers that declare a `tensor_split`.

    The placeholder of a block of another pipeline stage has no such layers and needs no memory.
    """
    branches, width = [], 0
    for layer, split in split_layers(block):
        if split.rows:
            columns, width = getattr(layer, split.rows).weight.shape
            branch = _attention if split.unit is HEADS else _mlp
            branches.append(branch(layer, columns // conditions.tensor_parallel, width, stack, conditions))
    entry = FLOAT32 * conditions.batch * stack.keys * width
    output = conditions.batch * stack.queries * width
    summed = len(branches) * conditions.low * output if conditions.tensor_parallel > 1 else 0
    sizes = share_sizes(block, conditions.tensor_parallel)
    trained = sum(sizes[id(param)] for param in block.parameters() if not param.stop_gradient)
    flash = any(branch.flash for branch in branches)
    if not (stack.gradient and trained):
        working = max((branch.kept + branch.forward for branch in branches), default=0)
        return BlockMemory(0, working, entry, summed, 0, backward=False, flash=flash)
    kept = sum(branch.kept for branch in branches) + _scalings(block) * FLOAT32 * output
    working = _backward_working(branches)
    if conditions.recompute and isinstance(block, Recomputable):
        kept, working = entry, kept + working
    return BlockMemory(kept, working, entry, summed, trained, backward=True, flash=flash)


def _backward_working(branches: Sequence[_Branch]) -> int:
    """Return the peak working memory of a block's backward pass in bytes, beyond what the block keeps.

    The branches run in reverse order, and each frees what it kept when it ends.
    """
    working, released = 0, 0
    for branch in reversed(branches):
        working = max(working, branch.backward - released)
        released += branch.kept
    return working


def _attention(layer: nn.Layer, inner: int, width: int, stack: Stack, conditions: Conditions) -> _Branch:
    batch, low, queries, keys = conditions.batch, conditions.low, stack.queries, stack.keys
    normed = keys + (queries if queries != keys else 0)
    projected = low * 2 * (queries + keys) * inner  # k and v; q and the output
    tokens = (FLOAT32 + low) * normed * width + projected
    dropped = getattr(layer, "attn_drop_rate", 0) > 0
    biased = stack.biased or getattr(layer, "rel_pos_bias", None) is not None
    heads = layer.num_heads // conditions.tensor_parallel
    if uses_flash(inner // heads, conditions.capability, half=low == HALF, plain=biased or dropped):
        return _Branch(batch * tokens, 0, batch * projected, flash=True)
    weights = batch * heads * queries * keys
    copies = FLOAT32 + (low if low < FLOAT32 else 0) + (1 + low if dropped else 0)
    logits = FLOAT32 * weights * (2 if biased else 1)
    return _Branch(batch * tokens + copies * weights, logits, 2 * FLOAT32 * weights)


def _mlp(_layer: nn.Layer, hidden: int, width: int, stack: Stack, conditions: Conditions) -> _Branch:
    rows, low = conditions.batch * stack.queries, conditions.low
    gradients = rows * (low * hidden + 2 * FLOAT32 * width)
    uncast = FLOAT32 * rows * width if low < FLOAT32 else 0  # the norm's output before mixed precision casts it
    return _Branch(rows * ((FLOAT32 + low) * width + 2 * low * hidden), gradients // 2 + uncast, gradients)


def _scalings(block: nn.Layer) -> int:
    """Return the number of scaled outputs that autograd keeps: two with layer scale, and two with stochastic depth."""
    drop_path = getattr(block, "drop_path", None)
    scaled = getattr(block, "gamma_1", None) is not None
    return 2 * (scaled + (drop_path is not None and drop_path.rate > 0))
