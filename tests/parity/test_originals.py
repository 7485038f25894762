"""Runs of Hugging Face's code and of substitutes for checkouts of facebookresearch/mae and Atten4Vis/CAE.

The environment variable PARITY_PYTHON names an interpreter with torch and, for Hugging Face's code, transformers; these
runs are skipped without it. The programs compute in float64, so the tolerance is that of the oracle.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.config import PRETRAIN
from plsc_mae.config.resolve import from_mapping
from plsc_mae.errors import ConfigError
from plsc_mae.models.registry import Variant
from plsc_mae.parity.build_cases import small_case
from plsc_mae.parity.cases import Case
from plsc_mae.parity.checks import against_original
from plsc_mae.parity.networks import cae as cae_module
from plsc_mae.parity.networks import originals as all_originals
from plsc_mae.parity.originals import Original, find_original, run_original, unsupported_reason
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
    """Return True if the other interpreter has a package; importing timm may still need the shims."""
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


# ------------------------------------------------------------------------------------------ with torch


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
    assert len(comparison.sections[0].rows) == 9  # 2 + 1 blocks, inputs of both stacks, latent, pred, mask, loss
    assert "blocks.0.attn.qkv.weight" in {row.name for row in comparison.sections[1].rows}


@needs_torch
@pytest.mark.parametrize("options", [CAE, {"model": "cae_base_patch16_224_8k_vocab", "dual_loss_weight": 1.0}])
def test_a_checkout_of_cae_is_run(checkout, options):
    comparison = compare(options, CAE_ORIGINAL, str(checkout))
    assert comparison.failures() == []
    names = {row.name for row in comparison.sections[0].rows}
    assert {"regressor.blocks.1", "alignment.blocks.1", "alignment.target", "logits", "loss_align"} <= names


@needs_torch
def test_packages_that_the_network_does_not_use_need_not_be_installed(tmp_path):
    """As Atten4Vis/CAE imports them: through a module of tools, with decorators, subpackages and versions."""
    folder = standins.make_checkout(tmp_path, timm=not has("timm"))
    (folder / "tools_of_others.py").write_text(
        "import attr, ftfy, requests\n"
        "from einops import rearrange\n"
        "from einops.layers.torch import Rearrange\n"
        "from pkg_resources import packaging\n"
        "from tensorboardX import SummaryWriter\n"
        "old = packaging.version.parse('1.0') < packaging.version.parse('2.0')\n"
        "@attr.s(eq=False)\nclass Decorated:\n    size: int = attr.ib(default=4)\n"
        "assert isinstance(Decorated, type)\n"
    )
    file = folder / "models/modeling_cae.py"
    file.write_text(f"import tools_of_others\n{file.read_text().replace('from __future__ import annotations', '')}")
    assert compare(CAE, CAE_ORIGINAL, str(folder)).failures() == []


@needs_torch
def test_code_that_differs_is_found(tmp_path):
    """The decoder of this checkout adds its positions twice."""
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
def test_a_failure_of_the_code_shows_its_last_line(tmp_path):
    folder = standins.make_checkout(tmp_path, timm=not has("timm"))
    (folder / "models_mae.py").write_text("import no_such_package\n")
    with pytest.raises(ConfigError, match=r"facebookresearch/mae.*'no_such_package'"):
        compare(MAE, FACEBOOK, str(folder))


# -------------------------------------------------------------------------------------- without torch


def test_an_interpreter_that_cannot_run_the_program_is_named(tmp_path):
    """The program does not exist, so the running interpreter fails as one without torch does."""
    case = small(MAE)
    with pytest.raises(ConfigError, match=rf"{re.escape(sys.executable)}.*no_such_program.*--python.*torch"):
        run_original(
            Original("none", "no_such_program", "facebook", "", Case, lambda _: {}, lambda _: ""), case, [0.0], "", ""
        )
    with pytest.raises(ConfigError, match="--python /no/python"):
        run_original(HUGGINGFACE, case, [0.0], "", "/no/python")
    other = tmp_path / "python"
    other.write_bytes(b"#!/bin/sh\nprintf 'no torch \\377' >&2\nexit 1\n")
    other.chmod(0o755)
    with pytest.raises(ConfigError, match="no torch \ufffd"):
        run_original(HUGGINGFACE, case, [0.0], "", str(other))


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(
        ConfigError,
        match=rf"{re.escape(str(tmp_path))}.*huggingface.*facebookresearch/mae.*models_mae.py.*Atten4Vis/CAE",
    ):
        find_original(str(tmp_path), ORIGINALS)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/modeling_cae.py").touch()
    assert find_original(str(tmp_path), ORIGINALS) is CAE_ORIGINAL
    assert find_original("huggingface", ORIGINALS) is HUGGINGFACE


@pytest.mark.parametrize(
    ("options", "original", "named"),
    [
        (CAE, HUGGINGFACE, ["Hugging Face transformers", "cae_tiny"]),
        (MAE, CAE_ORIGINAL, ["Atten4Vis/CAE", "mae_vit_tiny"]),
        ({**MAE, "norm_eps": 1e-5}, FACEBOOK, ["facebookresearch/mae", "mae_vit_tiny"]),
        ({**MAE, "norm_eps": 1e-5}, HUGGINGFACE, ["code of Hugging Face transformers"]),
        ({"model": "pretrain_mae_small_patch16_224", "method": "mae_priv"}, FACEBOOK, ["pretrain_mae_small"]),
        (CAE, CAE_ORIGINAL, ["img_size", "(32, 32)", "(224, 224)"]),
        (MAE, FACEBOOK, []),
        ({**MAE, "norm_pix_loss": True}, HUGGINGFACE, []),
    ],
)
def test_networks_that_an_original_cannot_build(options, original, named):
    reason = unsupported_reason(original, small(options))
    assert bool(reason) == bool(named)
    assert all(value in reason for value in named), reason


def test_messages_are_read_as_written(tmp_path):
    arrays = {"b/weight": np.arange(6.0).reshape(2, 3), "a": np.array([True, False])}
    message = Message({"rates": [0.0, 1e-3], "name": "x"}, {"weights": arrays, "batch": {"images": np.zeros(1)}})
    message.write(tmp_path / "m.npz")
    back = Message.read(tmp_path / "m.npz")
    assert back.settings == message.settings
    assert list(back.groups["weights"]) == ["b/weight", "a"]
    np.testing.assert_array_equal(back.groups["weights"]["b/weight"], arrays["b/weight"])


def test_the_programs_do_not_import_paddle():
    """Their interpreter need not have Paddle."""
    code = "import sys, plsc_mae.parity.references.exchange; print('paddle' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_the_original_code_builds_published_cae_only(monkeypatch):
    """The published sizes are replaced by those of the small case, to avoid a network of 70 M parameters."""
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    monkeypatch.setattr(cae_module, "find_variant", lambda _name: Variant("", sizes))
    fixed = {"img_size": (32, 32), "decoder_num_heads": 4, "decoder_num_classes": 32}
    monkeypatch.setattr(cae_module, "CAE_FIXED", fixed)
    assert unsupported_reason(CAE_ORIGINAL, small(CAE)) == ""
    monkeypatch.setattr(cae_module, "CAE_FIXED", {**fixed, "decoder_num_heads": 12})
    reason = unsupported_reason(CAE_ORIGINAL, small(CAE))
    assert all(value in reason for value in ("decoder_num_heads", "4", "12")), reason
