"""The oracle of SimMIM against results that can be worked out by hand, and its slopes against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plsc_mae.parity.oracle.layers import gelu
from plsc_mae.parity.oracle.simmim import (
    LOSS_EPS,
    SimMIMOptions,
    biased_attention,
    biased_block,
    forward,
    masked_l1,
    multistep_rate,
    relative_bias,
)

pytestmark = [pytest.mark.compat, pytest.mark.once]

SHARED = "encoder.rel_pos_bias.relative_position_bias_table"
PER_BLOCK = "encoder.blocks.{}.attn.rel_pos_bias.relative_position_bias_table"
CHANNELS, PATCH, DIM, HEADS, HIDDEN, ROWS, COLUMNS = 3, 2, 8, 2, 12, 2, 3
OPTIONS = SimMIMOptions(num_heads=HEADS)


def block_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    names = {
        "norm1.weight": (DIM,),
        "norm1.bias": (DIM,),
        "attn.qkv.weight": (DIM, 3 * DIM),
        "attn.q_bias": (DIM,),
        "attn.v_bias": (DIM,),
        "attn.proj.weight": (DIM, DIM),
        "attn.proj.bias": (DIM,),
        "norm2.weight": (DIM,),
        "norm2.bias": (DIM,),
        "mlp.fc1.weight": (DIM, HIDDEN),
        "mlp.fc1.bias": (HIDDEN,),
        "mlp.fc2.weight": (HIDDEN, DIM),
        "mlp.fc2.bias": (DIM,),
        "gamma_1": (DIM,),
        "gamma_2": (DIM,),
    }
    return {f"{prefix}.{name}": shape for name, shape in names.items()}


def network(depth: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw every parameter of a small network with a shared table."""
    pixels = CHANNELS * PATCH * PATCH
    shapes = {
        "encoder.cls_token": (1, 1, DIM),
        "encoder.mask_token": (1, 1, DIM),
        "encoder.patch_embed.proj.weight": (DIM, CHANNELS, PATCH, PATCH),
        "encoder.patch_embed.proj.bias": (DIM,),
        SHARED: ((2 * ROWS - 1) * (2 * COLUMNS - 1) + 3, HEADS),
        "encoder.norm.weight": (DIM,),
        "encoder.norm.bias": (DIM,),
        "decoder.weight": (DIM, pixels),
        "decoder.bias": (pixels,),
    }
    for i in range(depth):
        shapes |= block_shapes(f"encoder.blocks.{i}")
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0.1, 0.5, shape) for name, shape in shapes.items()}


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    """Two images of 2x3 patches, with three and two hidden ones."""
    images = np.random.default_rng(1).normal(size=(2, CHANNELS, ROWS * PATCH, COLUMNS * PATCH))
    return images, np.array([[1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0]], np.bool_)


def test_forward_names_its_layers_in_order(batch):
    expected = ["encoder.embed", "encoder.blocks.0", "encoder.blocks.1", "latent", "pred", "target", "mask", "loss"]
    assert list(forward(network(), *batch, OPTIONS)) == expected


def test_bias_of_a_row_of_two_patches():
    """Three differences -1, 0, 1, then class -> patch, patch -> class, class -> class."""
    bias = relative_bias(np.arange(6.0)[:, None], (1, 2))
    np.testing.assert_array_equal(bias[0], [[5, 3, 3], [4, 1, 0], [4, 2, 1]])


def test_bias_of_a_square_of_four_patches():
    """Query minus key: a row difference counts three entries, and the diagonal is the center, entry 4."""
    bias = relative_bias(np.arange(12.0)[:, None], (2, 2))
    patches = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(bias[0, 1:, 1:], patches)
    np.testing.assert_array_equal(bias[0, 0], [11, 9, 9, 9, 9])
    np.testing.assert_array_equal(bias[0, 1:, 0], [10, 10, 10, 10])


def test_attention_by_its_bias_alone():
    """Without queries the bias decides: log 3 gives a token three times the weight of the others."""
    width = 2
    parameters = {
        "qkv.weight": np.concatenate([np.zeros((width, 2 * width)), np.eye(width)], axis=1),
        "q_bias": np.zeros(width),
        "v_bias": np.array([0.0, 1.0]),
        "proj.weight": np.eye(width),
        "proj.bias": np.zeros(width),
    }
    x = np.array([[[5.0, 0.0], [1.0, 0.0]]])
    bias = np.array([[[math.log(3.0), 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(biased_attention(x, parameters, [bias], 1), [[[4.0, 1.0], [3.0, 1.0]]], atol=1e-12)


def test_block_against_loops_over_scalars():
    """The same block written without a single matrix product."""
    weights = {name.partition(".0.")[2]: value for name, value in network(depth=1).items() if ".0." in name}
    rng = np.random.default_rng(2)
    x, bias = rng.normal(size=(1, 3, DIM)), rng.normal(size=(HEADS, 3, 3))

    def norm(row: np.ndarray, name: str) -> list[float]:
        mean = sum(row) / DIM
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / DIM + 1e-6)
        scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return [(value - mean) / deviation * scale[d] + shift[d] for d, value in enumerate(row)]

    def product(row: list[float], matrix: np.ndarray, column: int) -> float:
        return sum(value * matrix[d, column] for d, value in enumerate(row))

    tokens = [norm(row, "norm1") for row in x[0]]
    size = DIM // HEADS
    out = x[0].copy()
    for i in range(3):
        mixed = []
        for d in range(DIM):
            head = d // size
            powers = []
            for j in range(3):
                score = bias[head, i, j]
                for e in range(head * size, (head + 1) * size):
                    query = product(tokens[i], weights["attn.qkv.weight"], e) + weights["attn.q_bias"][e]
                    score += query * product(tokens[j], weights["attn.qkv.weight"], DIM + e) / math.sqrt(size)
                powers.append(math.exp(score))
            values = [
                product(tokens[j], weights["attn.qkv.weight"], 2 * DIM + d) + weights["attn.v_bias"][d]
                for j in range(3)
            ]
            mixed.append(sum(p * v for p, v in zip(powers, values, strict=True)) / sum(powers))
        for d in range(DIM):
            attended = product(mixed, weights["attn.proj.weight"], d) + weights["attn.proj.bias"][d]
            out[i, d] += weights["gamma_1"][d] * attended
    for i in range(3):
        normed = norm(out[i].copy(), "norm2")
        hidden = [product(normed, weights["mlp.fc1.weight"], h) + weights["mlp.fc1.bias"][h] for h in range(HIDDEN)]
        active = gelu(np.array(hidden)).tolist()
        for d in range(DIM):
            transformed = product(active, weights["mlp.fc2.weight"], d) + weights["mlp.fc2.bias"][d]
            out[i, d] += weights["gamma_2"][d] * transformed
    np.testing.assert_allclose(biased_block(x, weights, [bias], OPTIONS)[0], out, rtol=1e-12)


def test_hidden_pixels_reach_the_target_and_not_the_prediction(batch):
    images, mask = batch
    first = forward(network(), images, mask, OPTIONS)
    changed = images.copy()
    changed[0, :, :PATCH, :PATCH] += 3.0  # patch 0 of image 0, hidden
    second = forward(network(), changed, mask, OPTIONS)
    np.testing.assert_array_equal(second["pred"], first["pred"])
    np.testing.assert_array_equal(second["target"][0, 0], first["target"][0, 0] + 3.0)
    assert second["loss"] != first["loss"]


def test_visible_pixels_reach_every_prediction_of_their_image(batch):
    images, mask = batch
    first = forward(network(), images, mask, OPTIONS)["pred"]
    changed = images.copy()
    changed[0, 0, 0, PATCH] += 1.0  # patch 1 of image 0, visible
    second = forward(network(), changed, mask, OPTIONS)["pred"]
    assert (np.abs(second[0] - first[0]).max(axis=-1) > 1e-6).all()
    np.testing.assert_array_equal(second[1], first[1])


def test_embedding_by_hand(batch):
    """A visible patch is its convolution, a hidden one the mask token, and the class token leads."""
    images, mask = batch
    parameters = network(depth=0)
    embedded = forward(parameters, images, mask, OPTIONS)["encoder.embed"]
    np.testing.assert_array_equal(embedded[:, 0], np.broadcast_to(parameters["encoder.cls_token"][0], (2, DIM)))
    np.testing.assert_array_equal(embedded[0, 3], parameters["encoder.mask_token"][0, 0])
    patch = images[0, :, PATCH:, :PATCH]  # patch 3: second row, first column
    kernel, bias = parameters["encoder.patch_embed.proj.weight"], parameters["encoder.patch_embed.proj.bias"]
    expected = [(kernel[d] * patch).sum() + bias[d] for d in range(DIM)]
    np.testing.assert_allclose(embedded[0, 4], expected, rtol=1e-12)


def test_absolute_positions_are_added_to_mask_tokens_too(batch):
    parameters = network(depth=0)
    table = np.random.default_rng(3).normal(size=(1, 1 + ROWS * COLUMNS, DIM))
    plain = forward(parameters, *batch, OPTIONS)["encoder.embed"]
    placed = forward({**parameters, "encoder.pos_embed": table}, *batch, OPTIONS)["encoder.embed"]
    np.testing.assert_allclose(placed - plain, np.broadcast_to(table, plain.shape), atol=1e-12)


def test_a_shared_table_equals_its_copy_in_every_block(batch):
    parameters = network()
    table = parameters[SHARED]
    copies = {name: value for name, value in parameters.items() if name != SHARED}
    copies |= {PER_BLOCK.format(i): table for i in range(2)}
    np.testing.assert_array_equal(
        forward(copies, *batch, OPTIONS)["pred"], forward(parameters, *batch, OPTIONS)["pred"]
    )


def test_a_constant_in_the_table_changes_nothing(batch):
    """Softmax removes it, which holds only if the bias reaches every score."""
    parameters = network()
    shifted = {**parameters, SHARED: parameters[SHARED] + np.array([2.0, -1.0])}
    np.testing.assert_allclose(
        forward(shifted, *batch, OPTIONS)["pred"], forward(parameters, *batch, OPTIONS)["pred"], atol=1e-12
    )


def test_predictions_run_by_channel_row_column(batch):
    """Output c*P*P + i*P + j is pixel (i, j) of channel c, as PixelShuffle places the outputs of a 1x1 convolution."""
    _, mask = batch
    c, y, x = np.indices((CHANNELS, ROWS * PATCH, COLUMNS * PATCH))
    images = np.broadcast_to(100.0 * c + 10.0 * y + x, (2, CHANNELS, ROWS * PATCH, COLUMNS * PATCH))
    target = forward(network(depth=0), images, mask, OPTIONS)["target"]
    last = [100 * c + 10 * y + x for c in range(3) for y in (2, 3) for x in (4, 5)]
    np.testing.assert_array_equal(target[1, 5], last)


def test_loss_of_a_constant_prediction(batch):
    """Norms of zero scale leave only biases, so that every patch has the same known prediction."""
    images, mask = batch
    parameters = network()
    parameters["encoder.norm.weight"] = np.zeros(DIM)
    parameters["decoder.weight"] = np.zeros_like(parameters["decoder.weight"])
    parameters["decoder.bias"] = np.repeat([1.0, 2.0, 3.0], PATCH * PATCH)
    pixels = mask.reshape(2, ROWS, COLUMNS).repeat(PATCH, axis=1).repeat(PATCH, axis=2)
    error = sum(np.abs(images[:, channel] - (channel + 1.0))[pixels].sum() for channel in range(CHANNELS))
    expected = error / (5 * PATCH * PATCH + 1e-5) / CHANNELS
    assert forward(parameters, images, mask, OPTIONS)["loss"] == pytest.approx(expected, rel=1e-12)


def test_loss_averages_over_the_pixels_of_the_batch_and_not_over_images():
    """One hidden pixel with error 4 and three with error 0: 1, where a mean of image means would give 2."""
    pred, target = np.zeros((2, 3, 1)), np.zeros((2, 3, 1))
    target[0, 0] = 4.0
    target[1, 2] = 50.0  # visible
    mask = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    assert masked_l1(pred, target, mask, channels=1) == pytest.approx(4.0 / (3.0 + LOSS_EPS), rel=1e-15)
    assert masked_l1(pred, target, np.zeros((2, 3)), channels=1) == 0.0


@pytest.mark.parametrize("name", sorted(network(depth=1)))
def test_loss_is_smooth_in_every_parameter(batch, name):
    """Central differences with two step sizes agree, and every parameter tensor changes the loss."""
    parameters = network(depth=1)
    signs = np.random.default_rng(4).choice([-1.0, 1.0], parameters[name].shape)

    def slope(step: float) -> float:
        ahead, behind = (
            forward({**parameters, name: parameters[name] + sign * step * signs}, *batch, OPTIONS)["loss"]
            for sign in (1.0, -1.0)
        )
        return float(ahead - behind) / (2 * step)

    coarse, fine = slope(1e-4), slope(1e-5)
    assert abs(fine) > 1e-6
    assert coarse == pytest.approx(fine, rel=1e-4, abs=1e-8)


def test_rates_of_the_published_run():
    """One iteration per epoch at 2048 images: 10 epochs of warm-up, a drop at epoch 700 of 800."""
    published = {"peak": 4e-4, "warmup": 10, "warmup_rate": 2e-6, "milestones": (700,), "factor": 0.1}
    expected = {0: 2e-6, 1: 2e-6, 2: 4.18e-5, 10: 3.602e-4, 11: 4e-4, 700: 4e-4, 701: 4e-5, 799: 4e-5}
    for update, rate in expected.items():
        assert multistep_rate(update, **published) == pytest.approx(rate, rel=1e-12), update
