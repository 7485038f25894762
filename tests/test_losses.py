"""Losses and pixel targets against their formulae in float64.

Results of a few hundred float32 operations: rtol 1e-5, atol 1e-6.
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.losses import (
    alignment_loss,
    denormalize_pixels,
    label_smoothing_cross_entropy,
    normalize_patches,
    normalize_pixels,
    soft_target_cross_entropy,
    squared_error,
)
from plsc_mae.models.layers import patchify

pytestmark = pytest.mark.compat


@pytest.fixture
def pair() -> list[np.ndarray]:
    """A prediction and a target, [B, M, D]."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, 3, 8)) for _ in range(2)]


@pytest.fixture
def pixels() -> np.ndarray:
    """Patches [B, L, P, P, C] of bright pixels: a mean that is not 0 and a spread that is not 1."""
    rng = np.random.default_rng(1)
    return rng.random((2, 5, 4, 4, 3)) * [0.1, 1.0, 3.0] + [0.2, 5.0, -1.0]


def tensors(*arrays: np.ndarray) -> list[paddle.Tensor]:
    return [paddle.to_tensor(array.astype(np.float32)) for array in arrays]


def softmax(x: np.ndarray) -> np.ndarray:
    exp = np.exp(x)
    return exp / exp.sum(axis=-1, keepdims=True)


def test_squared_error(pair):
    pred, target = pair
    expected = np.mean((pred - target) ** 2)
    assert float(squared_error(*tensors(pred, target))) == pytest.approx(expected, rel=1e-5)
    assert float(alignment_loss(*tensors(pred, target))) == pytest.approx(expected, rel=1e-5)
    assert float(alignment_loss(*tensors(pred, target), "mse")) == pytest.approx(expected, rel=1e-5)


def test_divergence_is_of_the_target_from_the_prediction_and_averaged_over_elements(pair):
    pred, target = pair
    p, q = softmax(target), softmax(pred)
    expected = np.mean(p * np.log(p / q))
    assert float(alignment_loss(*tensors(pred, target), "kld")) == pytest.approx(expected, rel=1e-5)
    assert float(alignment_loss(*tensors(target, pred), "kld")) != pytest.approx(expected, rel=1e-2)
    assert float(alignment_loss(*tensors(pred, pred), "kld")) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("kind", ["mse", "kld"])
def test_losses_are_float32_whatever_the_network_computes_in(kind):
    # 300 squared is beyond float16.
    pred, target = (paddle.full([1, 1, 4], value, "float16") for value in (300.0, 0.0))
    assert alignment_loss(pred, target, kind).dtype == paddle.float32
    assert float(alignment_loss(pred, target)) == 90000.0


def test_the_gradient_of_the_divergence(pair):
    pred, target = tensors(*pair)
    pred.stop_gradient = False
    alignment_loss(pred, target, "kld").backward()
    expected = (softmax(pair[0]) - softmax(pair[1])) / pair[0].size
    np.testing.assert_allclose(pred.grad.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_pixels_as_they_are(pixels):
    (flat,) = tensors(pixels.reshape(2, 5, 48))
    np.testing.assert_array_equal(normalize_pixels(flat, "none").numpy(), flat.numpy())


@pytest.mark.parametrize(("kind", "ddof"), [("layernorm", 0), ("patch", 1)])
def test_pixels_by_patch(pixels, kind, ddof):
    flat = pixels.reshape(2, 5, 48)
    mean, variance = flat.mean(axis=-1, keepdims=True), flat.var(axis=-1, keepdims=True, ddof=ddof)
    expected = (flat - mean) / np.sqrt(variance + 1e-6)
    found = normalize_pixels(*tensors(flat), kind).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.var(axis=-1, ddof=ddof), 1, rtol=1e-4)
    if kind == "patch":  # MAE's
        np.testing.assert_array_equal(found, normalize_patches(*tensors(flat)).numpy())


def test_pixels_by_channel(pixels):
    """Every channel of a patch has a mean and a std of its own, and comes as one run of P*P numbers."""
    flat = pixels.reshape(2, 5, 16, 3)
    mean, std = flat.mean(axis=-2, keepdims=True), flat.std(axis=-2, keepdims=True, ddof=1)
    expected = ((flat - mean) / (std + 1e-6)).transpose(0, 1, 3, 2).reshape(2, 5, 48)
    found = normalize_pixels(*tensors(pixels.reshape(2, 5, 48)), "channel").numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.reshape(2, 5, 3, 16).std(axis=-1, ddof=1), 1, rtol=1e-4)


@pytest.mark.parametrize("kind", ["none", "layernorm", "patch", "channel"])
def test_denormalization_is_the_inverse(pixels, kind):
    (flat,) = tensors(pixels.reshape(2, 5, 48))
    back = denormalize_pixels(normalize_pixels(flat, kind), flat, kind)
    np.testing.assert_allclose(back.numpy(), flat.numpy(), rtol=1e-5, atol=1e-5)
    # The statistics are those of the patches given, and nothing else of them matters.
    moved = denormalize_pixels(normalize_pixels(flat, kind), 2 * flat + 1, kind)
    expected = flat if kind == "none" else 2 * flat + 1
    np.testing.assert_allclose(moved.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_the_eps_keeps_flat_patches_finite():
    flat = paddle.full([1, 1, 48], 0.5)
    for kind in ("layernorm", "patch", "channel"):
        assert not normalize_pixels(flat, kind).numpy().any()


def test_a_patch_is_row_column_channel():
    """Pixel targets are cut as the network's patches are, so that a channel can be told in them."""
    image = np.zeros((1, 3, 4, 4), np.float32)
    image[0, 1] = 1 + np.arange(16).reshape(4, 4)
    (patches,) = normalize_pixels(patchify(paddle.to_tensor(image), 4), "none").numpy()
    np.testing.assert_array_equal(patches[0].reshape(4, 4, 3)[..., 1], image[0, 1])
    channels = normalize_pixels(patchify(paddle.to_tensor(image), 4), "channel").numpy()[0, 0].reshape(3, 16)
    assert not channels[[0, 2]].any()
    assert (np.diff(channels[1]) > 0).all()


@pytest.mark.parametrize("name", ["soft_target_ce", "label_smoothing_ce", "ce"])
def test_cross_entropies_and_their_gradients_are_timms(golden, name):
    recorded = golden("mae/mixup_losses")
    labels = paddle.to_tensor(recorded["input/target"])
    targets = paddle.to_tensor(recorded["output/mixup_target_0"])
    logits = paddle.to_tensor(recorded["input/logits"], stop_gradient=False)
    loss = {
        "soft_target_ce": lambda: soft_target_cross_entropy(logits, targets),
        "label_smoothing_ce": lambda: label_smoothing_cross_entropy(logits, labels, recorded.meta["smoothing"]),
        "ce": lambda: label_smoothing_cross_entropy(logits, labels, smoothing=0.0),
    }[name]()
    assert loss.shape == []
    loss.backward()
    np.testing.assert_allclose(loss.item(), recorded[f"output/{name}"], rtol=1e-5)
    np.testing.assert_allclose(logits.grad.numpy(), recorded[f"grad/{name}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_a_soft_target(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((5, 7)), rng.integers(0, 7, 5)
    soft = np.eye(7)[labels] * (1 - smoothing) + smoothing / 7
    expected = -(soft * np.log(softmax(logits))).sum(axis=-1).mean()
    actual = label_smoothing_cross_entropy(tensors(logits)[0], paddle.to_tensor(labels), smoothing)
    np.testing.assert_allclose(actual.item(), expected, rtol=1e-5)
    np.testing.assert_allclose(soft_target_cross_entropy(*tensors(logits, soft)).item(), expected, rtol=1e-5)
