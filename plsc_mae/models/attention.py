"""Scaled dot-product attention, computed by the flash kernel where `uses_flash` allows it, else by matrix products.

B batch, M queries, N keys, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from plsc_mae.models.deterministic import are_deterministic
from plsc_mae.models.execution import on_gpu

FLASH_MIN_CAPABILITY = (8, 0)  # flash attention kernels exist from Ampere on
# Wider heads, up to 256, have no backward kernel on some GPUs, such as those of compute capability 8.6 and 8.9.
FLASH_MAX_HEAD_DIM, FLASH_HEAD_DIM_MULTIPLE = 192, 8
_recording: ContextVar[list[Tensor] | None] = ContextVar("recording", default=None)


@contextmanager
def record_attention() -> Iterator[list[Tensor]]:
    """Yield a list that receives the softmax weights [B, H, M, N] of each `attention` call inside the context.

    The weights are those before dropout, and gradients can be computed with respect to them. Of nested contexts, only
    the innermost one collects.
    """
    weights: list[Tensor] = []
    outer = _recording.set(weights)
    try:
        yield weights
    finally:
        _recording.reset(outer)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, drop_rate: float = 0.0) -> Tensor:
    """Return softmax(q k^T / sqrt(D/H) + bias) v, [B, H, M, D/H], for q [B, H, M, D/H] and k, v [B, H, N, D/H].

    `bias` is [H, M, N]. Dropout with `drop_rate` applies to the softmax weights, in evaluation mode too, so callers
    must pass 0 there.

    `uses_flash` chooses between the flash kernel and plain matrix products. Paddle's own choice is unsuitable: 2.6 uses
    its flash kernel on any GPU and for any dtype, and 3.x chooses before AMP has cast the inputs.
    """
    head_dim, recorded = q.shape[-1], _recording.get()
    plain = recorded is not None or bias is not None or drop_rate > 0 or are_deterministic()
    half = q.dtype in (paddle.float16, paddle.bfloat16)
    if uses_flash(head_dim, _capability(q), half=half, plain=plain):
        q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose([0, 2, 1, 3])
    logits = paddle.matmul(q * head_dim**-0.5, k, transpose_y=True)
    weights = F.softmax(logits if bias is None else logits + bias, axis=-1)
    if recorded is not None:
        recorded.append(weights)
    return paddle.matmul(dropout(weights, drop_rate), v)


def uses_flash(head_dim: int, capability: tuple[int, int], *, half: bool, plain: bool) -> bool:
    """Return True if attention runs in the flash kernel, False if it runs as plain matrix products.

    Args:
        head_dim: width of a head.
        capability: compute capability of the GPU, (major, minor); (0, 0) without one.
        half: True if q, k and v are float16 or bfloat16.
        plain: True if a bias, dropout, `record_attention` or --deterministic requires plain products.
    """
    fits = head_dim <= FLASH_MAX_HEAD_DIM and head_dim % FLASH_HEAD_DIM_MULTIPLE == 0
    return half and not plain and fits and capability >= FLASH_MIN_CAPABILITY


def dropout(x: Tensor, rate: float) -> Tensor:
    """Set each element to zero with probability `rate` and scale up the rest (Srivastava et al. 2014).

    This function knows no evaluation mode; callers pass rate 0 there.
    """
    return F.dropout(x, rate) if rate > 0 else x


def _capability(x: Tensor) -> tuple[int, int]:
    """Return the compute capability of the GPU if `x` is on one, else (0, 0)."""
    if not on_gpu(x):
        return 0, 0
    major, minor = paddle.device.cuda.get_device_capability()
    return major, minor
