"""Gathering of the tensors of all processes in process 0, a few at a time, so that it never holds all at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.parallel import activity
from plsc_mae.parallel.tensor import Shard
from plsc_mae.parallel.world import World

CHUNK_ELEMENTS = 1 << 24  # 64 MB in float32


class Part(NamedTuple):
    """Part of a tensor that one process holds."""

    process: int  # index of the process in the run
    shape: tuple[int, ...]  # shape of the part
    dtype: str  # name of its data type, such as "float32"
    shard: Shard | None  # description of the division that the part results from; None if the part is the whole tensor


class Holdings(NamedTuple):
    """Tensors of a checkpoint section that one process holds."""

    tensors: Mapping[str, Tensor]  # tensors by key
    # for each tensor that is a share of a larger one, the description of the division, by key
    shards: Mapping[str, Shard]


class Collection:
    """Whole tensors by key, assembled in process 0 from the parts in all processes.

    Process 0 iterates over `items` while every other process calls `serve`. If several processes hold the same part,
    the first of them sends it.

    Args:
        mine: tensors of this process.
        world: processes of the run; all of them must create the collection.
        scattered: whether process 0 may lack tensors or parts of them; if not, nothing is exchanged.
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
        """Yield (key, whole array) in process 0, while every other process calls `serve`."""
        for keys in self._chunks():
            for key, tensors in self._collect(keys):
                arrays = [tensor.numpy() for tensor in tensors]
                shard = self.parts[key][0].shard
                yield key, arrays[0] if shard is None else shard.join(arrays)

    def serve(self) -> None:
        """Take part in the broadcasts that `items` needs, in the same order; called in every process but 0."""
        for keys in self._chunks():
            self._collect(keys)

    def _chunks(self) -> Iterator[list[str]]:
        """Yield the keys in order, in lists of at most CHUNK_ELEMENTS elements or of a single larger tensor."""
        keys: list[str] = []
        size = 0
        for key, parts in self.parts.items():
            added = sum(math.prod(part.shape) for part in parts)
            if keys and size + added > CHUNK_ELEMENTS:
                yield keys
                keys, size = [], 0
            keys.append(key)
            size += added
        if keys:
            yield keys

    def _collect(self, keys: list[str]) -> list[tuple[str, list[Tensor]]]:
        """Return (key, parts) of several tensors; all processes must call.

        Process 0 writes between two calls, which can take longer than gloo's timeout, so the processes meet first. They
        meet once for many tensors, because a meeting at Paddle's store takes up to 0.1 s.
        """
        if not self.world.is_gpu and any(part.process for key in keys for part in self.parts[key]):
            self.world.barrier()
        return [(key, [self._exchanged(key, part) for part in self.parts[key]]) for key in keys]

    def _exchanged(self, key: str, part: Part) -> Tensor:
        """Broadcast a part from its source, unless that is process 0, and return the part; all processes must call.

        A message to process 0 alone would break later collectives, because gloo numbers the messages of a group, and
        the other processes would miss a number (Paddle 3.3.1).
        """
        activity.tick()
        here = part.process == self.world.process
        tensor = self.mine.tensors[key] if here else paddle.empty(part.shape, dtype=part.dtype)
        if part.process == 0:
            return tensor
        tensor = tensor.contiguous()
        # Some accumulators are in host memory even on GPU.
        tensor = tensor.cuda() if self.world.is_gpu else tensor
        paddle.distributed.broadcast(tensor, src=part.process)
        return tensor
