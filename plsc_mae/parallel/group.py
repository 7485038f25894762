"""Process group and its collectives."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

from plsc_mae.parallel import activity

_stores: list[Any] = []  # stores of gloo's groups, in order of creation; None for groups without this process


class Group(NamedTuple):
    """Group of processes that exchange tensors; with a single member, `sum` and `broadcast` do nothing."""

    rank: int  # index of this process among the members; -1 if it is not a member
    ranks: tuple[int, ...]  # process indices of the members in the run
    handle: Any = None  # Paddle's group object; None with a single member

    @classmethod
    def alone(cls) -> Group:
        """Return the group of a single process."""
        return cls(0, (0,))

    @classmethod
    def of(cls, ranks: Sequence[int], process: int, processes: int, *, on_gloo: bool) -> Group:
        """Create a group; all processes of the run, members or not, must create the same groups in the same order.

        Args:
            ranks: process indices of the members in ascending order.
            process: index of this process.
            processes: number of processes in the run.
            on_gloo: whether gloo is the backend.
        """
        rank = ranks.index(process) if process in ranks else -1
        if len(ranks) == 1:
            return cls(rank, tuple(ranks))
        if len(ranks) == processes:  # Paddle's own group of all
            return cls(rank, tuple(ranks), paddle.distributed.get_group(0))
        with _separate_store(ranks, rank) if on_gloo else contextlib.nullcontext():
            return cls(rank, tuple(ranks), paddle.distributed.new_group(list(ranks)))

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.ranks)

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the members in place (all-reduce) and return `values`; all members must call."""
        if self.size > 1:
            with activity.waiting():
                paddle.distributed.all_reduce(values, group=self.handle)
        return values

    def broadcast(self, values: Tensor, source: int) -> Tensor:
        """Overwrite `values` by those of the member with index `source` and return `values`; all members must call."""
        if self.size > 1:
            with activity.waiting():
                paddle.distributed.broadcast(values, src=self.ranks[source], group=self.handle)
        return values

    def send(self, values: Tensor, member: int) -> None:
        """Send `values` to the member with index `member`, which must call `receive`.

        On CPU this blocks until that member receives them.
        """
        with activity.waiting():
            paddle.distributed.send(values, dst=self.ranks[member], group=self.handle)

    def receive(self, values: Tensor, member: int) -> Tensor:
        """Fill `values` in place with the tensor that the member with index `member` sends, and return `values`."""
        with activity.waiting():
            paddle.distributed.recv(values, src=self.ranks[member], group=self.handle)
        return values


@contextlib.contextmanager
def _separate_store(ranks: Sequence[int], rank: int) -> Iterator[None]:
    """Use a separate key-value store for the group that is created within the context; all processes must enter.

    Paddle's gloo stores the members' addresses under the same keys for every group, so a member could read those of an
    earlier group, whose sockets are closed (Paddle 3.3.1).
    """
    key = f"plsc_mae/group/{len(_stores)}"
    if rank < 0:
        _stores.append(None)
        yield
        return
    shared = paddle.base.core.create_or_get_global_tcp_store()
    if rank == 0:
        host = os.environ["PADDLE_CURRENT_ENDPOINT"].rpartition(":")[0]
        with socket.create_server(("", 0)) as listener:
            port = listener.getsockname()[1]
        shared.set(key, f"{host}:{port}".encode())
    host, _, port = bytes(shared.get(key)).decode().rpartition(":")
    store = paddle.base.core.TCPStore(host, int(port), rank == 0, len(ranks))
    _stores.append(store)  # the group may use it later
    set_store = paddle.distributed.collective._set_default_store
    set_store(store)
    try:
        yield
    finally:
        set_store(shared)
