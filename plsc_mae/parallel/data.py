"""Data parallelism on paddle.distributed: who am I, sums over processes, waiting without a time-out."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import Any

import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError


class World:
    """The processes that train one model together, each on its part of every batch.

    Made once per process, before anything else touches the device; started by `python -m paddle.distributed.launch`,
    or a single process when there is no launcher.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """

    def __init__(self, device: str) -> None:
        gpu_build = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
        wanted = "gpu" if device in ("gpu", "cuda") or (device == "auto" and gpu_build) else "cpu"
        if wanted == "gpu" and not gpu_build:
            build = "no GPU is visible to Paddle" if paddle.is_compiled_with_cuda() else "this is Paddle's CPU build"
            raise ConfigError(f"--device {device}: {build}; use --device cpu, or see `plsc-mae doctor`")
        paddle.set_device(wanted)
        self.is_gpu = wanted == "gpu"
        self.size = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
        self.rank = int(os.environ.get("PADDLE_TRAINER_ID", "0"))
        self._barriers = 0
        if self.size > 1:
            paddle.distributed.init_parallel_env()

    def __str__(self) -> str:
        return f"{self.size} process{'es' if self.size > 1 else ''}"

    def alone(self) -> World:
        """This process as a world of its own, once the others have nothing to do any more."""
        single = copy.copy(self)
        single.size, single.rank = 1, 0
        return single

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def wrap(self, layer: nn.Layer) -> nn.Layer:
        """Share out a layer: same weights everywhere, gradients averaged in the last backward pass of an update."""
        return paddle.DataParallel(layer) if self.size > 1 else layer

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes; all of them must call."""
        if self.size > 1:
            paddle.distributed.all_reduce(values)
        return values

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the main process's values everywhere; all of them must call."""
        if self.size > 1:
            for tensor in tensors:
                paddle.distributed.broadcast(tensor, src=0)

    def agree(self, numbers: list[int]) -> bool:
        """Whether all processes hold the same numbers; all of them must call."""
        if self.size == 1:
            return True
        extremes = paddle.to_tensor([*numbers, *(-number for number in numbers)], dtype="int64")
        paddle.distributed.all_reduce(extremes, op=paddle.distributed.ReduceOp.MAX)
        largest, smallest = extremes[: len(numbers)], -extremes[len(numbers) :]
        return bool((largest == smallest).all())

    def barrier(self) -> None:
        """Wait for all processes, however long one of them takes.

        Gloo gives up after 30 seconds, which saving a large checkpoint on rank 0 can take, so the processes meet at
        the launcher's key-value store instead.
        """
        if self.size == 1:
            return
        if self.is_gpu:
            paddle.distributed.barrier()
            return
        self._barriers += 1
        store, key = _store(), f"plsc_mae/barrier/{self._barriers}"
        if store.add(key, 1) == self.size:
            store.set(key + "/done", b"1")
        store.wait(key + "/done")


def _store() -> Any:
    return paddle.base.core.create_or_get_global_tcp_store()
