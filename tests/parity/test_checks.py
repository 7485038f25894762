"""Comparisons pass for correct networks, fail for every injected error, and name the layer that is wrong.

The networks are small: float32 differs from the oracle by up to 2e-6 on them, and the tolerance is 1e-5.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import pytest

from plsc_mae.config import PRETRAIN
from plsc_mae.config.resolve import from_mapping
from plsc_mae.models import layers
from plsc_mae.parity import updates
from plsc_mae.parity.build_cases import small_case
from plsc_mae.parity.cases import Case
from plsc_mae.parity.checks import against_oracle, gradient_section
from plsc_mae.parity.compare import Comparison, Row, Section, difference, differences
from plsc_mae.parity.updates import update_section

pytestmark = pytest.mark.compat

TOLERANCE = 1e-5
MAE = {"model": "mae_vit_tiny_patch16"}
PRIV = {"model": "pretrain_mae_small_patch16_224", "method": "mae_priv"}
CAE = {"model": "cae_tiny_patch16_224_8k_vocab"}
UNSCALED = {"layer_scale_init_value": 0.0, "decoder_layer_scale_init_value": 0.0}
# The official MAE, also with its options; MAE-pytorch and MAE-priv; CAE with and without a bridge, and averaged.
KINDS = [
    MAE,
    {**MAE, "norm_pix_loss": True, "mask_ratio": 0.6},
    {**MAE, "norm_eps": 1e-5, "train_positions": True},
    {**PRIV, "method": "mae_pytorch"},
    PRIV,
    {**PRIV, "class_token": False, "norm_pix_loss": False},
    CAE,
    {"model": "cae_base_patch16_224_8k_vocab", "dual_loss_weight": 1.0},
    {**CAE, "abs_pos_emb": True, "sincos_pos_emb": False, "dual_path_ema": 0.9},
    {**CAE, **UNSCALED},
]


def make(options: dict, seed: int = 0) -> Case:
    return small_case(from_mapping(options, PRETRAIN, "the test"), seed)


def forward(case: Case, tolerance: float = TOLERANCE) -> Section:
    rows = differences(case.layers(), case.oracle(case.parameters()), tolerance)
    return Section("forward", "", rows, in_order=True)


def first_failure(section: Section) -> str:
    return next((row.name for row in section.rows if not row.ok), "")


@pytest.mark.parametrize("options", KINDS, ids=lambda options: " ".join(map(str, options.values())))
def test_layers_agree_with_the_oracle(options):
    case = make(options)
    section = forward(case)
    assert first_failure(section) == ""
    assert set(case.layers()) == {row.name for row in section.rows}
    assert max(row.largest for row in section.rows) > 0  # float32 rounds, so exact equality would be suspicious


@pytest.mark.parametrize("options", [MAE, PRIV, CAE], ids=lambda options: options["model"])
def test_gradients_and_updates_agree_with_the_oracle(options):
    case = make(options)
    section = gradient_section(case, TOLERANCE, 0)
    assert first_failure(section) == ""
    trainable = {name for name, param in case.model.named_parameters() if not param.stop_gradient}
    assert {row.name for row in section.rows} == trainable
    assert first_failure(update_section(case, 3, TOLERANCE)) == ""


def test_weights_depend_on_the_seed_and_are_not_constant():
    weights, again, other = (make(CAE, seed).parameters() for seed in (0, 0, 1))
    for name, value in weights.items():
        np.testing.assert_array_equal(value, again[name])
        if not name.endswith("pos_embed"):
            assert np.abs(value - other[name]).max() > 1e-3, name
            assert np.ptp(value) > 0, name


# ---------------------------------------------------------------------------------------- injected errors


@pytest.mark.parametrize(
    ("options", "weight", "layer"),
    [
        (MAE, "encoder.patch_embed.proj.bias", "encoder.embed"),
        (MAE, "encoder.blocks.1.mlp.fc2.weight", "encoder.blocks.1"),
        (MAE, "encoder.norm.bias", "latent"),
        (MAE, "decoder.mask_token", "decoder.embed"),
        (MAE, "decoder.pred.bias", "pred"),
        (CAE, "regressor.blocks.1.norm_v.weight", "regressor.blocks.1"),
        (CAE, "bridge.weight", "regressor.blocks.0"),
        (CAE, "decoder.head.weight", "logits"),
    ],
)
def test_a_perturbed_weight_is_named_by_its_layer(options, weight, layer):
    case = make(options)
    parameters = case.parameters()
    parameters[weight].flat[3] += 1e-2
    rows = differences(case.layers(), case.oracle(parameters), TOLERANCE)
    assert first_failure(Section("", "", rows)) == layer


@pytest.mark.parametrize("options", [MAE, CAE], ids=["mae", "cae"])
def test_a_wrong_eps_is_found_in_the_first_block(options):
    """The eps 1e-12 instead of 1e-6 changes the class token, which is small and has no position."""
    case = make(options)
    for layer in case.model.sublayers():
        if isinstance(layer, paddle.nn.LayerNorm):
            layer._epsilon = 1e-12
    assert first_failure(forward(case)) == "encoder.blocks.0"


def test_a_wrong_order_in_patches_is_found_in_the_embedding(monkeypatch):
    def columns_first(self, patches):
        return original(self, patches.reshape([*patches.shape[:2], 8, 8, 3]).transpose([0, 1, 3, 2, 4]).flatten(2))

    case, original = make(MAE), layers.PatchEmbed.forward
    monkeypatch.setattr(layers.PatchEmbed, "forward", columns_first)
    assert first_failure(forward(case)) == "encoder.embed"


def test_a_wrong_table_is_found_in_the_embedding():
    case = make(MAE)
    table = case.model.encoder.pos_embed
    half = table.shape[-1] // 2
    table.set_value(paddle.concat([table[..., half:], table[..., :half]], axis=-1))
    assert first_failure(forward(case)) == "encoder.embed"


@pytest.mark.parametrize(
    ("attribute", "value", "layers_off"),
    [
        ("pixel_norm", "patch", {"target", "loss"}),
        ("channels_first", False, {"target", "loss"}),
        ("round_down", "visible", {"mask"}),
    ],
)
def test_a_wrong_switch_is_found(attribute, value, layers_off):
    """The oracle has its own switches for MAE-priv, independent of the network."""
    case = make({**PRIV, "mask_ratio": 0.6})
    assert first_failure(forward(case)) == ""
    setattr(case.model, attribute, value)
    assert {row.name.partition(" ")[0] for row in forward(case).rows if not row.ok} >= layers_off


@pytest.mark.once
def test_a_wrong_gradient_is_named(monkeypatch):
    """One gradient is half as large for the keys of one head; another is zero, as for a parameter outside the graph."""
    case = make(MAE)
    true = case.gradients

    def gradients():
        found = true()
        found["encoder.blocks.0.attn.qkv.weight"][:, 32:40] *= 0.5
        found["encoder.blocks.1.norm1.weight"][:] = 0
        return found

    case.gradients = gradients
    wrong = {row.name for row in gradient_section(case, TOLERANCE, 0).rows if not row.ok}
    assert wrong == {"encoder.blocks.0.attn.qkv.weight", "encoder.blocks.1.norm1.weight"}


def test_a_wrong_optimizer_is_found(monkeypatch):
    case = make(MAE)
    monkeypatch.setattr(case.task, "param_groups", lambda _decay: type(case.task).param_groups(case.task, 0.0))
    wrong = {row.name for row in update_section(case, 3, TOLERANCE).rows if not row.ok}
    assert "encoder.cls_token" in wrong  # decayed in the original
    assert "encoder.norm.weight" not in wrong


def test_a_wrong_schedule_is_found(monkeypatch):
    monkeypatch.setattr(updates, "our_rates", lambda _case, steps: [1e-3] * steps)
    assert first_failure(update_section(make(MAE), 3, TOLERANCE)) == "learning rates"


def test_a_parameter_without_gradient_counts_as_zero():
    case = make(MAE)
    case.loss = lambda: case.model.encoder.cls_token.sum()
    case.backward()
    gradients = case.gradients()
    assert gradients["encoder.cls_token"].all()
    assert not gradients["decoder.pred.weight"].any()


# --------------------------------------------------------------------------------------------- measures


def test_a_failed_comparison_names_network_section_and_first_row():
    section = Section("forward", "", [Row("a", 1e-7, 0, 1, 1e-5), Row("b", 1e-2, 0, 1, 1e-5), Row("c", 1, 0, 1, 1e-5)])
    (sentence,) = Comparison("net", "code", [section]).failures()
    for value in ("net", "code", "forward: b ", "1.0e-02", "1e-05"):
        assert value in sentence
    assert section.worst.name == "c"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_exceed_any_tolerance(value):
    row = difference("x", np.array([1.0, value]), np.array([1.0, 2.0]), 0.5)
    assert not row.ok
    assert Section("", "", [Row("y", 1e-9, 0, 1, 1), row]).worst is row


def test_another_shape_exceeds_any_tolerance_and_is_named():
    row = difference("x", np.zeros([2, 3]), np.zeros([3, 2]), 0.5)
    assert not row.ok
    for value in ("x", "[2, 3]", "[3, 2]"):
        assert value in row.name


@pytest.mark.once
def test_the_whole_comparison_has_its_three_sections():
    comparison = against_oracle(make(MAE), 2, TOLERANCE, 0)
    assert [section.title for section in comparison.sections] == ["forward", "gradients", "updates"]
    assert comparison.failures() == []
    strict = against_oracle(make(MAE), 2, 1e-9, 0)
    for value in ("mae_vit_tiny_patch16", "oracle", "forward", "encoder.embed", "1e-09"):
        assert value in strict.failures()[0]


def test_a_replaced_loss_is_named():
    trained = from_mapping({"model": "cae_base_patch16_224_8k_vocab", "dual_loss_type": "kld"}, PRETRAIN, "the test")
    remark = small_case(trained, 0).remark
    assert "--dual_loss_type kld" in remark
    assert small_case(dataclasses.replace(trained, dual_loss_type="mse"), 0).remark == ""
