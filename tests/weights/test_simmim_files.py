"""Weights of microsoft/SimMIM: there and back, recognized, probed, and loaded for fine-tuning as the original does."""

from __future__ import annotations

import numpy as np
import pytest

from plsc_mae import weights
from plsc_mae.commands.inspection import inspect_file
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.loading.classifier_weights import load_into_classifier
from plsc_mae.loading.encoder import load_encoder
from plsc_mae.loading.networks import open_network
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.rel_pos_bias import relative_position_index, resize_relative_positions
from plsc_mae.models.simmim import SimMIM
from plsc_mae.parity.capture import randomize
from plsc_mae.weights.write import write_file

pytestmark = [pytest.mark.compat, pytest.mark.once]
SIZES = {"img_size": 12, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
CLASSIFIER = {"k_bias": False, "positions": "none", "relative_positions": "per block", "layer_scale": 0.1}
TABLE = "rel_pos_bias.relative_position_bias_table"


@pytest.fixture
def model() -> SimMIM:
    network = SimMIM(**SIZES)
    randomize(network, 0)
    return network


def state(network) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@pytest.fixture
def original(model) -> dict[str, np.ndarray]:
    """What the original's file would hold, built from the table of its names and layouts."""
    tensors = {}
    for name, value in state(model).items():
        if name == "decoder.weight":
            tensors["decoder.0.weight"] = value.T[:, :, None, None]
        elif name == "decoder.bias":
            tensors["decoder.0.bias"] = value
        else:
            tensors[name] = value.T if value.ndim == 2 and not name.endswith("_table") else value
    tensors["encoder.rel_pos_bias.relative_position_index"] = relative_position_index((3, 3))
    return tensors


def test_files_are_read_and_written_bit_for_bit(model, original, tmp_path):
    weights.save(model, tmp_path / "ours.pth", "simmim")
    written = weights.read(tmp_path / "ours.pth")
    assert written.dialect == "simmim"
    assert set(written.model) == {name for name in original if not name.endswith("index")}
    for name, value in written.model.items():
        np.testing.assert_array_equal(value, original[name], err_msg=name)

    write_file(tmp_path / "theirs.pth", original, "model")
    again = SimMIM(**SIZES)
    report = weights.load(again, weights.read(tmp_path / "theirs.pth"))
    assert (report.dialect, report.missing, report.unexpected, report.resized) == ("simmim", [], [], [])
    for name, value in state(model).items():
        np.testing.assert_array_equal(state(again)[name], value, err_msg=name)


def test_weights_alone_under_our_names_are_recognized(model, tmp_path):
    weights.save(model, tmp_path / "native.pd", "plsc_mae")
    stored = weights.read(tmp_path / "native.pd")
    assert stored.dialect == "plsc_mae"
    found = inspect_file(str(tmp_path / "native.pd"))
    assert found.kind == "simmim"
    np.testing.assert_array_equal(
        open_network(stored, "simmim").state_dict()["decoder.weight"].numpy(), state(model)["decoder.weight"]
    )


def test_a_missing_or_damaged_bias_of_the_head_is_described(model, tmp_path):
    tensors = state(model)
    write_file(tmp_path / "missing.pth", {k: v for k, v in tensors.items() if k != "decoder.bias"}, "model")
    assert inspect_file(str(tmp_path / "missing.pth")).sizes["decoder"] == {"outputs": None}
    write_file(tmp_path / "row.pth", {**tensors, "decoder.bias": tensors["decoder.bias"][None]}, "model")
    assert "'decoder.bias'" in inspect_file(str(tmp_path / "row.pth")).misfits["any use"]


def test_other_networks_have_no_place_in_it(tmp_path):
    network = MaskedAutoencoder(**SIZES, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)
    with pytest.raises(ConfigError, match=r"dialect .simmim. cannot represent all tensors"):
        weights.save(network, tmp_path / "w.pth", "simmim")


def test_a_head_that_is_no_1x1_convolution_is_refused(original, tmp_path):
    original["decoder.0.weight"] = original["decoder.0.weight"].repeat(3, axis=3)
    write_file(tmp_path / "w.pth", original, "model")
    with pytest.raises(CheckpointError, match=r"'decoder\.0\.weight' has shape"):
        weights.load(SimMIM(**SIZES), tmp_path / "w.pth")


def test_a_file_without_the_final_norm_is_refused_by_name(original, tmp_path):
    write_file(tmp_path / "w.pth", {k: v for k, v in original.items() if not k.startswith("encoder.norm.")}, "model")
    with pytest.raises(
        CheckpointError, match=r"incomplete encoder: .* 2 are missing from the file \(norm\.weight, norm\.bias\)"
    ):
        load_encoder(str(tmp_path / "w.pth"))


def test_the_encoder_of_a_file(model, original, tmp_path):
    """Sizes and heads come from the tensors; the encoder gives what the network gives where nothing is hidden."""
    write_file(tmp_path / "w.pth", original, "model")
    encoder = load_encoder(str(tmp_path / "w.pth")).network
    assert (encoder.img_size, encoder.blocks[0].attn.num_heads, encoder.patch_size) == ((12, 12), 2, 4)
    for name, value in state(encoder).items():
        np.testing.assert_array_equal(value, state(model)[f"encoder.{name}"], err_msg=name)


@pytest.mark.parametrize("side", [12, 16])
def test_finetuning_copies_the_shared_table_to_every_block_and_starts_the_norm_afresh(original, tmp_path, side):
    """As load_pretrained of the original: mask token, head and final norm go, tables of another grid are resampled."""
    write_file(tmp_path / "w.pth", original, "model")
    classifier = ImageClassifier(num_classes=3, **{**SIZES, "img_size": side}, **CLASSIFIER)
    load_into_classifier(classifier, weights.read(tmp_path / "w.pth"), norm_into_fc_norm=False)
    found, table = state(classifier), original[f"encoder.{TABLE}"]
    expected = resize_relative_positions(table, (3, 3), (side // 4, side // 4))
    for i in range(2):
        np.testing.assert_array_equal(found[f"encoder.blocks.{i}.attn.{TABLE}"], expected)
    np.testing.assert_array_equal(found["fc_norm.weight"], np.ones(8, np.float32))
    np.testing.assert_array_equal(found["encoder.blocks.1.gamma_2"], original["encoder.blocks.1.gamma_2"])
    np.testing.assert_array_equal(
        found["encoder.blocks.0.mlp.fc1.weight"], original["encoder.blocks.0.mlp.fc1.weight"].T
    )
    assert not any(name.startswith("encoder.norm.") for name in found)


def test_finetuned_files_are_of_the_dialect_beit(tmp_path):
    classifier = ImageClassifier(num_classes=3, **SIZES, **CLASSIFIER)
    weights.save(classifier, tmp_path / "w.pth", "beit")
    stored = weights.read(tmp_path / "w.pth")
    assert stored.dialect == "beit"
    assert "blocks.1.attn.relative_position_bias_table" in stored.model
