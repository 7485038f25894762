"""Some of a run's processes, and what they exchange."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

_stores: list[Any] = []  # of gloo's groups, one for each that was made; None for groups of others


class Group(NamedTuple):
    """Processes that share something; with one member every exchange is nothing.

    Attributes:
        rank: which member this process is; -1 in a group of others.
        ranks: the members' numbers in the run.
        handle: Paddle's group; None with one member.
    """

    rank: int
    ranks: tuple[int, ...]
    handle: Any = None

    @classmethod
    def alone(cls) -> Group:
        """A process by itself."""
        return cls(0, (0,))

    @classmethod
    def of(cls, ranks: Sequence[int], process: int, processes: int, *, on_gloo: bool) -> Group:
        """Make a group; all processes of the run must do so, in the same order, also those outside of it.

        Args:
            ranks: its members, rising.
            process: this process.
            processes: how many there are in the run.
            on_gloo: whether the processes talk by gloo.
        """
        rank = ranks.index(process) if process in ranks else -1
        if len(ranks) == 1:
            return cls(rank, tuple(ranks))
        if len(ranks) == processes:  # Paddle's own group of all
            return cls(rank, tuple(ranks), paddle.distributed.get_group(0))
        with _store_of_its_own(ranks, rank) if on_gloo else contextlib.nullcontext():
            return cls(rank, tuple(ranks), paddle.distributed.new_group(list(ranks)))

    @property
    def size(self) -> int:
        """How many members there are."""
        return len(self.ranks)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor in place over the members; all of them must call."""
        if self.size > 1:
            paddle.distributed.all_reduce(values, group=self.handle)
        return values

    def broadcast(self, values: Tensor, source: int) -> Tensor:
        """Give a tensor the values of member `source` in place; all members must call."""
        if self.size > 1:
            paddle.distributed.broadcast(values, src=self.ranks[source], group=self.handle)
        return values

    def send(self, values: Tensor, member: int) -> None:
        """Send a tensor to a member, which must receive it; they wait for each other on CPU."""
        paddle.distributed.send(values, dst=self.ranks[member], group=self.handle)

    def receive(self, values: Tensor, member: int) -> Tensor:
        """Fill a tensor with what a member sends."""
        paddle.distributed.recv(values, src=self.ranks[member], group=self.handle)
        return values


@contextlib.contextmanager
def _store_of_its_own(ranks: Sequence[int], rank: int) -> Iterator[None]:
    """Let a group form at a key-value store of its own.

    Paddle's gloo writes the members' addresses under the same keys for every group, so that a member may find those of
    an earlier group, where nobody listens any more (3.3.1).
    """
    key = f"plsc_mae/group/{len(_stores)}"
    if rank < 0:
        _stores.append(None)
        yield
        return
    everyones = paddle.base.core.create_or_get_global_tcp_store()
    if rank == 0:
        host = os.environ["PADDLE_CURRENT_ENDPOINT"].rpartition(":")[0]
        with socket.create_server(("", 0)) as listener:
            port = listener.getsockname()[1]
        everyones.set(key, f"{host}:{port}".encode())
    host, _, port = bytes(everyones.get(key)).decode().rpartition(":")
    store = paddle.base.core.TCPStore(host, int(port), rank == 0, len(ranks))
    _stores.append(store)  # the group may come back to it
    set_store = paddle.distributed.collective._set_default_store
    set_store(store)
    try:
        yield
    finally:
        set_store(everyones)
