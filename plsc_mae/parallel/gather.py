"""Whole tensors out of what processes share, one after the other in process 0: nobody ever holds them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.parallel.tensor import Shard
from plsc_mae.parallel.world import World


class Part(NamedTuple):
    """What one process has of a tensor."""

    process: int
    shape: tuple[int, ...]
    dtype: str
    shard: Shard | None


class Holdings(NamedTuple):
    """What one process has of the tensors of a section.

    Attributes:
        tensors: by key.
        shards: of those that are not whole.
    """

    tensors: Mapping[str, Tensor]
    shards: Mapping[str, Shard]


class Collection:
    """The whole tensors of all processes together, by key.

    Process 0 iterates over `items`, and every other process calls `serve`. Of several that have the same part, the
    first one gives it.

    Args:
        mine: what this process has.
        world: the processes of the run; all of them must make a collection of the same kind.
        scattered: whether process 0 may lack something; if not, nothing is exchanged.
    """

    def __init__(self, mine: Holdings, world: World, *, scattered: bool) -> None:
        self.mine, self.world = mine, world
        self.parts: dict[str, list[Part]] = {}
        if scattered or world.is_main:
            self.parts = {key: [self._describe(key)] for key in mine.tensors}
        if scattered:
            self._exchange()

    def _describe(self, key: str) -> Part:
        tensor = self.mine.tensors[key]
        shard = self.mine.shards.get(key)
        dtype = str(tensor.dtype).rpartition(".")[2]
        return Part(self.world.process, tuple(tensor.shape), dtype, None if shard is None else shard.without_group())

    def _exchange(self) -> None:
        """Learn who has what; the first process that has a part of a tensor is its source."""
        everyones: list[tuple[int, dict[str, list[Part]]]] = []
        paddle.distributed.all_gather_object(everyones, (self.world.tensor.rank, self.parts))
        found: dict[str, dict[int, Part]] = {}
        for member, parts in everyones:
            for key, (part,) in parts.items():
                found.setdefault(key, {}).setdefault(0 if part.shard is None else member, part)
        self.parts = {key: [part for _, part in sorted(parts.items())] for key, parts in found.items()}

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every whole tensor, in process 0; the others must call `serve`."""
        for key, parts in self.parts.items():
            arrays = [self._exchanged(key, part).numpy() for part in parts]
            shard = parts[0].shard
            yield key, arrays[0] if shard is None else shard.join(arrays)

    def serve(self) -> None:
        """Give what this process is the source of, in the order in which process 0 asks."""
        for key, parts in self.parts.items():
            for part in parts:
                self._exchanged(key, part)

    def _exchanged(self, key: str, part: Part) -> Tensor:
        """A part that process 0 has, or that its source tells all.

        Not sent to process 0 alone: gloo numbers the messages of a group, and processes that are left out would lose
        count (Paddle 3.3.1).
        """
        here = part.process == self.world.process
        tensor = self.mine.tensors[key] if here else paddle.empty(part.shape, dtype=part.dtype)
        if part.process == 0:
            return tensor
        if not self.world.is_gpu:
            self.world.barrier()  # process 0 may still be writing the one before, longer than gloo waits
        tensor = tensor.contiguous()
        # Some accumulators are in host memory also where the device is a GPU.
        tensor = tensor.cuda() if self.world.is_gpu else tensor
        paddle.distributed.broadcast(tensor, src=part.process)
        return tensor
