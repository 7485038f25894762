"""The context autoencoder beyond the golden cases: initialization, masks, positions, the averaged encoder, counts."""

from __future__ import annotations

import json
import math

import numpy as np
import paddle
import pytest

import plsc_mae
from plsc_mae import weights
from plsc_mae.errors import ConfigError
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.layers import CrossAttention
from plsc_mae.models.pos_embed import sincos_2d
from plsc_mae.optim import weight_decay_groups

pytestmark = pytest.mark.compat
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
TINY |= {"decoder_embed_dim": 24, "regressor_depth": 2, "num_decoder_self_attention": 2, "decoder_num_heads": 4}
TINY |= {"decoder_num_classes": 16}
EQUAL_WIDTHS = {**TINY, "decoder_embed_dim": 32}
TRUNCATED_STD = 0.0107912  # of N(0, 0.02^2) cut at one standard deviation: 0.02 sqrt(1 - 2 phi(1) / erf(sqrt(1/2)))


@pytest.fixture(autouse=True)
def seeded():
    paddle.seed(0)


@pytest.fixture(scope="module")
def named():
    """The named network of a size, made once."""
    models: dict[str, ContextAutoencoder] = {}

    def make(size: str) -> ContextAutoencoder:
        if size not in models:
            paddle.seed(0)
            width = {"decoder_embed_dim": 1024, "decoder_num_heads": 16} if size == "large" else {}
            models[size] = plsc_mae.create_model(f"cae_{size}_patch16_224_8k_vocab", **width)
        return models[size]

    yield make
    models.clear()


def batch(hidden: int = 6, images: int = 2, size: tuple[int, int] = (32, 32)):
    """Random images of 8x8 patches and masks that hide so many of them."""
    rng = np.random.default_rng(3)
    patches = size[0] * size[1] // 64
    mask = np.stack([rng.permutation(patches) < hidden for _ in range(images)])
    return paddle.to_tensor(rng.standard_normal((images, 3, *size), np.float32)), paddle.to_tensor(mask)


def values(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def test_names():
    assert plsc_mae.list_models("cae*_8k_vocab") == [
        f"cae_{size}_patch16_224_8k_vocab" for size in ("base", "large", "small", "tiny")
    ]


@pytest.mark.once
@pytest.mark.long
def test_initialization_has_the_originals_statistics(named, root):
    """Two samples of one distribution: means, standard deviations and extremes differ by what n numbers allow.

    A mean has standard error std / sqrt(n) and, for these flat distributions (kurtosis below 2), a standard deviation
    one below 0.5 std / sqrt(n); 5 of the difference of two are allowed. The largest of n numbers misses the edge b of
    its distribution by less than 30 * 2 b / n, but for a chance below 1e-9.
    """
    recorded = json.loads((root / "tests/golden/cae/init_stats.json").read_text())
    recorded, model = recorded["cae_base_patch16_224_8k_vocab"], named("base")
    stats = {
        name: np.array([value.mean(), value.std(), value.min(), value.max()]) for name, value in values(model).items()
    }
    found = weights.export(model, "cae", stats)
    assert set(found) == {name for name in recorded if not name.startswith("alignment_encoder.")}
    for name, numbers in found.items():
        mean, std, low, high = (recorded[name][key] for key in ("mean", "std", "min", "max"))
        n, edge = math.prod(recorded[name]["shape"]), max(-low, high)
        drawn = std > 0 and not name.endswith("pos_embed")
        allowed = [7 * std / n**0.5, 3.5 * std / n**0.5, 60 * edge / n, 60 * edge / n] if drawn else [2e-6] * 4
        assert (np.abs(numbers - [mean, std, low, high]) <= allowed).all(), f"{name}: {numbers}"


def test_rescale_init_keeps_the_normal_weights_and_shrinks_residual_branches():
    model = ContextAutoencoder(**{**TINY, "embed_dim": 64, "depth": 3, "decoder_embed_dim": 96}, rescale_init=True)
    bound = 64**-0.5  # PyTorch's default of a linear layer, which the original leaves to the bridge
    for name, value in values(model).items():
        if name in ("bridge.weight", "bridge.bias"):
            assert 0.9 * bound < np.abs(value).max() <= bound
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.15), name
        elif name.endswith(".bias") or name.endswith("_bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        elif name.endswith(".weight"):
            scale = 1.0
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                scale /= (2 * (int(name.split("blocks.")[1][0]) + 1)) ** 0.5
            assert 0.97 * 0.02 * scale < np.abs(value).max() <= 0.02 * scale * (1 + 1e-6), name
            assert value.std() == pytest.approx(TRUNCATED_STD * scale, rel=0.04), name


def test_rescale_init_changes_linear_layers_only():
    shared = ("mask_token", "encoder.cls_token", "encoder.patch_embed.proj.weight")
    rescaled, plain = (values(ContextAutoencoder(**TINY, rescale_init=flag)) for flag in (True, False))
    assert all(np.abs(state[name]).max() <= 0.02 for state in (rescaled, plain) for name in shared)
    assert np.abs(plain["decoder.head.weight"]).max() > 0.2  # xavier-uniform: sqrt(6 / (24 + 16))
    assert np.abs(rescaled["decoder.head.weight"]).max() <= 0.02


def test_masks_must_hide_equally_many_patches():
    model, (images, mask) = ContextAutoencoder(**TINY), batch()
    uneven = mask.numpy()
    uneven[1, np.flatnonzero(uneven[1])[0]] = False
    with pytest.raises(ValueError, match=r"the same number of patches, got \[6, 5\]"):
        model(images, paddle.to_tensor(uneven))


@pytest.mark.parametrize("hidden", [0, 16])
def test_something_must_be_hidden_and_something_visible(hidden):
    model, (images, _) = ContextAutoencoder(**TINY), batch()
    mask = paddle.to_tensor(np.full([2, model.encoder.num_patches], hidden > 0))
    with pytest.raises(ValueError, match="at least one patch must be hidden and one visible"):
        model(images, mask)


def test_other_sizes_are_told():
    model, (images, mask) = ContextAutoencoder(**TINY), batch()
    with pytest.raises(ValueError, match=r"the mask has shape \[2, 9\], the images \[2, 16\] patches"):
        model(images, mask[:, :9])
    side = images.shape[2] + 8
    larger = paddle.zeros([2, 3, side, side])
    patches = (side // model.patch_size) ** 2
    wide = paddle.to_tensor(np.arange(patches)[None].repeat(2, 0) < 6)
    with pytest.raises(ValueError, match=rf"16 patches, and got {patches} patches; .*img_size"):
        model(larger, wide)
    with pytest.raises(ValueError, match="cannot be cut into patches"):
        model(paddle.zeros([2, 3, side + 1, side]), wide)


@pytest.mark.parametrize("sizes", [TINY, EQUAL_WIDTHS], ids=["bridged", "equal widths"])
def test_telling_the_number_of_hidden_patches_changes_nothing(sizes):
    model, (images, mask) = ContextAutoencoder(**sizes), batch()
    for told, read in zip(model(images, mask, 6), model(images, mask), strict=True):
        np.testing.assert_array_equal(told.numpy(), read.numpy())


def test_rectangles():
    model = ContextAutoencoder(**{**TINY, "img_size": (16, 32)})
    images, mask = batch(hidden=3, size=(16, 32))
    out = model(images, mask)
    assert [list(tensor.shape) for tensor in out] == [[6, 16], [2, 3, 24], [2, 3, 24], [2, 1 + 5, 32]]
    assert list(model.forward_features(images).shape) == [2, 1 + 8, 32]
    for table in (model.encoder.pos_embed, model.rd_pos_embed):
        # As in the original, entry k of an h x w grid encodes (k // h, k % h), which is (row, column) on squares only.
        places = table.numpy()[0, 1:].reshape(4, 2, -1)
        rows, columns = np.split(places, 2, axis=-1)
        assert (rows == rows[:, :1]).all()
        assert (columns == columns[:1]).all()
        assert np.abs(rows[0] - rows[1]).max() > 0.5


def position_gradient(sizes) -> tuple[ContextAutoencoder, np.ndarray, np.ndarray]:
    """Gradient of a learned table's 1 + L rows, in size, and the mask of the one image that caused it."""
    model, (images, mask) = ContextAutoencoder(**sizes, abs_pos_emb=True), batch(images=1)
    model(images, mask).logits.square().sum().backward()
    return model, np.abs(model.encoder.pos_embed.grad.numpy()[0]).max(axis=-1), mask.numpy()[0]


def test_learned_positions_are_shared_with_regressor_and_decoder_where_widths_agree():
    model, gradient, _ = position_gradient(EQUAL_WIDTHS)
    assert (gradient > 0).all()
    assert not any("rd_pos_embed" in name for name in model.state_dict())
    assert "encoder.pos_embed" in dict(model.named_parameters())
    assert np.abs(model.encoder.pos_embed.numpy()).max() <= 0.02


def test_learned_positions_of_a_bridged_encoder_are_its_own():
    model, gradient, hidden = position_gradient(TINY)
    assert (gradient[1:][~hidden] > 0).all()
    assert not gradient[1:][hidden].any()
    fixed = sincos_2d(24, (4, 4), class_token=True, row_first=True)
    np.testing.assert_allclose(model.rd_pos_embed.numpy()[0], fixed, atol=1e-6)
    assert "rd_pos_embed" not in dict(model.named_parameters())


def test_sin_cos_positions_are_saved_and_never_trained():
    model = ContextAutoencoder(**TINY)
    assert {"encoder.pos_embed", "rd_pos_embed"} <= set(model.state_dict())
    assert not {"encoder.pos_embed", "rd_pos_embed"} & set(dict(model.named_parameters()))


def test_without_decoder_blocks_the_head_alone_predicts():
    model, (images, mask) = ContextAutoencoder(**{**TINY, "num_decoder_self_attention": 0}), batch()
    assert [name for name in model.state_dict() if name.startswith("decoder.")] == [
        "decoder.head.weight",
        "decoder.head.bias",
    ]
    out, head = model(images, mask), model.decoder.head
    expected = out.latent.numpy().reshape(12, 24) @ head.weight.numpy() + head.bias.numpy()
    np.testing.assert_allclose(out.logits.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_averaged_encoder_moves_when_told_and_only_then():
    model, (images, mask) = ContextAutoencoder(**TINY, dual_path_ema=0.75, abs_pos_emb=True), batch()
    averaged, encoder = dict(model.alignment_encoder.named_parameters()), dict(model.encoder.named_parameters())
    assert set(averaged) == set(encoder)
    start = {name: param.numpy() for name, param in averaged.items()}
    for name, param in encoder.items():
        np.testing.assert_array_equal(start[name], param.numpy())
        param.set_value(param + 1.0)
    for mode in (model.train, model.eval):
        mode()
        model(images, mask)
        assert all((param.numpy() == start[name]).all() for name, param in averaged.items())
    model.update_alignment()
    for name, param in averaged.items():
        np.testing.assert_allclose(param.numpy(), start[name] + 0.25, rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_averaged_encoder_makes_the_target_and_nothing_else():
    model, (images, mask) = ContextAutoencoder(**TINY, dual_path_ema=0.75), batch()
    model.eval()
    before = [tensor.numpy() for tensor in model(images, mask)]
    gamma = model.alignment_encoder.blocks[0].gamma_1
    gamma.set_value(gamma * 50)
    after = [tensor.numpy() for tensor in model(images, mask)]
    assert [(a == b).all() for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_the_averaged_encoder_is_saved_but_not_trained():
    model, (images, mask) = ContextAutoencoder(**TINY, dual_path_ema=0.75), batch()
    names = [name for name in model.state_dict() if name.startswith("alignment_encoder.")]
    assert len(names) == len(model.encoder.state_dict())
    trained = {name for group in weight_decay_groups(model.named_parameters(), 0.05) for name in group.names}
    assert "encoder.norm.weight" in trained
    assert not trained & set(names)
    out = model(images, mask)
    (out.logits.sum() + (out.latent - out.latent_target).square().sum()).backward()
    assert all(param.stop_gradient and param.grad is None for param in model.alignment_encoder.parameters())


def test_without_a_decay_there_is_no_second_encoder():
    model = ContextAutoencoder(**TINY)
    before = values(model)
    assert not any(name.startswith("alignment_encoder") for name in before)
    model.update_alignment()
    assert all((value == before[name]).all() for name, value in values(model).items())


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_drop_path_acts_on_the_target_in_training(decay):
    model, (images, mask) = ContextAutoencoder(**TINY, drop_path=0.5, dual_path_ema=decay), batch(images=8)
    draws = [model(images, mask).latent_target.numpy() for _ in range(2)]
    assert np.abs(draws[0] - draws[1]).max() > 1e-3
    model.eval()
    draws = [model(images, mask).latent_target.numpy() for _ in range(2)]
    np.testing.assert_array_equal(*draws)


def test_no_gradient_goes_through_the_target():
    model, (images, mask) = ContextAutoencoder(**TINY), batch()
    out = model(images, mask)
    assert out.latent_target.stop_gradient
    assert not out.latent.stop_gradient


@pytest.mark.once
@pytest.mark.parametrize(
    ("size", "hidden", "forward", "training"),
    [
        # The bridge is run forward and backward for visible patches, and forward only for the target's.
        ("tiny", 98, 8.03, 22.87),
        ("tiny", 75, 6.65, 19.00),
        ("base", 98, 24.21, 55.23),
        ("base", 75, 22.84, 55.18),
        pytest.param("large", 98, 72.81, 157.37, marks=pytest.mark.slow),
        pytest.param("large", 75, 70.48, 164.66, marks=pytest.mark.slow),
    ],
)
def test_multiply_accumulates(named, size, hidden, forward, training):
    """Linear layers and attention products, in 1e9 for an image, to the digits given: counted on the original.

    Its encoder has the class token and embeds all patches. Large is meant with a decoder of its own width.
    """
    student, target = named(size).forward_macs(hidden)
    assert (student + target) / 1e9 == pytest.approx(forward, abs=0.005)
    assert (3 * student + target) / 1e9 == pytest.approx(training, abs=0.005)


@pytest.mark.once
def test_multiply_accumulates_of_the_parts_of_vit_base(named):
    model = named("base")
    parts = {
        10.75: model.encoder.forward_macs(1 + 196 - 75),
        6.68: model.forward_macs(75)[1],
        2.78: sum(block.macs(75, 196) for block in model.regressor.blocks),
        2.16: sum(block.macs(75) for block in model.decoder.blocks),
        0.47: 75 * model.decoder.head.weight.size,
    }
    for expected, found in parts.items():
        assert found / 1e9 == pytest.approx(expected, abs=0.005)
    assert sum(parts.values()) == sum(model.forward_macs(75))


def test_heads_that_do_not_divide_the_width():
    """12 heads of a width of 1024 are 85 wide, as in the original, and 1020 is what they project to."""
    sizes = {**TINY, "decoder_embed_dim": 1024, "decoder_num_heads": 12, "regressor_depth": 1}
    model = ContextAutoencoder(**{**sizes, "num_decoder_self_attention": 1, "mlp_ratio": 0.25})
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    cross, own = "regressor.blocks.0.cross_attn", "decoder.blocks.0.attn"
    assert {shapes[f"{cross}.{part}.weight"][1] for part in "qkv"} == {1020}
    assert shapes[f"{cross}.q_bias"] == shapes[f"{own}.v_bias"] == [1020]
    assert shapes[f"{cross}.proj.weight"] == shapes[f"{own}.proj.weight"] == [1020, 1024]
    assert shapes[f"{own}.qkv.weight"] == [1024, 3060]
    out = model(*batch())
    assert list(out.latent.shape) == [2, 6, 1024]
    assert np.isfinite(out.logits.numpy()).all()


def test_cross_attention_by_hand():
    attn, rng = CrossAttention(8, 3), np.random.default_rng(0)  # heads of 2
    q, k, v = (rng.standard_normal((1, count, 6), np.float32) for count in (4, 5, 5))
    heads = []
    for head in range(3):
        columns = slice(2 * head, 2 * head + 2)
        scores = np.exp(q[0, :, columns] @ k[0, :, columns].T / 2**0.5)
        heads.append(scores / scores.sum(axis=-1, keepdims=True) @ v[0, :, columns])
    expected = np.concatenate(heads, axis=-1) @ attn.proj.weight.numpy() + attn.proj.bias.numpy()
    found = attn(*(paddle.to_tensor(x) for x in (q, k, v))).numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 230}, "input_size 230 is not a multiple of patch_size 16; use 224 or 240"),
        ({"num_heads": 7}, "embed_dim 192 must be a multiple of .* 7"),
        ({"decoder_embed_dim": 30}, r"decoder_embed_dim 30 must be a multiple of 4 and no less than decoder_num_heads"),
        ({"decoder_embed_dim": 8}, r"decoder_embed_dim 8 must be .* no less than decoder_num_heads \(12\)"),
        ({"decoder_depth": 3}, "has no argument 'decoder_depth'"),
    ],
)
def test_sizes_that_do_not_fit_are_told(arguments, message):
    with pytest.raises(ConfigError, match=message):
        plsc_mae.create_model("cae_tiny_patch16_224_8k_vocab", **arguments)
