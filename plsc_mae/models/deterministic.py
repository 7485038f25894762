"""GPU kernels that give the same bits in every run; the default ones add floats in an order that varies.

The flags are those of the wheel of paddlepaddle-gpu 2.6.2 and of Paddle's source; no GPU has run this code yet.
"""

from __future__ import annotations

import os
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

# cuDNN's algorithms that repeat their bits, and the backward pass of F.embedding without atomic additions. With
# the first flag, Paddle refuses convolutions unless the exhaustive search for algorithms is off.
FLAGS = {
    "FLAGS_cudnn_deterministic": True,
    "FLAGS_embedding_deterministic": 1,
    "FLAGS_cudnn_exhaustive_search": False,
}
# cuBLAS may otherwise choose its workspace, and with it the order of sums, differently each time (NVIDIA's manual).
CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
_deterministic = False
_replaced: dict[str, Any] = {}  # values of FLAGS before deterministic kernels were chosen


def choose_kernels(*, deterministic: bool) -> None:
    """Choose GPU kernels that repeat their bits, or the fast ones, until the next call.

    Deterministic kernels need FLAGS, a fixed workspace of cuBLAS, and plain products instead of flash attention, whose
    backward pass adds atomically. Without `deterministic`, Paddle's flags keep or regain their original values.

    Call this before the first matrix product on a GPU, because that is when cuBLAS reads its environment variable.
    """
    global _deterministic
    changed, _deterministic = deterministic != _deterministic, deterministic
    if not changed or not paddle.is_compiled_with_cuda():
        return
    if deterministic:
        os.environ.setdefault(*CUBLAS_WORKSPACE)
        _replaced.update(paddle.get_flags(list(FLAGS)))
    paddle.set_flags(FLAGS if deterministic else _replaced)


def are_deterministic() -> bool:
    """Return whether the last call of `choose_kernels` chose deterministic kernels."""
    return _deterministic


def table_rows(table: Tensor, ids: Tensor) -> Tensor:
    """Look up the rows [..., D] of `table` [N, D] at `ids`, int64 [...]; ids may repeat.

    The gradient of `paddle.gather` always sums repeated rows by atomic additions on GPU; that of F.embedding does not
    if FLAGS_embedding_deterministic is set. On CPU the two give identical gradients.
    """
    return F.embedding(ids, table)
