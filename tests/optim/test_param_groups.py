"""Layer decay against facebookresearch/mae, Atten4Vis/CAE and BUPT-PRIV/MAE-priv; with their names and with ours."""

from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import paddle
import pytest

from plsc_mae.optim import layer_decay_groups, vit_layer, weight_decay_groups

pytestmark = pytest.mark.compat

VECTORS = re.compile(r".*(bias|gamma_\d|norm\w*\.weight)")


@pytest.fixture(scope="module")
def tensors():
    """Return two trainable parameters, a vector and a matrix, that represent all parameters."""
    return paddle.create_parameter([1], "float32"), paddle.create_parameter([1, 1], "float32")


def settings_of(groups):
    """Return (decay, rate) and the group number of each parameter."""
    return {
        name: (group.weight_decay, pytest.approx(group.lr_scale, rel=1e-12), i)
        for i, group in enumerate(groups)
        for name in group.names
    }


def grouped(names, tensors, weight_decay, layer_decay, depth, **options):
    named = [(name, tensors[not VECTORS.fullmatch(name)]) for name in names]
    layer_of = partial(vit_layer, depth=depth)
    return settings_of(layer_decay_groups(named, weight_decay, layer_decay, layer_of, depth + 2, **options))


@pytest.mark.parametrize("model", ["base_patch16_gap", "base_patch16_cls", "large_patch16_gap", "large_patch16_cls"])
def test_facebook_mae(golden, tensors, model):
    case = golden("mae/fb_param_groups_lrd")
    rule, recorded = case.meta["info"][f"vit_{model}"], case.group(f"output/vit_{model}")
    depth = rule["num_layers"] - 1
    found = grouped(recorded["names"].tolist(), tensors, rule["weight_decay"], rule["layer_decay"], depth)
    columns = (recorded[column].tolist() for column in ("weight_decay", "lr_scale", "group_index"))
    expected = dict(zip(recorded["names"].tolist(), zip(*columns, strict=True), strict=True))
    assert expected == found
    assert len({i for _, _, i in found.values()}) == rule["n_groups"]
    layers = [vit_layer(name, depth) for name in recorded["names"].tolist()]
    assert layers == recorded["layer_id"].tolist()


@pytest.mark.parametrize("variant", ["pretrain_base_cls", "vit_base_patch16_224", "vit_small_patch16_224"])
def test_mae_priv(golden, tensors, variant):
    case = golden("mae/priv_param_groups")
    recorded = case.group(f"output/{variant}")
    layer_decay = case.meta["info"][variant].get("layer_decay", 1.0)
    options = {"no_decay": {"mask_token"}} if variant == "pretrain_base_cls" else {}
    found = grouped(recorded["names"].tolist(), tensors, case.meta["weight_decay"], layer_decay, 12, **options)
    columns = (recorded[column].tolist() for column in ("weight_decay", "lr_scale", "group_index"))
    assert dict(zip(recorded["names"].tolist(), zip(*columns, strict=True), strict=True)) == found


def test_cae(root, tensors):
    """Recorded with and without relative position tables, weight decay and layer decay."""
    settings = json.loads((root / "tests/golden/cae/optimizer_groups.json").read_text())
    settings.pop("pretrain")
    assert len(settings) == 7
    for name, case in settings.items():
        rows, depth = case["rows"], case["num_layers"]
        names = [row["name"] for row in rows]
        skipped = set(case["skip_list"])
        found = grouped(names, tensors, case["weight_decay"], case["layer_decay"], depth, no_decay=skipped)
        assert {row["name"]: (row["weight_decay"], row["lr_scale"], row["group"]) for row in rows} == found, name
        for row in rows:
            assert row["layer_id"] in (None, vit_layer(row["name"], depth)), row["name"]


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_layers_of_our_names(prefix):
    embeddings = ("cls_token", "mask_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    assert {vit_layer(prefix + name, 12) for name in embeddings} == {0}
    assert vit_layer(f"{prefix}blocks.0.norm1.weight", 12) == 1
    assert vit_layer(f"{prefix}blocks.3.attn.qkv.weight", 12) == 4
    assert vit_layer(f"{prefix}blocks.11.attn.relative_position_bias_table", 12) == 12
    last = ("norm.bias", "rel_pos_bias.relative_position_bias_table", "fc_norm.weight", "head.1.weight", "query_token")
    assert {vit_layer(prefix + name, 12) for name in (*last, "attentive_blocks.0.attn.q.weight")} == {13}


def test_embeddings_learn_slowest_and_the_head_at_the_full_rate(tensors):
    names = ["encoder.cls_token", "encoder.blocks.0.mlp.fc1.weight", "encoder.blocks.1.mlp.fc1.weight", "head.weight"]
    found = grouped(names, tensors, 0.05, 0.5, depth=2)
    assert [found[name][0] for name in names] == [0.0, 0.05, 0.05, 0.05]
    np.testing.assert_allclose([found[name][1].expected for name in names], [0.125, 0.25, 0.5, 1.0])


def test_frozen_parameters_are_in_no_group(tensors):
    frozen = paddle.create_parameter([2, 2], "float32")
    frozen.stop_gradient = True
    named = [("blocks.0.weight", frozen), ("head.weight", tensors[1])]
    groups = layer_decay_groups(named, 0.05, 0.5, partial(vit_layer, depth=2), 4)
    assert [group.names for group in groups] == [["head.weight"]]
    assert [group.names for group in weight_decay_groups(named, 0.05)] == [["head.weight"]]
