"""Classifiers beyond the golden cases: names, sizes, initialization, batch norm, errors."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import plsc_mae
from plsc_mae.errors import ConfigError
from plsc_mae.models.classifier import BatchNorm, ImageClassifier
from plsc_mae.models.rel_pos_bias import relative_position_index

pytestmark = pytest.mark.compat
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
def test_published_sizes(name, overrides, count):
    model = plsc_mae.create_model(name, **overrides)
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


def test_frozen_weights_have_no_gradient():
    model = ImageClassifier(**TINY, probe="standard", global_pool=False)
    model(paddle.ones([3, 3, 16, 16])).sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"head.1.weight", "head.1.bias"}


def test_an_unknown_argument_is_told_with_the_encoders():
    with pytest.raises(ConfigError, match=r"vit_base_patch16 has no argument 'depths'; it takes .*global_pool.*depth"):
        plsc_mae.create_model("vit_base_patch16", depths=3)
