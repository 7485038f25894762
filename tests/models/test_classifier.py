"""Classifiers beyond the golden cases: names, sizes, initialization, batch norm, errors."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

import plsc_mae
from plsc_mae.errors import ConfigError
from plsc_mae.models.classifier import BatchNorm, ImageClassifier
from plsc_mae.models.rel_pos_bias import relative_position_index
from plsc_mae.optim import vit_layer

pytestmark = pytest.mark.compat
TABLE, KINDS = "rel_pos_bias.relative_position_bias_table", ("weight", "bias")
TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "overrides", "count"),
    [
        ("vit_base_patch16", {}, 86_567_656),
        ("maevit_base_patch16", {}, 86_567_656),
        ("cae_base_patch16_224", {}, 86_530_984),
        ("cae_base_patch16_224", {"relative_positions": "none"}, 86_425_576),
        ("cae_base_patch16_384", {}, 86_744_104),
        ("cae_small_patch16_224", {}, 22_085_032),
        ("cae_tiny_patch16_224", {"relative_positions": "none"}, 5_681_896),
    ],
)
def test_published_sizes(create_declared, name, overrides, count):
    model = create_declared(name, **overrides)
    assert sum(p.size for p in model.parameters() if not p.stop_gradient) == count


PRIV = {"positions": "row first", "fc_norm": True}


@pytest.mark.parametrize(
    ("name", "overrides", "count"),
    [
        ("vit_small_patch16_224", {}, 21_970_024),
        ("vit_small_patch16_224", {**PRIV, "class_token": True, "global_pool": False}, 21_970_408),
        ("vit_base_patch16_224", {}, 86_406_376),
        ("vit_base_patch16_224", PRIV, 86_406_376),
        ("vit_base_patch16_224", {**PRIV, "class_token": True, "global_pool": False}, 86_407_144),
        ("vit_base_patch16_224", {"global_pool": False}, 86_406_376),
        ("vit_base_patch16_384", {}, 86_406_376),
        ("vit_large_patch16_224", {}, 304_099_304),
        ("vit_large_patch16_224", {**PRIV, "class_token": True, "global_pool": False}, 304_100_328),
        ("vit_large_patch16_384", {}, 304_099_304),
        ("vit_large_patch16_512", {}, 304_099_304),
    ],
)
def test_published_sizes_of_mae_priv_and_mae_pytorch(create_declared, name, overrides, count):
    model = create_declared(name, **overrides)
    assert sum(p.size for p in model.parameters() if not p.stop_gradient) == count


def test_relative_positions_of_a_small_grid():
    """Measured on the original for 4 x 4 patches: a table of 52 rows."""
    index = relative_position_index((4, 4))
    assert index.shape == (17, 17)
    assert index[0, 0] == 51
    assert set(index[0, 1:]) == {49}
    assert set(index[1:, 0]) == {50}
    assert index[1, 1:6].tolist() == [24, 23, 22, 21, 17]
    assert index[5, 1] == 31


def test_rectangles_have_their_relative_positions():
    index = relative_position_index((2, 3))
    patches = [(row, column) for row in range(2) for column in range(3)]
    seen = {}
    for i, a in enumerate(patches):
        for j, b in enumerate(patches):
            difference = (a[0] - b[0], a[1] - b[1])
            assert seen.setdefault(difference, index[1 + i, 1 + j]) == index[1 + i, 1 + j]
    assert sorted(seen.values()) == list(range(3 * 5))


def test_batch_norm_is_pytorchs():
    """Normalizes by the biased variance and follows the unbiased one, with weight 0.1 for the new batch."""
    x = np.random.default_rng(0).standard_normal((6, 3), np.float32) * 2 + 1
    norm = BatchNorm(3, 1e-6)
    out = norm(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(out, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-5)
    norm.eval()
    expected = (x - norm.running_mean.numpy()) / np.sqrt(norm.running_var.numpy() + 1e-6)
    np.testing.assert_allclose(norm(paddle.to_tensor(x)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_initialization():
    paddle.seed(0)
    model = ImageClassifier(**TINY, init_scale=0.001, rescale_init=True, relative_positions="per block", k_bias=False)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert state["encoder.blocks.0.attn.qkv.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert state["encoder.blocks.0.mlp.fc2.weight"].std() == pytest.approx(0.02 / 2**0.5, rel=0.1)
    assert state["encoder.blocks.1.attn.proj.weight"].std() == pytest.approx(0.02 / 4**0.5, rel=0.1)
    assert state["head.weight"].std() == pytest.approx(2e-5, rel=0.2)
    assert not state["encoder.blocks.1.attn.rel_pos_bias.relative_position_bias_table"].any()


def test_a_fresh_attentive_probe_is_the_originals(root):
    """Std of all weights of its blocks as in a fresh base network of Atten4Vis/CAE."""
    recorded = json.loads((root / "tests/golden/cae/init_stats.json").read_text())["cae_base_patch16_224_attentive"]
    paddle.seed(0)
    model = plsc_mae.create_model("cae_base_patch16_224", depth=1, probe="attentive")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    names = [name for name in recorded if name.startswith(("attentive_blocks.", "query_token", "head."))]
    assert len(names) == 16
    for name in names:
        assert state[name].std() == pytest.approx(recorded[name]["std"], rel=0.02, abs=1e-9), name
        assert state[name].mean() == pytest.approx(recorded[name]["mean"], abs=1e-4), name


@pytest.mark.parametrize("probe", ["none", "standard", "raw", "attentive", "attentive_no_parameter"])
def test_a_head_is_drawn_anew(probe):
    paddle.seed(0)
    model = ImageClassifier(**{**TINY, "num_classes": 100}, probe=probe)
    head = model.head[1] if probe == "standard" else model.head
    head.bias.set_value(paddle.ones_like(head.bias))
    before = model.encoder.patch_embed.proj.weight.numpy()
    model.reset_head(0.01)
    assert head.weight.numpy().std() == pytest.approx(0.01, rel=0.05)
    assert not head.bias.numpy().any()
    assert not head.weight.stop_gradient
    np.testing.assert_array_equal(model.encoder.patch_embed.proj.weight.numpy(), before)


ATTENTIVE = {"query_token"} | {
    f"attentive_blocks.{i}.{name}"
    for i in range(2)
    for name in (
        *(f"norm_{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")),
        *(f"cross_attn.{part}.weight" for part in ("q", "k", "v", "proj")),
        *("cross_attn.q_bias", "cross_attn.v_bias", "cross_attn.proj.bias"),
    )
}


@pytest.mark.parametrize(
    ("probe", "trained"),
    [
        ("standard", {"head.1.weight", "head.1.bias"}),
        ("raw", {"head.weight", "head.bias"}),
        ("attentive", {"head.weight", "head.bias"} | ATTENTIVE),
        ("attentive_no_parameter", {"head.weight", "head.bias"}),
    ],
)
def test_frozen_weights_have_no_gradient(probe, trained):
    paddle.seed(0)
    model = ImageClassifier(**TINY, probe=probe, global_pool=False, linear_depth=2, relative_positions="per block")
    assert {name for name, p in model.named_parameters() if not p.stop_gradient} == trained
    model(paddle.randn([3, 3, 16, 16])).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_attentive_blocks_are_gone_through_one_after_the_other():
    paddle.seed(0)
    model = ImageClassifier(**TINY, probe="attentive", linear_depth=3)
    model.query_token.set_value(paddle.randn([1, 1, 32]))
    model.eval()
    images = paddle.randn([2, 3, 16, 16])
    tokens = model.forward_features(images)
    query = model.query_token.expand([2, 1, 32])
    for block in model.attentive_blocks:
        query = block(query, tokens)
    np.testing.assert_allclose(model.pooled(images).numpy(), query[:, 0].numpy() / (1 + 1e-5) ** 0.5, rtol=1e-5)
    assert len(model.attentive_blocks) == 3


def test_attention_without_parameters():
    """By the formula, head by head in float64: the class token's softmax over all tokens weights these tokens."""
    paddle.seed(0)
    model = ImageClassifier(**TINY, probe="attentive_no_parameter")
    model.eval()
    images = paddle.randn([2, 3, 16, 16])
    tokens = model.forward_features(images).numpy().astype(np.float64)
    expected = []
    for head in np.split(tokens, 4, axis=2):
        logits = np.einsum("bd,bnd->bn", head[:, 0], head) * 8**-0.5
        weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        expected.append(np.einsum("bn,bnd->bd", weights, head))
    expected = np.concatenate(expected, axis=1) / (1 + 1e-5) ** 0.5
    np.testing.assert_allclose(model.pooled(images).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_token", [True, False])
def test_pooling_takes_all_patches_and_no_class_token(class_token):
    paddle.seed(0)
    model = ImageClassifier(**TINY, class_token=class_token)
    images = paddle.randn([2, 3, 16, 16])
    tokens = model.forward_features(images)
    assert tokens.shape[1] == 16 + class_token
    np.testing.assert_allclose(
        model.pooled(images).numpy(), model.fc_norm(tokens[:, -16:].mean(axis=1)).numpy(), rtol=1e-5, atol=1e-6
    )


def test_where_the_norm_is():
    names = {
        key: {name for name in ImageClassifier(**TINY, **options).state_dict() if "norm." in name}
        for key, options in {
            "mean": {},
            "token": {"global_pool": False},
            "token, after": {"global_pool": False, "fc_norm": True},
            "mean, before": {"fc_norm": False},
            "raw": {"probe": "raw"},
        }.items()
    }
    before, after = ({f"{norm}.weight", f"{norm}.bias"} for norm in ("encoder.norm", "fc_norm"))
    batch = {"fc_norm.running_mean", "fc_norm.running_var"}
    assert names == {"mean": after, "token": before, "token, after": after, "mean, before": before, "raw": batch}
    with pytest.raises(ConfigError, match="fc_norm has no effect with probe 'raw'"):
        ImageClassifier(**TINY, probe="raw", fc_norm=True)


def test_every_parameter_has_its_layer():
    """Embeddings 0, block i i + 1, the rest behind the blocks, shared relative positions and the query included."""
    options = [{"relative_positions": "per block"}, {"relative_positions": "shared"}, {"positions": "learned"}]
    options += [{"probe": "attentive"}, {"probe": "standard"}, {"global_pool": False, "layer_scale": 0.1}]
    layers = {}
    for arguments in options:
        for name, _ in ImageClassifier(**TINY, **arguments).named_parameters():
            layers.setdefault(vit_layer(name, 2), set()).add(name)
    assert layers[0] == {f"encoder.{n}" for n in ("cls_token", "pos_embed", *map("patch_embed.proj.{}".format, KINDS))}
    for i in (0, 1):
        assert all(name.startswith(f"encoder.blocks.{i}.") for name in layers[i + 1])
    assert f"encoder.blocks.1.attn.{TABLE}" in layers[2]
    behind = {"query_token", f"encoder.{TABLE}", *map("head.{}".format, KINDS), *map("head.1.{}".format, KINDS)}
    behind |= {f"{norm}.{kind}" for norm in ("encoder.norm", "fc_norm") for kind in KINDS}
    assert {name for name in layers[3] if not name.startswith("attentive_blocks.0.")} == behind


def test_an_unknown_argument_is_told_with_the_encoders():
    with pytest.raises(ConfigError, match=r"vit_base_patch16 has no argument 'depths'; it takes .*global_pool.*depth"):
        plsc_mae.create_model("vit_base_patch16", depths=3)
