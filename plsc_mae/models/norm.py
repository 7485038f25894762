"""Layer norm (Ba et al. 2016) with a fast backward pass on CPU.

Paddle's CPU kernel takes 12 times as long for its backward as for its forward pass: both together take 35 ms of one
core on [3152, 768] floats, here 20 ms. If scale and shift are frozen, that kernel's gradient of the inputs ignores the
scale (2.6.2 and 3.3.1); ours does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from plsc_mae.models.execution import Floats, is_eager, memory, on_cpu

PART = 1 << 15  # elements of the rows that are computed at a time: their intermediate results stay in a core's cache


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis with scale and shift, and a fast backward pass for eager float32 CPU tensors."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [..., D] and apply scale and shift."""
        x, weight, bias = input, self.weight, self.bias
        quick = is_eager(x) and 0 not in x.shape and on_cpu(x) and {x.dtype, weight.dtype} == {paddle.float32}
        if not quick or (x.stop_gradient and weight.stop_gradient and bias.stop_gradient):
            return F.layer_norm(x, x.shape[-1:], weight, bias, self._epsilon)  # Paddle 2.6 cannot trace super()
        return _CPULayerNorm.apply(x, weight, bias, self._epsilon)


class _CPULayerNorm(paddle.autograd.PyLayer):
    """Layer norm of a float32 tensor on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Return (x - mean) / sqrt(variance + eps) * weight + bias over the last axis."""
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.wanted = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        ctx.eps = eps
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    @staticmethod
    @np.errstate(all="ignore")  # NaN and infinities cause no warnings, as in Paddle's operator
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias; Paddle requires None for a frozen one."""
        x, weight = ctx.saved_tensor()
        grad, out = grad.contiguous(), paddle.empty_like(x)
        width = x.shape[-1]
        rows, grads, results = (memory(tensor).reshape(-1, width) for tensor in (x, grad, out))
        scale = memory(weight)
        sums = np.zeros((2, width))  # gradients of weight and bias, summed over the rows in float64
        step = max(1, PART // width)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            normalized, inverse_std = _normalize(rows[part], ctx.eps)
            g = grads[part]
            product = g * normalized
            sums += product.sum(0), g.sum(0)
            _input_gradient(g * scale, normalized, inverse_std, results[part])
        wants_x, wants_weight, wants_bias = ctx.wanted
        return (
            out if wants_x else None,
            _like(weight, sums[0]) if wants_weight else None,
            _like(weight, sums[1]) if wants_bias else None,
        )


def _like(tensor: Tensor, values: npt.NDArray[np.float64]) -> Tensor:
    """Return a new tensor with the shape and dtype of `tensor` (float32 on a CPU) and the elements `values`."""
    result = paddle.empty_like(tensor)
    memory(result)[:] = values
    return result


def _normalize(x: Floats, eps: float) -> tuple[Floats, Floats]:
    """Return the normalized rows [n, D] of x and their inverse standard deviations [n, 1]."""
    normalized = x - x.mean(1, keepdims=True)
    variance = np.square(normalized).mean(1, keepdims=True)
    inverse_std = 1 / np.sqrt(variance + np.float32(eps))
    normalized *= inverse_std
    return normalized, inverse_std


def _input_gradient(g: Floats, normalized: Floats, inverse_std: Floats, out: Floats) -> None:
    """Write the gradient of the rows [n, D] to `out`; `g` is the gradient of the normalized rows.

    `g` and `normalized` are overwritten.
    """
    product = g * normalized
    g -= g.mean(1, keepdims=True)
    normalized *= product.mean(1, keepdims=True)
    g -= normalized
    np.multiply(g, inverse_std, out=out)
