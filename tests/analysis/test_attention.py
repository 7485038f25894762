"""Attention maps, rollout and pictures against MAE-priv's recordings, and properties of the corrected rollout."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import pytest
from paddle import nn

from plsc_mae import weights
from plsc_mae.analysis.attention import (
    attention_maps,
    category_attention,
    gradient_rollout,
    literal_gradients,
    patch_relevance,
    rollout,
)
from plsc_mae.analysis.pictures import overlay, resize_map
from plsc_mae.errors import ConfigError
from plsc_mae.models.classifier import BatchNorm, ImageClassifier
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
    """Return the recorded network as our encoder, and its norm and head."""
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
    """The original divides 0 by 0; our map is 0."""
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
    """Tolerance as for all gradients: 1e-3 relative and 1e-4 of the maximum."""
    encoder, head = classifier
    with record_attention() as recorded:
        logits = head(encoder.forward_features(paddle.to_tensor(case["input/images"])))
    for layer in recorded:
        layer.retain_grads()
    logits[0, category].backward()
    for i, layer in enumerate(recorded):
        expected = case[f"input/truegrad_cat{category}_{i}"]
        np.testing.assert_allclose(layer.grad.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("category", [0, 3])
def test_literal_gradients_are_those_of_the_originals_hooks(case, layers, category):
    """Tolerances 1e-3 and 1e-4, because the reference is computed from recorded, rounded gradients."""
    true = [case[f"input/truegrad_cat{category}_{i}"][0] for i in range(DEPTH)]
    for i, gradient in enumerate(literal_gradients(layers, true)):
        expected = case[f"input/hookgrad_cat{category}_{i}"][0]
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.fixture
def whole(case, classifier) -> ImageClassifier:
    """Return the recorded network as a classifier."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": DEPTH, "num_heads": 4, "mlp_ratio": 2.0}
    options = {"k_bias": False, "positions": "learned", "global_pool": False, "fc_norm": True, "num_classes": 7}
    model = ImageClassifier(**sizes, **options)
    model.encoder.set_state_dict(classifier[0].state_dict())
    params = case.group("param")
    model.fc_norm.set_state_dict({name: params[f"fc_norm.{name}"] for name in ("weight", "bias")})
    model.head.set_state_dict({"weight": params["head.weight"].T, "bias": params["head.bias"]})
    model.eval()
    return model


@pytest.mark.parametrize("frozen", [False, True])
def test_pictures_of_a_category_are_the_originals(case, whole, frozen):
    """From image to map, also with frozen parameters; tolerance 1e-3 of the map's maximum, as for gradients."""
    for parameter in whole.parameters():
        parameter.stop_gradient = frozen
    image = paddle.to_tensor(case["input/images"][:1])
    for category in (0, 3):
        found = category_attention(whole, image, category)
        gradients = literal_gradients(found.attentions, found.gradients)
        rolled = gradient_rollout(found.attentions, gradients, literal=True)
        expected = np.nan_to_num(case[f"output/gradrollout_cat{category}_0.9"])
        np.testing.assert_allclose(patch_relevance(rolled, GRID), expected, atol=1e-3)
    with paddle.no_grad():
        probabilities = nn.functional.softmax(whole(image))[0].numpy()
    best = category_attention(whole, image)
    assert best.category == probabilities.argmax()
    np.testing.assert_allclose(best.probability, probabilities.max(), rtol=1e-5)
    assert all(parameter.stop_gradient == frozen for parameter in whole.parameters())
    assert all(parameter.grad is None for parameter in whole.parameters() if frozen)


@pytest.mark.parametrize("probe", ["standard", "attentive"])
def test_gradients_of_probes_are_differences(probe, monkeypatch):
    """Compare with a central difference in float64, whose step of 1e-5 errs by about 1e-7.

    The batch norm rounds to float32, so the difference is taken of its input: in evaluation the batch norm and the
    linear layer after it are linear. The gradient is rounded there as well, which shows as 6e-6 of a small one.
    """
    paddle.seed(0)
    model = ImageClassifier(3, img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, probe=probe)
    for parameter in model.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.3)
    model.to(dtype="float64").eval()
    linear = model.head[1] if probe == "standard" else model.head
    image = paddle.randn([1, 3, 16, 16]).astype("float64")
    found = category_attention(model, image, 1)
    assert [layer.shape for layer in found.gradients] == [(2, 5, 5)] * 2

    (norm,) = (layer for layer in model.sublayers() if isinstance(layer, BatchNorm))
    softmax, features = nn.functional.softmax, []
    norm.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].numpy()[0]))
    for amount in (1e-5, -1e-5):
        shift = paddle.zeros([1, 2, 5, 5], "float64")
        shift[0, 1, 2, 3] = amount
        shifts = iter([shift])
        monkeypatch.setattr(nn.functional, "softmax", lambda x, axis, s=shifts: softmax(x, axis=axis) + next(s, 0.0))
        model(image)
    assert features[0].dtype == np.float64
    slope = linear.weight.numpy()[:, 1] / np.sqrt(norm.running_var.numpy() + norm.epsilon)
    expected = (features[0] - features[1]) @ slope / 2e-5
    np.testing.assert_allclose(found.gradients[0][1, 2, 3], expected, rtol=1e-4)


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


def test_without_the_residual_path_rows_have_what_came_by_attention(layers):
    """`residual=False` keeps the class token's row of patches and removes the residual path of the patches."""
    gradients = [np.random.default_rng(i).standard_normal(layer.shape) * 1e-3 for i, layer in enumerate(layers)]
    for literal in (False, True):
        options = {"discard_ratio": 0.5, "literal": literal}
        whole = gradient_rollout(layers, gradients, **options)
        rolled = gradient_rollout(layers, gradients, **options, residual=False)
        np.testing.assert_array_equal(patch_relevance(rolled, GRID), patch_relevance(whole, GRID))
        np.testing.assert_array_equal((whole - rolled) * (1 - np.eye(17)), 0.0)
        assert patch_relevance(whole, GRID, "mean").min() > 0.99  # almost uniform
        assert patch_relevance(rolled, GRID, "mean").min() < 0.9
    silent = gradient_rollout(layers, [-np.ones_like(layer) for layer in layers], residual=False)
    np.testing.assert_array_equal(silent, np.zeros((17, 17)))


def test_the_corrected_rollout_is_the_product_of_its_layers(layers):
    """Without discarding, the paper's formula applies: 0.5 A + 0.5 I, whose rows sum to one."""
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
    registers = patch_relevance(
        attention[0], (2, 2), "mean", registers=2
    )  # 7 tokens: class token, 2 registers, 4 patches
    np.testing.assert_allclose(registers.flatten(), (x := attention[0, 3:, 3:].mean(axis=0)) / x.max())
    np.testing.assert_array_equal(patch_relevance(np.zeros((7, 7)), (2, 3)), np.zeros((2, 3)))
    with pytest.raises(ConfigError, match="the network has no class token; take the mean"):
        patch_relevance(attention[0, 1:, 1:], (2, 3), "cls")
    with pytest.raises(ValueError, match="2 x 3 patches"):
        patch_relevance(np.ones((9, 9)), (2, 3), "mean")


def test_the_overlay_is_the_originals(case):
    """Tolerances of the recording: 1e-5 for resizing, 1 level for colors."""
    relevance = case["output/rollout_mean_0.9"]
    resized = resize_map(relevance, (40, 48))
    np.testing.assert_allclose(resized, case["output/rollout_mean_0.9_resized"], atol=1e-5)
    drawn = overlay(case["input/overlay_bgr"][:, :, ::-1], relevance)
    expected = case["output/overlay_bgr"][:, :, ::-1].astype(int)
    assert np.abs(drawn.astype(int) - expected).max() <= 1
