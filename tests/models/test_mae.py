"""The masked autoencoder beyond the golden cases: names, sizes, initialization, errors."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

import plsc_mae
from plsc_mae.errors import ConfigError
from plsc_mae.models.mae import MaskedAutoencoder

pytestmark = pytest.mark.compat
TINY = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
TINY |= {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 4}


def test_names():
    assert plsc_mae.list_models("mae*_dec512d8b") == [
        "mae_vit_base_patch16_dec512d8b",
        "mae_vit_huge_patch14_dec512d8b",
        "mae_vit_large_patch16_dec512d8b",
    ]
    assert {"mae_vit_small_patch16", "mae_vit_tiny_patch16"} <= set(plsc_mae.list_models())


@pytest.mark.once
def test_multiply_accumulates_are_the_published_ones():
    # Counted with a FLOP counter on the original: 9.781 GMAC for one image of ViT-B/16 at ratio 0.75.
    assert plsc_mae.create_model("mae_vit_base_patch16").forward_macs(0.75) / 1e9 == pytest.approx(9.781, abs=1e-3)


def test_initialization_follows_the_original():
    paddle.seed(0)
    model = plsc_mae.create_model("mae_vit_tiny_patch16")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def uniform(name: str, bound: float) -> None:
        assert np.abs(state[name]).max() <= bound
        assert state[name].std() == pytest.approx(bound / 3**0.5, rel=0.03), name

    uniform("encoder.patch_embed.proj.weight", (6 / (192 + 768)) ** 0.5)  # as a [D, 3*P*P] matrix
    assert np.abs(state["encoder.patch_embed.proj.bias"]).max() <= 768**-0.5
    assert np.abs(state["encoder.patch_embed.proj.bias"]).max() > 0.9 * 768**-0.5
    uniform("encoder.blocks.3.attn.qkv.weight", (6 / (192 + 576)) ** 0.5)
    uniform("decoder.pred.weight", (6 / (512 + 768)) ** 0.5)
    assert state["decoder.mask_token"].std() == pytest.approx(0.02, rel=0.1)
    assert np.abs(state["decoder.mask_token"]).max() > 0.04  # no truncation at two standard deviations
    for name, value in state.items():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not value.any(), name
        if "norm" in name and name.endswith("weight"):
            assert (value == 1).all(), name


def test_rectangles_other_channels_and_loss_only():
    model = MaskedAutoencoder(img_size=(8, 16), in_chans=5, norm_pix_loss=True, **TINY)
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.standard_normal((2, 5, 8, 16), np.float32))
    noise = paddle.to_tensor(rng.random((2, 8), np.float32))
    whole, brief = model(images, noise), model(images, noise, loss_only=True)
    assert list(whole.pred.shape) == [2, 8, 80]
    assert brief.pred is None
    assert float(whole.loss) == pytest.approx(float(brief.loss), rel=1e-6)
    assert list(model.forward_features(images).shape) == [2, 9, 32]


def test_noise_is_drawn_when_not_given():
    model, images = MaskedAutoencoder(img_size=8, **TINY), paddle.ones([1, 3, 8, 8])
    paddle.seed(1)
    first = model(images, mask_ratio=0.5).mask.numpy()
    paddle.seed(1)
    assert (first == model(images, mask_ratio=0.5).mask.numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 230}, "input_size 230 is not a multiple of patch_size 16; use 224 or 240"),
        ({"num_heads": 7}, "embed_dim 192 must be a multiple of .* 7"),
        ({"decoder_embed_dim": 30, "decoder_num_heads": 3}, "decoder_embed_dim 30 must be a multiple of 4"),
        ({"embed_dims": 3}, "has no argument 'embed_dims'"),
    ],
)
def test_sizes_that_do_not_fit_are_told(arguments, message):
    with pytest.raises(ConfigError, match=message):
        plsc_mae.create_model("mae_vit_tiny_patch16", **arguments)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ConfigError, match="unknown model 'mae_vit_bas_patch16'; did you mean mae_vit_base_patch16"):
        plsc_mae.create_model("mae_vit_bas_patch16")


@pytest.mark.parametrize("entries", [9, 25])
def test_masks_of_another_grid_are_refused(entries):
    model = MaskedAutoencoder(img_size=16, **TINY)
    mask = paddle.to_tensor(np.tile(np.arange(entries) < 6, (2, 1)))
    with pytest.raises(ValueError, match=rf"the mask has shape \[2, {entries}\], the images \[2, 16\] patches"):
        model(paddle.zeros([2, 3, 16, 16]), mask=mask)
