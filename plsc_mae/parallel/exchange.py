"""Averages of gradients, and copies of updated parameters, between data-parallel processes.

On a CPU, if all these processes can share memory, they exchange float32 tensors through it, which is quicker than
gloo's sockets. A collective of one number separates writing from reading, so a process that dies or hangs is noticed as
in any other collective. In shared memory, values are added in the order of the ranks, so means do not depend on timing.
"""

from __future__ import annotations

import itertools
import mmap
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.models.execution import Floats, memory
from plsc_mae.parallel.group import Group

BUCKET_ELEMENTS = 1 << 23  # 32 MB of float32


class DataParallelExchange:
    """Exchange of gradients and parameters between data-parallel processes.

    All processes of the group must create it and call its methods.

    Args:
        group: the data-parallel processes, at least two.
        on_cpu: whether the tensors are in memory that processes can share.

    Attributes:
        rows: shared float32 memory [processes + 1, BUCKET_ELEMENTS]: a row for each process, and one for results. It
            is None on GPU, and if the processes cannot share memory. Paddle's collectives are used then, and for other
            types than float32.
    """

    def __init__(self, group: Group, *, on_cpu: bool) -> None:
        self.group = group
        self.rows = shared_rows(group, group.size + 1, BUCKET_ELEMENTS) if on_cpu else None

    @paddle.no_grad()
    def average_gradients(self, params: Sequence[Tensor]) -> None:
        """Average the gradients of `params` in place; the same parameters must have gradients in all processes."""
        params = [param for param in params if param.grad is not None]
        if self.rows is not None and all(param.grad.dtype == paddle.float32 for param in params):
            for bucket in pieces([_flat_gradient(param) for param in params], BUCKET_ELEMENTS):
                self._average(self.rows, bucket)
            return
        for part in tensor_buckets(params, BUCKET_ELEMENTS):
            mean = self.group.sum(paddle.concat([param.grad.flatten() for param in part])) / self.group.size
            _overwrite([param.grad for param in part], mean)

    @paddle.no_grad()
    def publish(self, shares: Sequence[Sequence[Tensor]]) -> None:
        """Copy the parameters `shares[i]` of the group's process i to all others, in place; all must call."""
        if self.rows is not None and all(param.dtype == paddle.float32 for share in shares for param in share):
            buckets = [pieces([memory(param) for param in share], BUCKET_ELEMENTS) for share in shares]
            for group in itertools.zip_longest(*buckets, fillvalue=[]):
                self._publish(self.rows, group)
            return
        for owner, share in enumerate(shares):
            for dtype in {param.dtype: None for param in share}:
                params = [param for param in share if param.dtype == dtype]
                flat = self.group.broadcast(paddle.concat([param.flatten() for param in params]), owner)
                if owner != self.group.rank:
                    _overwrite(params, flat)

    def _average(self, rows: Floats, bucket: Sequence[Floats]) -> None:
        """Average arrays in place; every process averages a part of the elements. All must call."""
        rank, processes = self.group.rank, self.group.size
        size = _write(bucket, rows[rank])
        self._meet()
        part = slice(size * rank // processes, size * (rank + 1) // processes)
        mean = np.add(rows[0, part], rows[1, part], out=rows[processes, part])
        for row in rows[2:processes]:
            mean += row[part]
        mean /= np.float32(processes)
        self._meet()
        _read(rows[processes], bucket)

    def _publish(self, rows: Floats, buckets: Sequence[Sequence[Floats]]) -> None:
        """Copy the arrays `buckets[i]` of process i to the other processes, in place; all must call."""
        _write(buckets[self.group.rank], rows[self.group.rank])
        self._meet()
        for owner, bucket in enumerate(buckets):
            if owner != self.group.rank:
                _read(rows[owner], bucket)
        self._meet()

    def _meet(self) -> None:
        """Wait until all processes of the group call."""
        self.group.sum(paddle.zeros([1]))


def _flat_gradient(param: Tensor) -> Floats:
    """Return the memory of a parameter's gradient as a flat array; the gradient is made contiguous if it is not."""
    if not param.grad.is_contiguous():
        param.grad = param.grad.contiguous()
    return memory(param.grad)


def _overwrite(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Fill tensors in place with the elements of `flat`, in order."""
    for tensor, values in zip(tensors, paddle.split(flat, [tensor.size for tensor in tensors]), strict=True):
        paddle.assign(values.reshape(tensor.shape), output=tensor)


def _write(arrays: Sequence[Floats], row: Floats) -> int:
    """Copy flat arrays to the start of `row`, one after the other, and return the number of elements."""
    size = sum(array.size for array in arrays)
    if size:
        np.concatenate(arrays, out=row[:size])
    return size


def _read(row: Floats, arrays: Sequence[Floats]) -> None:
    """Fill flat arrays from the start of `row`, one after the other; the inverse of `_write`."""
    start = 0
    for array in arrays:
        array[:] = row[start : start + array.size]
        start += array.size


def pieces(arrays: Sequence[Floats], limit: int) -> Iterator[list[Floats]]:
    """Yield flat arrays in order, in lists of views with `limit` elements in all; the last list may have fewer."""
    bucket: list[Floats] = []
    room = limit
    for array in arrays:
        rest = array
        while rest.size:
            bucket.append(rest[:room])
            rest = rest[room:]
            room -= bucket[-1].size
            if room == 0:
                yield bucket
                bucket, room = [], limit
    if bucket:
        yield bucket


def tensor_buckets(params: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Yield `params` in order, in lists whose gradients have one dtype and at most `limit` elements in all.

    A larger parameter is alone in its list.
    """
    bucket: list[Tensor] = []
    elements = 0
    for param in params:
        if bucket and (elements + param.size > limit or param.grad.dtype != bucket[0].grad.dtype):
            yield bucket
            bucket, elements = [], 0
        bucket.append(param)
        elements += param.size
    if bucket:
        yield bucket


def shared_rows(group: Group, count: int, elements: int) -> Floats | None:
    """Return float32 memory [count, elements] that all members share, or None in all of them; all must call.

    It is None if a member cannot map the memory, for example because it runs on another machine or in another
    container, the system is not Linux, or memory is short. The memory has no name in a file system, so nothing remains
    after the processes, however they end.
    """
    size, descriptor, key, shared = 4 * count * elements, -1, secrets.randbits(62), None
    with suppress(OSError, AttributeError):
        if group.rank == 0:
            descriptor = os.memfd_create("plsc_mae")
            os.posix_fallocate(descriptor, 0, size)  # if memory were short later, a write would kill the process
            shared = mmap.mmap(descriptor, size)
            shared[:8] = key.to_bytes(8, "little")
    pid, opened, key = group.broadcast(paddle.to_tensor([os.getpid(), descriptor, key]), 0).tolist()
    with suppress(OSError, ValueError):
        if group.rank > 0:
            descriptor = os.open(f"/proc/{pid}/fd/{opened}", os.O_RDWR)
            found = mmap.mmap(descriptor, size)
            shared = found if found[:8] == key.to_bytes(8, "little") else None  # else here `pid` is another process
    missing = group.sum(paddle.to_tensor([int(shared is None)]))
    if descriptor >= 0:
        os.close(descriptor)
    return None if shared is None or missing.item() else np.frombuffer(shared, np.float32).reshape(count, elements)
