"""The network of a file is found under any key, in any wrapper; where there are several, the user chooses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from plsc_mae import weights
from plsc_mae.errors import CheckpointError
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.weights.dialects import detect

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def network() -> dict[str, np.ndarray]:
    """A small autoencoder under the names of facebookresearch/mae."""
    model = MaskedAutoencoder(**SIZES, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4)
    return weights.export(model, "facebook")


@pytest.fixture
def save(tmp_path):
    def write(content) -> str:
        path = tmp_path / "file.pkl"
        path.write_bytes(pickle.dumps(content, 4))
        return str(path)

    return write


def prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: value for name, value in tensors.items()}


def inside(wrapper: str, tensors: dict) -> dict:
    """Wrap every block, as activation checkpointing and FSDP's auto-wrapping do."""
    return {name.replace("blocks.0.", f"blocks.0.{wrapper}."): value for name, value in tensors.items()}


WRAPPED = {
    "compiled": lambda x: {"model": prefixed("_orig_mod.", x)},
    "DDP of compiled": lambda x: {"model": prefixed("module._orig_mod.", x)},
    "compiled DDP": lambda x: prefixed("_orig_mod.module.", x),
    "DDP twice": lambda x: {"state_dict": prefixed("module.module.", x)},
    "FSDP": lambda x: {"model": prefixed("_fsdp_wrapped_module.", x)},
    "FSDP, every block": lambda x: {"model": prefixed("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module", x))},
    "recomputed blocks": lambda x: {"model": inside("_checkpoint_wrapped_module", x)},
    "FSDP, recomputed": lambda x: inside("_fsdp_wrapped_module._checkpoint_wrapped_module", x),
    "compiled blocks": lambda x: {"model": inside("_orig_mod", x)},
    "Fabric": lambda x: {"model": prefixed("_forward_module.", x)},
    "Paddle": lambda x: prefixed("_layers.", x),
    "averaged": lambda x: {"model": {"n_averaged": np.asarray(3), **prefixed("module.", x)}},
    "Lightning": lambda x: {"epoch": 1, "state_dict": prefixed("model.", x), "hyper_parameters": {"lr": 0.1}},
    "Lightning, compiled": lambda x: {"state_dict": prefixed("model._orig_mod.", x)},
    "Lightning, with a loss": lambda x: {"state_dict": {**prefixed("net.", x), "criterion.weight": np.ones(3)}},
    "DeepSpeed": lambda x: {"module": prefixed("module.", x), "ds_version": "0.15"},
    "nested": lambda x: {"state": {"model": x}, "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}}},
    "detector": lambda x: prefixed("detector.body.", x),
}
KEYS = ("model_state_dict", "net", "network", "weights", "params", "teacher", "student", "ema", "model_ema", "custom")


@pytest.mark.parametrize("kind", [*WRAPPED, *KEYS])
def test_every_wrapper_and_key_gives_the_network(network, save, kind):
    content = WRAPPED[kind](network) if kind in WRAPPED else {"epoch": 1, kind: network}
    stored = weights.read_network(save(content))
    assert stored.dialect == "facebook"
    assert set(network) <= set(stored.model)
    for name, value in network.items():
        np.testing.assert_array_equal(stored.model[name], value)
    if kind in KEYS:
        assert (stored.key, kind in stored.remark) == (kind, True)
    if kind == "Lightning, with a loss":
        assert "'net.'" in stored.remark
        assert "1 other" in stored.remark


def test_names_of_this_suite_inside_wrappers(save):
    model = MaskedAutoencoder(**SIZES, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4)
    ours = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for content in (prefixed("module.", ours), {"net": prefixed("model._orig_mod.", ours)}):
        stored = weights.read_network(save(content))
        assert (stored.dialect, set(stored.model)) == ("plsc_mae", set(ours))


@pytest.mark.parametrize(
    ("build", "found", "flag", "choice"),
    [
        (lambda x: {"student": x, "teacher": x}, ("student", "teacher"), "--model_key", {"model_key": "teacher"}),
        (lambda x: {"net": x, "ema": x, "epoch": 1}, ("net", "ema"), "--model_key", {"model_key": "none|ema"}),
        (lambda x: {"a": {"net": x}, "b": [x]}, ("a/net", "b/0"), "--model_key", {"model_key": "b"}),
        (
            lambda x: {"model": {"a": x, "b": x}},
            ("model/a", "model/b"),
            "--model_key",
            {"model_key": "b"},
        ),
        (
            lambda x: {"state_dict": {**prefixed("student.", x), **prefixed("teacher.backbone.", x)}},
            ("'student.'", "'teacher.backbone.'"),
            "--model_prefix",
            {"model_prefix": "teacher.backbone."},
        ),
        (
            lambda x: {"student": prefixed("module.backbone.", x), "teacher": prefixed("backbone.", x)},
            ("student", "teacher"),
            "--model_key",
            {"model_key": "student", "model_prefix": "module.backbone."},
        ),
    ],
)
def test_several_networks_are_named_and_chosen(network, save, build, found, flag, choice):
    path = save(build(network))
    assert weights.read(path).dialect == ""  # `weights inspect` goes on
    with pytest.raises(CheckpointError) as caught:
        weights.read_network(path)
    assert all(text in str(caught.value) for text in (*found, flag))
    stored = weights.read_network(path, **choice)
    assert (stored.dialect, set(stored.model)) == ("facebook", set(network))
    assert stored.remark == ""


def test_usual_keys_come_first_and_the_others_are_named(network, save):
    other = {name: value + 1 for name, value in network.items()}
    stored = weights.read_network(save({"ema": other, "model": network}))
    np.testing.assert_array_equal(stored.model["cls_token"], network["cls_token"])
    assert stored.others == ("ema",)
    assert "--model_key" in stored.remark
    assert "ema" in stored.remark
    averaged = weights.read_network(save({"ema": other, "model": network}), "ema")
    np.testing.assert_array_equal(averaged.model["cls_token"], other["cls_token"])
    mixed = weights.read_network(save({"ema": other, **network}))
    np.testing.assert_array_equal(mixed.model["cls_token"], network["cls_token"])


def test_a_prefix_is_given_with_or_without_the_names_of_wrappers(network, save):
    path = save({"state_dict": {**prefixed("a.module.", network), **prefixed("b.module.", network)}})
    for prefix in ("a.", "a.module."):
        assert set(weights.read_network(path, model_prefix=prefix).model) == set(network)
    with pytest.raises(CheckpointError, match=r"starts with 'c\.'.*a\.module\..*--model_prefix"):
        weights.read(path, model_prefix="c.")
    with pytest.raises(CheckpointError, match=r"no tensors under 'ema'.*under state_dict.*--model_key"):
        weights.read(path, "ema")


def test_equal_names_are_kept_apart(network, save):
    """A wrapped network beside the same network without a wrapper is not merged."""
    stored = weights.read(save({**network, **prefixed("module.", {"cls_token": np.zeros(1)})}))
    np.testing.assert_array_equal(stored.model["cls_token"], network["cls_token"])


@pytest.mark.parametrize("whole", ["", "bias"])
def test_empty_shards_are_said_to_be_zero(network, save, whole):
    """ZeRO stage 3 keeps small tensors whole."""
    shards = {name: x if whole and whole in name else np.empty(0, np.float32) for name, x in network.items()}
    with pytest.raises(CheckpointError, match=r"without values.*ZeRO stage 3.*zero_to_fp32\.py"):
        weights.read_network(save({"module": shards, "ds_version": "0.15.0"}))


def test_flattened_parameters_are_named(save):
    flat = np.ones(9, np.float32)
    with pytest.raises(CheckpointError, match=r"FSDP.*FULL_STATE_DICT"):
        weights.read_network(save({"model": {"_fsdp_wrapped_module._flat_param": flat}}))
    with pytest.raises(CheckpointError, match=r"ZeRO.*zero_to_fp32\.py"):
        weights.read_network(save({"optimizer_state_dict": {"fp32_flat_groups": [flat]}}))


def test_unknown_names_are_answered_with_the_flags(save):
    model = MaskedAutoencoder(**SIZES, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4)
    for content in ({"model": {"conv1.weight": np.ones((2, 2))}}, {"other": {"conv1.weight": np.ones((2, 2))}}):
        with pytest.raises(CheckpointError, match=r"--model_key.*--model_prefix.*weights inspect"):
            weights.load(model, save(content))


def test_hostile_names_cost_little_time(network, save):
    """The number of prefixes and their length are limited."""
    names = {f"{'a.' * 300}{i}.patch_embed.proj.weight": np.ones(1) for i in range(300)}
    assert weights.read(save({"x": names})).dialect == ""
    assert detect(weights.read(save({**names, **network})).model) == "facebook"
