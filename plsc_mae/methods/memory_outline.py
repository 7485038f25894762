"""The outline of a task's training pass from which `plsc-mae plan` estimates memory and communication.

A task lists its transformer blocks with their numbers of tokens, and the bytes of the large tensors beside them. The
formula for blocks is in `plan/activations.py`; small tensors, such as masks and indices, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paddle import nn

FLOAT32 = 4  # bytes of a number


class Stack(NamedTuple):
    """Consecutive transformer blocks over the same numbers of tokens.

    Attributes:
        blocks: the blocks, in the order of the forward pass.
        queries: tokens of an image whose outputs a block computes.
        keys: tokens of an image that they attend to.
        gradient: whether a backward pass follows.
        biased: whether the caller adds a bias to the attention logits, which rules out flash attention.
    """

    blocks: Sequence[nn.Layer]
    queries: int
    keys: int
    gradient: bool = True
    biased: bool = False


class MemoryOutline(NamedTuple):
    """A training pass as far as it determines memory; sizes are bytes of a whole batch.

    Attributes:
        stacks: transformer stacks in the order of the forward pass.
        batch: the batch on the device.
        prepare: temporary tensors of `Task.prepare`.
        kept: tensors outside the stacks that autograd keeps for the backward pass, such as logits.
        working: temporary tensors outside the stacks at the end of the forward pass, such as pixels.
    """

    stacks: tuple[Stack, ...]
    batch: int
    prepare: int = 0
    kept: int = 0
    working: int = 0
