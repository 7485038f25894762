"""Runs of other code: Hugging Face's own, and stand-ins for the checkouts of facebookresearch/mae and Atten4Vis/CAE.

They need an interpreter with torch, and with transformers for Hugging Face's, named by the environment variable
PARITY_PYTHON; without it the live runs are skipped. Originals compute in float64, so the tolerance is the oracle's.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.config import PRETRAIN
from plsc_mae.config.resolve import from_mapping
from plsc_mae.errors import ConfigError
from plsc_mae.models.registry import Variant
from plsc_mae.parity import originals
from plsc_mae.parity.build_cases import small_case
from plsc_mae.parity.cases import Case
from plsc_mae.parity.checks import against_original
from plsc_mae.parity.networks import originals as all_originals
from plsc_mae.parity.originals import Original, ask, find_original, obstacle
from plsc_mae.parity.references.exchange import Message

MAE = {"model": "mae_vit_tiny_patch16"}
CAE = {"model": "cae_tiny_patch16_224_8k_vocab"}
PYTHON = os.environ.get("PARITY_PYTHON", "")
ORIGINALS = all_originals()
HUGGINGFACE, FACEBOOK, CAE_ORIGINAL = ORIGINALS

_spec = importlib.util.spec_from_file_location("standins", Path(__file__).with_name("standins.py"))
standins = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(standins)


def has(package: str) -> bool:
    """Whether the other interpreter has a package; not whether it can be imported, which takes the shims for timm."""
    if not PYTHON:
        return False
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{package}') is None)"
    return subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode == 0


needs_torch = pytest.mark.skipif(not has("torch"), reason="PARITY_PYTHON names no interpreter with torch")
needs_transformers = pytest.mark.skipif(not has("transformers"), reason="PARITY_PYTHON has no transformers")


def small(options: dict) -> Case:
    return small_case(from_mapping(options, PRETRAIN, "the test"), 0)


def compare(options: dict, original: Original, reference: str):
    return against_original(small(options), original, 3, 1e-5, reference, PYTHON)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return standins.make_checkout(tmp_path_factory.mktemp("originals"), timm=not has("timm"))


# ------------------------------------------------------------------------------------------------ live


@needs_transformers
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_hugging_face_computes_the_same(norm_pix_loss):
    comparison = compare({**MAE, "norm_pix_loss": norm_pix_loss}, HUGGINGFACE, "huggingface")
    assert comparison.failures() == []
    assert "transformers" in comparison.versions
    rows = {section.title: {row.name for row in section.rows} for section in comparison.sections}
    assert {"encoder.embed", "encoder.blocks.1", "latent", "decoder.embed", "pred", "mask", "loss"} <= rows["forward"]
    assert "vit.encoder.layer.0.attention.attention.query.weight" in rows["gradients"]
    assert "losses" in rows["updates"]


@needs_torch
@pytest.mark.parametrize("options", [MAE, {**MAE, "norm_pix_loss": True, "mask_ratio": 0.6}])
def test_a_checkout_of_facebook_is_run(checkout, options):
    assert find_original(str(checkout), ORIGINALS) is FACEBOOK
    comparison = compare(options, FACEBOOK, str(checkout))
    assert comparison.failures() == []
    assert "timm" in comparison.versions
    assert len(comparison.sections[0].rows) == 9  # 2 + 1 blocks, what enters both stacks, latent, pred, mask, loss
    assert "blocks.0.attn.qkv.weight" in {row.name for row in comparison.sections[1].rows}


@needs_torch
@pytest.mark.parametrize("options", [CAE, {"model": "cae_base_patch16_224_8k_vocab", "dual_loss_weight": 1.0}])
def test_a_checkout_of_cae_is_run(checkout, options):
    comparison = compare(options, CAE_ORIGINAL, str(checkout))
    assert comparison.failures() == []
    names = {row.name for row in comparison.sections[0].rows}
    assert {"regressor.blocks.1", "alignment.blocks.1", "alignment.target", "logits", "loss_align"} <= names


@needs_torch
def test_code_that_differs_is_found(tmp_path):
    """A checkout whose decoder adds its positions twice."""
    folder = standins.make_checkout(tmp_path, timm=not has("timm"))
    file = folder / "models_mae.py"
    file.write_text(file.read_text().replace("+ self.decoder_pos_embed\n", "+ 2 * self.decoder_pos_embed\n"))
    comparison = compare(MAE, FACEBOOK, str(folder))
    first = {
        section.title: next((row.name for row in section.rows if not row.ok), "") for section in comparison.sections
    }
    assert first["forward"] == "decoder.embed"
    assert first["gradients"]
    assert first["updates"] == "losses"


@needs_torch
def test_a_failure_of_the_code_is_told_with_its_last_line(tmp_path):
    folder = standins.make_checkout(tmp_path, timm=not has("timm"))
    (folder / "models_mae.py").write_text("import a_package_that_nobody_has\n")
    with pytest.raises(ConfigError, match=r"facebookresearch/mae failed.*No module named 'a_package_that_nobody_has'"):
        compare(MAE, FACEBOOK, str(folder))


# -------------------------------------------------------------------------------------- without torch


def test_an_interpreter_without_torch_is_told(tmp_path):
    """This one, made to look as if it had none."""
    case = small(MAE)
    with pytest.raises(ConfigError, match="needs an interpreter with torch"):
        ask(Original("none", "no_such_program", "facebook", "", Case, lambda _: {}, lambda _: ""), case, [0.0], "", "")
    with pytest.raises(ConfigError, match="--python /no/python: No such file"):
        ask(HUGGINGFACE, case, [0.0], "", "/no/python")


def test_a_folder_that_is_no_checkout_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"is no checkout of facebookresearch/mae \(models_mae.py\), Atten4Vis/CAE"):
        find_original(str(tmp_path), ORIGINALS)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/modeling_cae.py").touch()
    assert find_original(str(tmp_path), ORIGINALS) is CAE_ORIGINAL
    assert find_original("huggingface", ORIGINALS) is HUGGINGFACE


@pytest.mark.parametrize(
    ("options", "original", "reason"),
    [
        (CAE, HUGGINGFACE, "Hugging Face transformers has no network like cae_tiny"),
        (MAE, CAE_ORIGINAL, "Atten4Vis/CAE has no network like mae_vit_tiny"),
        ({**MAE, "norm_eps": 1e-5}, FACEBOOK, "differs in more than its sizes"),
        ({"model": "pretrain_mae_small_patch16_224", "method": "mae_priv"}, FACEBOOK, "differs in more than its sizes"),
        (CAE, CAE_ORIGINAL, "img_size is not (224, 224)"),
        (MAE, FACEBOOK, ""),
        ({**MAE, "norm_pix_loss": True}, HUGGINGFACE, ""),
    ],
)
def test_networks_that_an_original_has_not(options, original, reason):
    found = obstacle(original, small(options))
    assert reason in found if reason else not found


def test_messages_survive_their_file(tmp_path):
    arrays = {"b/weight": np.arange(6.0).reshape(2, 3), "a": np.array([True, False])}
    message = Message({"rates": [0.0, 1e-3], "name": "x"}, {"weights": arrays, "batch": {"images": np.zeros(1)}})
    message.write(tmp_path / "m.npz")
    back = Message.read(tmp_path / "m.npz")
    assert back.settings == message.settings
    assert list(back.groups["weights"]) == ["b/weight", "a"]
    np.testing.assert_array_equal(back.groups["weights"]["b/weight"], arrays["b/weight"])


def test_the_programs_load_nothing_of_paddle():
    """Their interpreter has none; the package and its parity part load without it."""
    code = "import sys, plsc_mae.parity.references.exchange; print('paddle' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_a_published_cae_is_the_originals(monkeypatch):
    """With what is published made as small as the case, which saves building a network of 70 M parameters."""
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    monkeypatch.setattr(originals, "find_variant", lambda _name: Variant("", sizes))
    fixed = {"img_size": (32, 32), "decoder_num_heads": 4, "decoder_num_classes": 32}
    monkeypatch.setattr(originals, "CAE_FIXED", fixed)
    assert obstacle(CAE_ORIGINAL, small(CAE)) == ""
    monkeypatch.setattr(originals, "CAE_FIXED", {**fixed, "decoder_num_heads": 12})
    assert "decoder_num_heads is not 12" in obstacle(CAE_ORIGINAL, small(CAE))
