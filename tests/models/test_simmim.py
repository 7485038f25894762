"""SimMIM's network against its float64 oracle, value by value and slope by slope, and its initialization."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

import plsc_mae
from plsc_mae.models.simmim import SimMIM, masked_l1
from plsc_mae.parity.capture import randomize, recorded_blocks
from plsc_mae.parity.oracle import simmim as oracle

SIZES = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 4}  # 2 x 3 patches
OPTIONS = oracle.SimMIMOptions(num_heads=4)
MASK = np.array([[1, 0, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1]], np.bool_)
TABLE = "encoder.rel_pos_bias.relative_position_bias_table"
TRUNCATED_STD = 0.010791  # of N(0, 0.02^2) cut at one standard deviation


@pytest.fixture
def model() -> SimMIM:
    network = SimMIM(**SIZES)
    randomize(network, 0)
    network.eval()
    return network


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 8, 12), np.float32)


def float64(network: SimMIM) -> dict[str, np.ndarray]:
    return {name: value.numpy().astype(np.float64) for name, value in network.state_dict().items()}


@pytest.mark.compat
def test_every_layer_and_the_loss_equal_the_oracle(model, images):
    """Float32 rounding of values up to 4 in a handful of products: below 1e-5."""
    expected = oracle.forward(float64(model), images.astype(np.float64), MASK, OPTIONS)
    given, mask = paddle.to_tensor(images), paddle.to_tensor(MASK)
    with recorded_blocks(model) as found:
        pred, latent = model(given, mask)
    target = model.target(given)
    found |= {"pred": pred, "latent": latent, "target": target, "loss": masked_l1(pred, target, mask, 3)}
    for name in set(expected) - {"mask"}:
        np.testing.assert_allclose(found[name].numpy(), expected[name], atol=1e-5, err_msg=name)


def test_every_gradient_equals_the_slope_of_the_oracle(model, images):
    """Along a direction of random signs; a float32 gradient and a difference over 2e-6 agree within 1e-5 of its norm.

    The signs of the errors are held, because the absolute value has kinks.
    """
    given, mask = paddle.to_tensor(images), paddle.to_tensor(MASK)
    masked_l1(model(given, mask).pred, model.target(given), mask, 3).backward()
    parameters, wide = float64(model), images.astype(np.float64)
    own = oracle.forward(parameters, wide, MASK, OPTIONS)
    signs = np.sign(own["pred"] - own["target"])

    def loss(values: dict[str, np.ndarray]) -> float:
        found = oracle.forward(values, wide, MASK, OPTIONS)
        return float(oracle.masked_mean(signs * (found["pred"] - found["target"]), found["mask"], 3))

    assert loss(parameters) == pytest.approx(float(own["loss"]), rel=1e-12)
    rng, step = np.random.default_rng(1), 1e-6
    for name, param in model.named_parameters():
        gradient, direction = param.grad.numpy(), rng.choice([-1.0, 1.0], param.shape)
        ahead, behind = (loss({**parameters, name: parameters[name] + sign * step * direction}) for sign in (1, -1))
        size = np.linalg.norm(gradient)
        assert size > 1e-6, name
        assert abs((ahead - behind) / (2 * step) - (gradient * direction).sum()) < 1e-5 * size * 4, name


def test_hidden_patches_are_not_seen(model, images):
    changed = images.copy()
    changed[0, :, :4, :4] += 3.0  # patch 0 of image 0, hidden
    mask = paddle.to_tensor(MASK)
    one, two = (model(paddle.to_tensor(x), mask).pred.numpy() for x in (images, changed))
    np.testing.assert_array_equal(one, two)


def test_the_loss_of_a_batch_is_the_mean_of_its_images():
    """Every image hides equally many pixels, so accumulated and distributed steps are those of the whole batch."""
    rng = np.random.default_rng(2)
    pred, target = (paddle.to_tensor(rng.standard_normal((4, 6, 48), np.float32)) for _ in range(2))
    mask = paddle.to_tensor(np.array([rng.permutation(6) < 4 for _ in range(4)]))
    whole = float(masked_l1(pred, target, mask, 3))
    parts = [float(masked_l1(pred[i : i + 1], target[i : i + 1], mask[i : i + 1], 3)) for i in range(4)]
    assert whole == pytest.approx(np.mean(parts), rel=1e-6)
    assert float(masked_l1(pred, target, paddle.zeros([4, 6], "bool"), 3)) == 0.0


def test_drawing_is_the_inverse_of_the_target(model, images):
    """A patch runs by channel, row, column, as the outputs of PixelShuffle."""
    given = paddle.to_tensor(images)
    target = model.target(given)
    np.testing.assert_array_equal(target[0, 4].numpy(), images[0, :, 4:8, 4:8].reshape(-1))  # second row, second column
    np.testing.assert_array_equal(model.draw(target).numpy(), images)


def test_a_mask_of_another_size_is_refused(model, images):
    with pytest.raises(ValueError, match=r"mask has shape \[2, 5\], the images \[2, 6\] patches"):
        model(paddle.to_tensor(images), paddle.to_tensor(MASK[:, :5]))


def test_names_and_published_size():
    names = [f"{size}_patch16_224" for size in ("base", "large", "small", "tiny")]
    assert plsc_mae.list_models("pretrain_simmim_*") == [f"pretrain_simmim_{name}" for name in names]
    assert plsc_mae.list_models("simmim_*") == [f"simmim_{name}" for name in names]
    with paddle.LazyGuard():
        model = plsc_mae.create_model("pretrain_simmim_base_patch16_224")
    assert sum(math.prod(param.shape) for param in model.parameters()) == 86_256_720


def test_initialization():
    """As microsoft/SimMIM: standard deviations of 64 x 64 numbers and more differ by less than 5 %."""
    network = SimMIM(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4)
    bound = 64**-0.5
    for name, value in float64(network).items():
        if name.startswith("decoder."):
            assert 0.9 * bound < np.abs(value).max() <= bound
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.15)
        elif name == TABLE or name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name or "gamma" in name:
            assert (value == np.float32(0.1 if "gamma" in name else 1.0)).all(), name
        else:
            scale = 1.0
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                scale /= (2 * (int(name.split("blocks.")[1][0]) + 1)) ** 0.5
            assert np.abs(value).max() <= 0.02 * scale * (1 + 1e-6), name
            if value.size > 1000:
                assert value.std() == pytest.approx(TRUNCATED_STD * scale, rel=0.05), name
