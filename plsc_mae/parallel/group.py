"""Some of a run's processes, and what they exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor


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
    def of(cls, ranks: Sequence[int], process: int, processes: int) -> Group:
        """Make a group; all processes of the run must do so, in the same order, also those outside of it.

        Args:
            ranks: its members, rising.
            process: this process.
            processes: how many there are in the run.
        """
        rank = ranks.index(process) if process in ranks else -1
        if len(ranks) == 1:
            return cls(rank, tuple(ranks))
        if len(ranks) == processes:  # Paddle's own group of all
            return cls(rank, tuple(ranks), paddle.distributed.get_group(0))
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
