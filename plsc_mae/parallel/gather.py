"""Gathering of sharded tensors in process 0 one by one, so that no process ever holds all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.parallel import activity
from plsc_mae.parallel.tensor import Shard
from plsc_mae.parallel.world import World


class Part(NamedTuple):
    """Description of the part of a tensor that process number `process` holds; `shard` is None for a whole tensor."""

    process: int
    shape: tuple[int, ...]
    dtype: str
    shard: Shard | None


class Holdings(NamedTuple):
    """Tensors of a checkpoint section that one process holds.

    Attributes:
        tensors: tensors by key.
        shards: shards of those tensors that are parts of a larger one, by key.
    """

    tensors: Mapping[str, Tensor]
    shards: Mapping[str, Shard]


class Collection:
    """Whole tensors by key, assembled in process 0 from the parts in all processes.

    Process 0 iterates over `items` while every other process calls `serve`. If several processes hold the same part,
    the first of them sends it.

    Args:
        mine: tensors of this process.
        world: processes of the run; all of them must create the collection.
        scattered: whether tensors may be missing in process 0; if not, nothing is exchanged.
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
        """Exchange the descriptions of all parts; all processes must call.

        The first process that holds a part becomes its source.
        """
        gathered: list[tuple[int, dict[str, list[Part]]]] = []
        paddle.distributed.all_gather_object(gathered, (self.world.tensor.rank, self.parts))
        found: dict[str, dict[int, Part]] = {}
        for member, parts in gathered:
            for key, (part,) in parts.items():
                found.setdefault(key, {}).setdefault(0 if part.shard is None else member, part)
        self.parts = {key: [part for _, part in sorted(parts.items())] for key, parts in found.items()}

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (key, whole array) in process 0, while the others call `serve`."""
        for key, parts in self.parts.items():
            arrays = [self._exchanged(key, part).numpy() for part in parts]
            shard = parts[0].shard
            yield key, arrays[0] if shard is None else shard.join(arrays)

    def serve(self) -> None:
        """Take part in the broadcasts that `items` needs, in the same order; called in every process but 0."""
        for key, parts in self.parts.items():
            for part in parts:
                self._exchanged(key, part)

    def _exchanged(self, key: str, part: Part) -> Tensor:
        """Return a part, which its source has broadcast unless that is process 0; all processes must call.

        A message to process 0 alone would break later collectives, because gloo numbers the messages of a group, and
        the other processes would miss a number (Paddle 3.3.1).
        """
        activity.tick()
        here = part.process == self.world.process
        tensor = self.mine.tensors[key] if here else paddle.empty(part.shape, dtype=part.dtype)
        if part.process == 0:
            return tensor
        if not self.world.is_gpu:
            self.world.barrier()  # writing the previous part can take process 0 longer than gloo's timeout
        tensor = tensor.contiguous()
        # Some accumulators are in host memory even on GPU.
        tensor = tensor.cuda() if self.world.is_gpu else tensor
        paddle.distributed.broadcast(tensor, src=part.process)
        return tensor
