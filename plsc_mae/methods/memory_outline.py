"""The outline of a training pass, from which `plsc-mae plan` estimates memory and communication.

A Task lists its transformer blocks with their numbers of tokens, and the bytes of other large tensors. Small tensors,
such as masks and indices, are left out. `plan/activations.py` has the formula for blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paddle import nn

FLOAT32 = 4  # bytes per number


class Stack(NamedTuple):
    """Consecutive transformer blocks with the same numbers of tokens.

    Attributes:
        blocks: the blocks, in the order of the forward pass.
        queries: number of tokens per image whose outputs a block computes.
        keys: number of tokens per image to which these attend.
        gradient: whether a backward pass follows.
        biased: whether the caller adds a bias to the attention logits, which rules out flash attention.
    """

    blocks: Sequence[nn.Layer]
    queries: int
    keys: int
    gradient: bool = True
    biased: bool = False


class MemoryOutline(NamedTuple):
    """The tensors of a training pass that determine its memory; sizes are in bytes for a whole batch.

    Attributes:
        stacks: stacks of transformer blocks in the order of the forward pass.
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
