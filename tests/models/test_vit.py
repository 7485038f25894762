"""The encoder's options beyond the golden cases: no class token, dropouts."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc_mae.errors import ConfigError
from plsc_mae.models.attention import attention, dropout
from plsc_mae.models.layers import patchify
from plsc_mae.models.vit import VisionTransformer

pytestmark = pytest.mark.compat
TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}


@pytest.fixture
def images():
    return paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32))


@pytest.mark.parametrize("positions", ["column first", "row first", "sinusoid", "learned", "none"])
def test_without_a_class_token_every_token_is_a_patch(images, positions):
    encoder = VisionTransformer(**TINY, positions=positions, class_token=False)
    assert encoder.forward_features(images).shape == [2, 16, 32]
    assert [x.shape for x in encoder.forward_layers(images)] == [[2, 16, 32]] * 3
    assert "cls_token" not in encoder.state_dict()
    saved = positions not in ("sinusoid", "none")
    assert ("pos_embed" in encoder.state_dict()) == saved
    if saved:
        assert encoder.pos_embed.shape == [1, 16, 32]


def test_visible_patches_keep_their_places_without_a_class_token(images):
    """Before the blocks, the tokens of visible patches are those of the whole image."""
    encoder = VisionTransformer(**TINY, positions="sinusoid", class_token=False)
    patches, ids = patchify(images, 4), paddle.to_tensor([[3, 1], [0, 15]])
    whole, visible = encoder._tokens(patches, None).numpy(), encoder._tokens(patches, ids).numpy()
    for i, row in enumerate(ids.numpy()):
        np.testing.assert_allclose(visible[i], whole[i, row], atol=1e-6)


def test_relative_positions_need_the_class_token():
    with pytest.raises(ConfigError, match="relative_positions 'shared' needs a class token"):
        VisionTransformer(**TINY, class_token=False, relative_positions="shared")


def test_dropout_keeps_the_mean():
    paddle.seed(0)
    x = dropout(paddle.ones([100, 100]), 0.25).numpy()
    assert set(np.unique(x).round(5)) == {0.0, np.float32(1 / 0.75).round(5)}
    assert (x == 0).mean() == pytest.approx(0.25, abs=0.02)


def test_attention_drops_softmax_weights():
    """With values of ones every output is the sum of what is kept, over the share that is kept."""
    paddle.seed(0)
    q, k = (paddle.randn([8, 4, 16, 8]) for _ in range(2))
    out = attention(q, k, paddle.ones([8, 4, 16, 1]), drop_rate=0.5).numpy()
    assert out.mean() == pytest.approx(1.0, abs=0.05)
    assert out.std() > 0.1
    np.testing.assert_allclose(attention(q, k, paddle.ones([8, 4, 16, 1])).numpy(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("rate", ["drop_rate", "attn_drop_rate"])
def test_dropouts_act_in_training_only(images, rate):
    paddle.seed(0)
    plain = VisionTransformer(**TINY)
    dropping = VisionTransformer(**TINY, **{rate: 0.5})
    dropping.set_state_dict(plain.state_dict())
    first, second = dropping.forward_features(images).numpy(), dropping.forward_features(images).numpy()
    assert np.abs(first - second).max() > 0.01
    dropping.eval()
    plain.eval()
    np.testing.assert_array_equal(dropping.forward_features(images).numpy(), plain.forward_features(images).numpy())


def test_places_of_dropout(images, monkeypatch):
    """Embedded tokens, then per block softmax weights, the projection of attention, the output of the MLP."""
    seen = []
    record = lambda x, rate: seen.append((list(x.shape), rate)) or x  # noqa: E731
    for module in ("attention", "layers", "vit"):
        monkeypatch.setattr(f"plsc_mae.models.{module}.dropout", record)
    VisionTransformer(**TINY, drop_rate=0.1, attn_drop_rate=0.2).forward_features(images)
    tokens = ([2, 17, 32], 0.1)
    assert seen == [tokens, *[([2, 4, 17, 17], 0.2), tokens, tokens] * 2]
