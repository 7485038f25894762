"""Attention maps, rollout and pictures against MAE-priv's recordings, and what the corrected rollout promises."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae import weights
from plsc_mae.analysis.attention import attention_maps, gradient_rollout, patch_relevance, rollout
from plsc_mae.analysis.heatmap import overlay, resize_map
from plsc_mae.models.layers import layer_norm, record_attention
from plsc_mae.models.vit import VisionTransformer

pytestmark = pytest.mark.compat
GRID, DEPTH = (4, 4), 4
# As recorded with the file, whose float32 noise is below 1e-6.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture
def case(golden):
    return golden("mae/priv_explain")


@pytest.fixture
def layers(case) -> list[np.ndarray]:
    return [case[f"input/attn{i}"][0] for i in range(DEPTH)]


@pytest.fixture
def classifier(case):
    """The recorded network as our encoder and, apart, its norm and head."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": DEPTH, "num_heads": 4, "mlp_ratio": 2.0}
    encoder = VisionTransformer(**sizes, k_bias=False, positions="learned", final_norm=False)
    params = case.group("param")
    linear = weights.convert.linear_weights(encoder)
    encoder.set_state_dict({name: params[name].T if name in linear else params[name] for name in encoder.state_dict()})
    encoder.eval()
    norm, head = layer_norm(48), nn.Linear(48, 7)
    norm.set_state_dict({"weight": params["fc_norm.weight"], "bias": params["fc_norm.bias"]})
    head.set_state_dict({"weight": params["head.weight"].T, "bias": params["head.bias"]})
    return encoder, lambda tokens: head(norm(tokens[:, 0]))


@pytest.mark.parametrize(
    ("fusion", "ratio", "layer"), list(itertools.product(["mean", "max", "min"], [0.9, 0.5, 0.0], [None, 1]))
)
def test_the_literal_rollout_is_the_originals(case, layers, fusion, ratio, layer):
    """Where the original divides 0 by 0, here all is 0."""
    rolled = rollout(layers, head_fusion=fusion, discard_ratio=ratio, layer_index=layer, literal=True)
    expected = case[f"output/rollout_{fusion}_{ratio}" + ("" if layer is None else f"_layer{layer}")]
    np.testing.assert_allclose(patch_relevance(rolled, GRID), np.nan_to_num(expected), **CLOSE)


@pytest.mark.parametrize("category", [0, 3])
def test_the_literal_gradient_rollout_is_the_originals(case, layers, category):
    gradients = [case[f"input/hookgrad_cat{category}_{i}"][0] for i in range(DEPTH)]
    rolled = gradient_rollout(layers, gradients, discard_ratio=0.9, literal=True)
    np.testing.assert_allclose(
        patch_relevance(rolled, GRID), np.nan_to_num(case[f"output/gradrollout_cat{category}_0.9"]), **CLOSE
    )


def test_maps_of_the_network_are_the_originals(case, classifier):
    maps = attention_maps(classifier[0], paddle.to_tensor(case["input/images"]))
    assert len(maps) == DEPTH
    for i, layer in enumerate(maps):
        np.testing.assert_allclose(layer, case[f"input/attn{i}"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("category", [0, 3])
def test_recorded_weights_have_the_originals_gradients(case, classifier, category):
    """1e-3 relative and 1e-4 of the maximum, as for all gradients."""
    encoder, head = classifier
    with record_attention() as recorded:
        logits = head(encoder.forward_features(paddle.to_tensor(case["input/images"])))
    for layer in recorded:
        layer.retain_grads()
    logits[0, category].backward()
    for i, layer in enumerate(recorded):
        expected = case[f"input/truegrad_cat{category}_{i}"]
        np.testing.assert_allclose(layer.grad.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_recording_changes_nothing_and_ends(case, classifier):
    images = paddle.to_tensor(case["input/images"])
    plain = classifier[0].forward_features(images).numpy()
    with record_attention() as outer:
        with record_attention() as inner:
            recorded = classifier[0].forward_features(images).numpy()
        assert (len(inner), len(outer)) == (DEPTH, 0)
    classifier[0].forward_features(images)
    assert (len(inner), len(outer)) == (DEPTH, 0)
    np.testing.assert_array_equal(recorded, plain)


def test_rows_of_the_corrected_rollout_sum_to_one(layers):
    for layer in (None, 1):
        rolled = rollout(layers, head_fusion="max", discard_ratio=0.9, layer_index=layer)
        np.testing.assert_allclose(rolled.sum(axis=1), 1.0, rtol=1e-12)
    gradients = [np.random.default_rng(i).standard_normal(layer.shape) for i, layer in enumerate(layers)]
    np.testing.assert_allclose(gradient_rollout(layers, gradients).sum(axis=1), 1.0, rtol=1e-12)


def test_the_corrected_rollout_is_the_product_of_its_layers(layers):
    """Without discarding, by the formula of the paper: 0.5 A + 0.5 I, whose rows sum to one already."""
    expected = np.eye(17)
    for layer in layers:
        expected = (0.5 * layer.astype(np.float64).mean(axis=0) + 0.5 * np.eye(17)) @ expected
    rolled = rollout(layers, head_fusion="mean", discard_ratio=0.0)
    np.testing.assert_allclose(rolled, expected, rtol=1e-5)  # rows of a float32 softmax sum to one within 1e-6
    literal = rollout(layers, head_fusion="mean", discard_ratio=0.9, literal=True)
    assert np.abs(literal - rollout(layers, head_fusion="mean", discard_ratio=0.9)).max() > 0.05


def test_maps_of_class_token_heads_and_of_mean_pooled_networks():
    attention = np.random.default_rng(0).random((3, 7, 7))  # 3 heads, 2 x 3 patches
    heads = patch_relevance(attention, (2, 3))
    assert heads.shape == (3, 2, 3)
    np.testing.assert_allclose(heads[1], attention[1, 0, 1:].reshape(2, 3) / attention[1, 0, 1:].max())
    pooled = patch_relevance(attention[0], (2, 3), "mean")
    np.testing.assert_allclose(pooled.flatten(), (x := attention[0, 1:, 1:].mean(axis=0)) / x.max())
    bare = patch_relevance(attention[0, 1:, 1:], (2, 3), "mean")  # a network without a class token
    np.testing.assert_allclose(bare, pooled)
    np.testing.assert_array_equal(patch_relevance(np.zeros((7, 7)), (2, 3)), np.zeros((2, 3)))
    for weights_, pool in ((attention[0, 1:, 1:], "cls"), (np.ones((9, 9)), "mean")):
        with pytest.raises(ValueError, match="do not go with 2 x 3 patches"):
            patch_relevance(weights_, (2, 3), pool)


def test_the_overlay_is_the_originals(case):
    """Resizing to 1e-5; colours to 1 level, as recorded with the file."""
    relevance = case["output/rollout_mean_0.9"]
    resized = resize_map(relevance, (40, 48))
    np.testing.assert_allclose(resized, case["output/rollout_mean_0.9_resized"], atol=1e-5)
    drawn = overlay(case["input/overlay_bgr"][:, :, ::-1], relevance)
    expected = case["output/overlay_bgr"][:, :, ::-1].astype(int)
    assert np.abs(drawn.astype(int) - expected).max() <= 1
