"""Process groups of a run and their collectives."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import paddle
from paddle import Tensor, nn

from plsc_mae.errors import ConfigError, flag
from plsc_mae.parallel import activity, failure_detector, rendezvous
from plsc_mae.parallel.exchange import DataParallelExchange
from plsc_mae.parallel.gpu import check_kernels, has_gpu
from plsc_mae.parallel.group import Group


class World:
    """The processes that train one model together.

    The processes form a grid. Along its tensor dimension, `tensor_parallel` processes divide the heads and hidden
    columns of every block; along its pipeline dimension, `pipeline_parallel` stages divide the blocks; along the data
    dimension, the remaining factor, processes divide the batches. Process indices change fastest along the tensor
    dimension, then data, then pipeline, so that the processes that communicate most are closest. The last stage has the
    lowest indices, because it computes the loss and process 0 writes the files.

    Every process must create one, before anything else uses the device. `plsc-mae launch` and
    `python -m paddle.distributed.launch` start several processes; without them there is one.

    Args:
        device: "auto", "cpu", "gpu" or "cuda".
        tensor_parallel: number of processes that divide each block.
        pipeline_parallel: number of pipeline stages.

    Attributes:
        size: number of data-parallel parts of a batch.
        rank: index of this process's part.
        processes: number of processes.
        process: index of this process.
        is_gpu: whether the processes compute on GPUs.
        data: group of the processes with the same part of the network and different data.
        tensor: group of the processes with the same data and different parts of the same blocks.
        pipeline: group of the processes with the same data and different blocks; the last stage is member 0.
        stage: index of this process's stage; stage 0 reads the images.
        previous: group of this process and the previous stage, which is member 1; None in the first stage.
        following: group of this process and the next stage, which is member 0; None in the last stage.

    Raises:
        ConfigError: a GPU is requested but missing, Paddle has no kernels for it, the number of processes is not a
            multiple of `tensor_parallel` * `pipeline_parallel`, or process 0 cannot be reached.
    """

    def __init__(self, device: str, *, tensor_parallel: int = 1, pipeline_parallel: int = 1) -> None:
        wanted = "gpu" if device in ("gpu", "cuda") or (device == "auto" and has_gpu()) else "cpu"
        if wanted == "gpu" and not has_gpu():
            build = "no GPU is visible to Paddle" if paddle.is_compiled_with_cuda() else "this is Paddle's CPU build"
            raise ConfigError(f"{flag('device')} {device}: {build}; use {flag('device')} cpu, or see `plsc-mae doctor`")
        self.processes = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
        self.process = int(os.environ.get("PADDLE_TRAINER_ID", "0")) % self.processes
        shared = tensor_parallel * pipeline_parallel
        if self.processes % shared:
            factors = {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
            groups = " x ".join(f"--{name} {factor}" for name, factor in factors.items() if factor > 1)
            raise ConfigError(
                f"{self.processes} process{'es' if self.processes > 1 else ''} cannot form groups of {groups}; start a "
                f"multiple of {shared} with `plsc-mae launch --nproc_per_node {shared}`"
            )
        paddle.set_device(wanted)
        self.is_gpu = wanted == "gpu"
        if self.is_gpu:
            check_kernels()
        self._barriers = 0
        if self.processes > 1:
            rendezvous.wait_for_store(self.process)
            paddle.distributed.init_parallel_env()
            failure_detector.join(self.process, self.processes, _store())
        self._form_groups(tensor_parallel, self.processes // shared, pipeline_parallel)
        self.rank, self.size = self.data.rank, self.data.size

    def _form_groups(self, tensor: int, data: int, pipeline: int) -> None:
        """Create the groups; all processes must call.

        The process indices fill a grid [pipeline, data, tensor], starting with the last stage.
        """
        numbers = [[[(s * data + d) * tensor + t for t in range(tensor)] for d in range(data)] for s in range(pipeline)]
        stages, parts, shares = range(pipeline), range(data), range(tensor)
        self.tensor = self._own_group([numbers[s][d] for s in stages for d in parts])
        self.data = self._own_group([[numbers[s][d][t] for d in parts] for s in stages for t in shares])
        self.pipeline = self._own_group([[numbers[s][d][t] for s in stages] for d in parts for t in shares])
        self.stage = pipeline - 1 - self.pipeline.rank
        self.previous = self.following = None
        for s in range(pipeline - 1):  # gloo numbers the messages of a group, so pairs need groups of their own
            pair = self._group([[numbers[s][d][t], numbers[s + 1][d][t]] for d in parts for t in shares])
            if pair is not None and pair.rank == 0:
                self.previous = pair
            elif pair is not None:
                self.following = pair

    def _group(self, ranks_of_groups: Sequence[list[int]]) -> Group | None:
        """Create all groups of one kind and return that of this process, None without one; all processes must call."""
        groups = [Group.of(ranks, self.process, self.processes, on_gloo=not self.is_gpu) for ranks in ranks_of_groups]
        return next((group for group in groups if self.process in group.ranks), None)

    def _own_group(self, ranks_of_groups: Sequence[list[int]]) -> Group:
        """Create groups that cover all processes and return that of this process; all processes must call."""
        group = self._group(ranks_of_groups)
        assert group is not None
        return group

    def __str__(self) -> str:
        text = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        kinds = (("data", self.data), ("tensor", self.tensor), ("pipeline", self.pipeline))
        split = [f"{name} {group.size}" for name, group in kinds if group.size > 1]
        return f"{text} ({' x '.join(split)})" if self.tensor.size * self.pipeline.size > 1 else text

    def alone(self) -> World:
        """Return a world that consists of this process alone, for work without the others."""
        single = copy.copy(self)
        single.processes, single.process = 1, 0
        single.data = single.tensor = single.pipeline = Group.alone()
        single.previous = single.following = None
        single.size, single.rank = 1, 0
        return single

    @property
    def is_main(self) -> bool:
        """True in process 0, which writes the checkpoints and logs of the run; in an `alone` world always."""
        return self.process == 0

    def synchronize(self) -> None:
        """Wait until this process's GPU has finished its work; on CPU it always has."""
        if self.is_gpu:
            paddle.device.cuda.synchronize()

    def wrap(self, layer: nn.Layer) -> nn.Layer:
        """Prepare a layer for data parallelism and return it; all processes must call.

        On GPUs, the result is a DataParallel, which averages the gradients in every backward pass outside its
        `no_sync`. On CPU, with pipeline stages, and without data parallelism, it is the layer itself, and
        `average_gradients` must follow the last backward pass of an update. The parameters become those of the first
        data-parallel process; with tensor or pipeline parallelism, they must be equal in all data-parallel processes
        before the call.
        """
        if self.size == 1 or self.pipeline.size > 1:
            return layer
        if not self.is_gpu:
            self.copy_from_main(layer.parameters())
            return layer
        # DataParallel ignores the group when it copies process 0's parameters, and so overwrites other shares.
        own = [param.clone().detach() for param in layer.parameters()] if self.tensor.size > 1 else []
        wrapped = paddle.DataParallel(layer, group=self.data.handle)
        for param, value in zip(layer.parameters(), own, strict=False):
            param.set_value(value)
        return wrapped

    @property
    def stream(self) -> int:
        """Index of this process's random number stream; it differs between data-parallel parts and between stages."""
        return self.stage * self.size + self.rank if self.pipeline.size > 1 else self.rank

    def average_gradients(self, params: Iterable[Tensor]) -> None:
        """Average the gradients of `params` in place over the data-parallel processes, which must all call.

        The layers that `wrap` returns unchanged need this after the last backward pass of an update.
        """
        if self.size > 1:
            self._exchange.average_gradients(list(params))

    def publish(self, shares: Sequence[Sequence[Tensor]]) -> None:
        """Copy the parameters `shares[i]` of data-parallel process i to the others, in place; all of them must call."""
        if self.size > 1:
            self._exchange.publish(shares)

    @functools.cached_property
    def _exchange(self) -> DataParallelExchange:
        return DataParallelExchange(self.data, on_cpu=not self.is_gpu)

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` in place over the data-parallel processes (all-reduce) and return it; all of them must call."""
        return self.data.sum(values)

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` in place by those of the first data-parallel process; all of them must call."""
        for tensor in tensors:
            self.data.broadcast(tensor, 0)

    def largest(self, values: Sequence[float] | Tensor) -> list[float]:
        """Return the maximum over all processes of each of `values`; all processes must call.

        The values must be finite. If they are a tensor, it may be overwritten.
        """
        if self.processes == 1:
            return [float(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
        tensor = values if isinstance(values, Tensor) else paddle.to_tensor(list(values), dtype="float64")
        with activity.waiting():
            paddle.distributed.all_reduce(tensor, op=paddle.distributed.ReduceOp.MAX)
            return [float(value) for value in tensor.tolist()]

    def agree(self, numbers: list[int]) -> bool:
        """Return whether `numbers` is the same in all processes; all processes must call."""
        if self.processes == 1:
            return True
        extremes = paddle.to_tensor([*numbers, *(-number for number in numbers)], dtype="int64")
        with activity.waiting():
            paddle.distributed.all_reduce(extremes, op=paddle.distributed.ReduceOp.MAX)
        largest, smallest = extremes[: len(numbers)], -extremes[len(numbers) :]
        return bool((largest == smallest).all())

    def barrier(self) -> None:
        """Wait until all processes call.

        Gloo's collectives time out after 30 seconds, but saving a large checkpoint can take longer. So on CPU the
        processes wait at the launcher's key-value store, which has no such timeout.
        """
        if self.processes == 1:
            return
        with activity.waiting():
            if self.is_gpu:
                paddle.distributed.barrier()
            else:
                self._meet()

    def _meet(self) -> None:
        """Wait at the launcher's key-value store until all processes call."""
        self._barriers += 1
        store, key = _store(), f"plsc_mae/barrier/{self._barriers}"
        if store.add(key, 1) == self.processes:
            store.set(key + "/done", b"1")
        store.wait(key + "/done")


def _store() -> Any:
    return paddle.base.core.create_or_get_global_tcp_store()
