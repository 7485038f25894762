"""Means of gradients and exchanged parameters; threads stand for the processes of a group."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest

from plsc_mae.parallel import exchange
from plsc_mae.parallel.exchange import DataParallelExchange, pieces, shared_rows, tensor_buckets

pytestmark = pytest.mark.compat

SHAPES = [(3, 4), (1,), (), (17,), (2, 2, 2)]


class Members:
    """A group of threads with the collectives of `Group`; `sums` counts those of the first member."""

    def __init__(self, size: int) -> None:
        self.size, self.sums = size, 0
        self._barrier, self._values = threading.Barrier(size, timeout=20), [None] * size

    def member(self, rank: int) -> Member:
        return Member(self, rank)

    def exchanged(self, rank: int, value: np.ndarray) -> list[np.ndarray]:
        self._values[rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values


class Member:
    def __init__(self, members: Members, rank: int) -> None:
        self.members, self.rank, self.size = members, rank, members.size

    def sum(self, values: paddle.Tensor) -> paddle.Tensor:
        self.members.sums += self.rank == 0
        total = self.members.exchanged(self.rank, values.numpy())
        values.set_value(np.asarray(sum(total[1:], total[0]), total[0].dtype))
        return values

    def broadcast(self, values: paddle.Tensor, source: int) -> paddle.Tensor:
        values.set_value(self.members.exchanged(self.rank, values.numpy())[source])
        return values


def in_threads(size, work) -> tuple[Members, list]:
    """Return the members and the results of `work(member)` for all of them."""
    members = Members(size)
    with ThreadPoolExecutor(size) as pool:
        return members, list(pool.map(lambda rank: work(members.member(rank)), range(size)))


@pytest.fixture(params=["shared", "sent"])
def on_cpu(request, monkeypatch):
    """Small buckets; tensors in shared memory, or by collectives."""
    monkeypatch.setattr(exchange, "BUCKET_ELEMENTS", 5)
    return request.param == "shared"


def drawn(rank: int) -> list[np.ndarray]:
    rng = np.random.default_rng(rank)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_become_their_mean_in_the_order_of_the_ranks(on_cpu, size):
    def work(member: Member) -> list[np.ndarray]:
        params = [paddle.create_parameter(list(shape), "float32") for shape in (*SHAPES, (4,))]
        for param, gradient in zip(params, drawn(member.rank), strict=False):
            param.grad = paddle.to_tensor(gradient)
        average = DataParallelExchange(member, on_cpu=on_cpu)
        assert (average.rows is not None) == on_cpu
        average.average_gradients(params)
        assert params[-1].grad is None
        return [param.grad.numpy() for param in params[:-1]]

    _, found = in_threads(size, work)
    for means in found:
        for mean, *values in zip(means, *map(drawn, range(size)), strict=True):
            expected = sum(values[1:], values[0]) / np.float32(size)
            # Paddle 2.6 multiplies by the inverse of 3.
            np.testing.assert_array_max_ulp(mean, expected, 0 if on_cpu or size == 2 else 1)


def test_a_strided_gradient_is_averaged_in_its_own_order(monkeypatch):
    monkeypatch.setattr(exchange, "BUCKET_ELEMENTS", 5)

    def work(member: Member) -> np.ndarray:
        param = paddle.create_parameter([4, 3], "float32")
        values = paddle.arange(12, dtype="float32").reshape([3, 4])
        param.grad = (values + member.rank).transpose([1, 0])
        DataParallelExchange(member, on_cpu=True).average_gradients([param])
        return param.grad.numpy()

    for mean in in_threads(2, work)[1]:
        np.testing.assert_array_equal(mean, np.arange(12, dtype=np.float32).reshape(3, 4).T + 0.5)


def test_updated_parameters_reach_the_other_processes(on_cpu):
    def work(member: Member) -> list[np.ndarray]:
        params = [paddle.create_parameter(list(shape), "float32") for shape in SHAPES]
        for param, value in zip(params, drawn(member.rank), strict=True):
            param.set_value(value)
        DataParallelExchange(member, on_cpu=on_cpu).publish([params[3:], params[:3]])
        return [param.numpy() for param in params]

    for values in in_threads(2, work)[1]:
        for value, expected in zip(values, [*drawn(1)[:3], *drawn(0)[3:]], strict=True):
            np.testing.assert_array_equal(value, expected)


def test_memory_is_shared_and_its_descriptors_are_closed():
    before = len(os.listdir("/proc/self/fd"))

    def work(member: Member) -> float:
        rows = shared_rows(member, 2, 1000)
        rows[member.rank] = member.rank + 1
        member.sum(paddle.zeros([1]))
        return rows.sum()

    assert in_threads(2, work)[1] == [3000, 3000]
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # mmap keeps a duplicate as long as the memory lives


@pytest.mark.parametrize("missing", ["memory", "process", "key", "Linux"])
def test_all_use_collectives_if_one_cannot_share_memory(monkeypatch, missing):
    def refuse(*_: int) -> None:
        raise OSError("no memory")

    def broadcast(member: Member, values: paddle.Tensor, source: int) -> paddle.Tensor:
        """Find another process of this number, whose memory starts with other bytes."""
        values.set_value(member.members.exchanged(member.rank, values.numpy())[source])
        return values + paddle.to_tensor([0, 0, member.rank])

    if missing == "memory":
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    elif missing == "process":
        monkeypatch.setattr(os, "getpid", lambda: 1 << 30)
    elif missing == "key":
        monkeypatch.setattr(Member, "broadcast", broadcast)
    else:
        monkeypatch.delattr(os, "memfd_create")
    assert in_threads(2, lambda member: shared_rows(member, 2, 10))[1] == [None, None]


def test_pieces_split_arrays_into_buckets_of_equal_size():
    arrays = [np.arange(start, stop, dtype=np.float32) for start, stop in ((0, 7), (7, 7), (7, 8), (8, 12), (12, 23))]
    buckets = list(pieces(arrays, 4))
    assert [sum(piece.size for piece in bucket) for bucket in buckets] == [4, 4, 4, 4, 4, 3]
    assert np.concatenate([piece for bucket in buckets for piece in bucket]).tolist() == list(range(23))
    assert list(pieces([], 4)) == []


def test_tensors_are_sent_in_buckets_of_one_dtype():
    params = [
        paddle.zeros([size], dtype) for size, dtype in ((3, "float32"), (2, "float32"), (2, "float64"), (9, "float64"))
    ]
    for param in params:
        param.grad = paddle.zeros_like(param)
    assert [[param.size for param in bucket] for bucket in tensor_buckets(params, 6)] == [[3, 2], [2], [9]]
