"""Layers: exact savings are exact, gradients are those of the plain formula, patches go there and back."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from plsc_mae.models.layers import (
    Block,
    DropPath,
    Linear,
    PatchEmbed,
    gather_tokens,
    linear,
    patchify,
    unpatchify,
)

pytestmark = pytest.mark.compat


def draws(*shape: int, seed: int = 0) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape, np.float32), stop_gradient=False)


def test_patches_go_there_and_back_on_a_rectangle():
    images = draws(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert list(patches.shape) == [2, 6, 48]
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), 4).numpy(), images.numpy())
    first = images.numpy()[0, :, :4, :4].transpose(1, 2, 0).reshape(-1)  # row, column, channel
    np.testing.assert_array_equal(patches.numpy()[0, 0], first)


def test_linear_has_the_value_and_gradients_of_the_plain_formula():
    x, weight, bias, upstream = draws(2, 5, 8), draws(8, 6, seed=1), draws(6, seed=2), draws(2, 5, 6, seed=3)
    (linear(x, weight, bias) * upstream).sum().backward()
    found = [t.grad.numpy().copy() for t in (x, weight, bias)]
    for tensor in (x, weight, bias):
        tensor.clear_gradient()
    (F.linear(x, weight, bias) * upstream).sum().backward()
    for ours, plain in zip(found, (x, weight, bias), strict=True):
        np.testing.assert_allclose(ours, plain.grad.numpy(), rtol=1e-5, atol=1e-5)  # fp32, sums of at most 10 terms


def test_linear_asks_no_gradient_of_frozen_inputs():
    layer = Linear(4, 3)
    layer.weight.stop_gradient = True
    x = draws(2, 4)
    x.stop_gradient = True
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_patch_embedding_is_the_convolution():
    embed, images = PatchEmbed(4, 3, 16), draws(2, 3, 8, 8)
    convolved = embed.proj(images).flatten(2).transpose([0, 2, 1])
    np.testing.assert_allclose(embed(patchify(images, 4)).numpy(), convolved.numpy(), rtol=1e-5, atol=1e-5)


def test_a_block_gives_the_same_rows_when_only_some_are_asked():
    block, x = Block(16, 4), draws(3, 7, 16)
    ids = paddle.to_tensor([[0, 2, 6], [5, 1, 3], [4, 4, 0]])
    whole = gather_tokens(block(x), ids)
    np.testing.assert_allclose(block(x, ids).numpy(), whole.numpy(), rtol=1e-5, atol=1e-6)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    paddle.seed(0)
    layer, x = DropPath(0.25), paddle.ones([4000, 1, 2])
    out = layer(x).numpy()[:, 0]
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
    assert (out[:, 0] == out[:, 1]).all()
    assert out.mean() == pytest.approx(1.0, abs=0.05)  # five standard errors
    layer.eval()
    assert (layer(x).numpy() == 1).all()
