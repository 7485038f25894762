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
    """Consecutive transformer blocks with the same numbers of tokens."""

    blocks: Sequence[nn.Layer]  # the blocks, in the order of the forward pass
    queries: int  # number of tokens per image whose outputs a block computes
    keys: int  # number of tokens per image to which these attend
    gradient: bool = True  # whether a backward pass follows
    biased: bool = False  # whether the caller adds a bias to the attention logits, which rules out flash attention


class MemoryOutline(NamedTuple):
    """The tensors of a training pass that determine its memory; sizes are in bytes for a whole batch."""

    stacks: tuple[Stack, ...]  # stacks of transformer blocks in the order of the forward pass
    batch: int  # the batch on the device
    prepare: int = 0  # temporary tensors of `Task.prepare`
    kept: int = 0  # tensors outside the stacks that autograd keeps for the backward pass, such as logits
    working: int = 0  # temporary tensors outside the stacks at the end of the forward pass, such as pixels
