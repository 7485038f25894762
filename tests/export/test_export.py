"""`plsc-mae export`: the files for libraries, what is refused, and what is never replaced."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import typing
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
import yaml

from plsc_mae.cli import main
from plsc_mae.config.export import ExportConfig
from plsc_mae.errors import CheckpointError
from plsc_mae.export import verify
from plsc_mae.export.content import open_content
from plsc_mae.export.tables import flat_table, linear_head
from plsc_mae.export.targets import load_target
from plsc_mae.weights.reader import read_file

PACKAGES = ("paddleseg", "paddledet", "paddleclas", "timm", "huggingface")


def run(capsys, file, out, target, *words):
    """Run a command that is refused and return its message."""
    line = ["export", "--target", target, "--model_path", str(file), "--save_path", str(out), "--num_heads", "3"]
    assert main([*line, *words]) == 2
    return capsys.readouterr().err


def test_every_target_of_the_options_exists():
    hint = typing.get_args(typing.get_type_hints(ExportConfig)["target"])
    names = [name for part in hint for name in typing.get_args(part)]
    assert len(names) == 7
    for name in names:
        target = load_target(name)
        assert target.name == name
        assert "encoder" in target.parts


@pytest.mark.parametrize("target", PACKAGES)
def test_weights_are_flat(export, target):
    """These libraries load nothing, silently, from a table below a key."""
    out, _ = export("mae", target, "--no_verify")
    (file,) = [*out.glob("*.pdparams"), *out.glob("*.safetensors")]
    assert not [name for name in read_file(file).tensors if "/" in name]
    compile((out / "example.py").read_text(), "example.py", "exec")


def test_an_example_silences_one_advice_of_paddle(export):
    text = (export("mae", "inference", "--no_verify")[0] / "example.py").read_text()
    assert 0 < text.index('message="No ccache found"') < text.index("from paddle")
    assert "ccache" not in (export("mae", "timm", "--no_verify")[0] / "example.py").read_text()


def test_paddleseg_gets_the_settings_that_its_defaults_lack(export):
    out, _ = export("mae", "paddleseg", "--no_verify")
    backbone = yaml.safe_load((out / "backbone.yml").read_text())["model"]["backbone"]
    assert backbone["type"] == "VisionTransformer"
    assert backbone["qkv_bias"] is True
    assert backbone["epsilon"] == pytest.approx(1e-6)
    assert backbone["final_norm"] is True
    assert backbone["pretrained"] == "backbone.pdparams"


def test_paddledet_gets_separate_biases_and_tables_of_the_target_size(export):
    out, _ = export("cae_classifier", "paddledet", "--no_verify", "--input_size", "40")
    table = read_file(out / "backbone.pdparams").tensors
    assert table["blocks.0.attn.relative_position_bias_table"].shape == (9 * 9 + 3, 3)
    assert table["pos_embed"].shape == (1, 26, 24)
    assert "blocks.0.attn.q_bias" in table
    assert "blocks.0.attn.qkv.bias" not in table
    settings = yaml.safe_load((out / "backbone.yml").read_text())["VisionTransformer"]
    assert settings["img_size"] == [40, 40]
    assert settings["use_rel_pos_bias"] is True
    assert settings["init_values"] == pytest.approx(0.1)


def test_paddleclas_gets_a_bias_of_the_patch_embedding(export):
    out, _ = export("mae_token_classifier", "paddleclas", "--no_verify")
    assert "'conv_bias': True" in (out / "example.py").read_text()
    names = read_file(out / "model.pdparams").tensors
    assert {"head.fc_head.weight", "norm.weight", "patch_embed.proj.bias"} <= set(names)


def test_shared_positions_are_in_every_block_and_absent_ones_are_zero(export):
    out, _ = export("simmim", "paddleseg", "--no_verify")
    table = read_file(out / "backbone.pdparams").tensors
    first, second = (table[f"blocks.{i}.attn.relative_position_bias_table"] for i in (0, 1))
    np.testing.assert_array_equal(first, second)
    assert not table["pos_embed"].any()
    assert "mask_token" not in table


@pytest.mark.parametrize("name", ["mae_probe", "mae_raw_probe"])
def test_a_folded_head_computes_the_same(file_of, name):
    config = ExportConfig(target="timm", model_path=str(file_of(name)), save_path="unused", num_heads=3)
    content = open_content(config, ("classifier",))
    (images,) = content.sample(4)
    classifier = content.classifier
    weight, bias = linear_head(classifier)
    tokens = classifier.pool(paddle.to_tensor(images))
    norm = classifier.fc_norm if name == "mae_probe" else None
    pooled = (tokens if norm is None else norm(tokens)).numpy()
    np.testing.assert_allclose(pooled @ weight + bias, content.layer(paddle.to_tensor(images))[0].numpy(), atol=1e-5)
    assert ("fc_norm.weight" in flat_table(content, "timm")) is (name == "mae_probe")


@pytest.mark.parametrize(
    ("name", "target", "words", "named"),
    [
        ("cae_attentive", "timm", [], "attention"),
        ("cae_attentive", "paddleclas", [], "attention"),
        ("mae_raw_probe", "paddleclas", [], "no layer norm"),
        ("mae", "paddleclas", ["--input_size", "24", "32"], "not square"),
        ("cae", "huggingface", ["--what", "reconstruction", "--decoder_num_heads", "2"], "--what encoder"),
        ("mae", "paddleseg", ["--what", "classifier"], "--what classifier"),
        ("mae", "inference", ["--what", "classifier"], "has none"),
        ("mae", "inference", ["--mask_ratio", "0.5"], "--what reconstruction"),
    ],
)
def test_refusals_write_nothing(file_of, tmp_path, capsys, name, target, words, named):
    assert named in run(capsys, file_of(name), tmp_path / "out", target, *words)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(file_of, tmp_path, capsys, monkeypatch):
    assert "--target is required" in run_bare(capsys, ["--model_path", "a", "--save_path", "b"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    message = run(capsys, file_of("mae"), tmp_path / "out", "onnx")
    assert "paddle2onnx" in message
    assert "plsc_mae[onnx]" in message


def run_bare(capsys, words):
    """Run `export` with these words only and return its message."""
    assert main(["export", *words]) == 2
    return capsys.readouterr().err


def test_folders_of_others_are_kept_and_earlier_exports_replaced(export, file_of, tmp_path, capsys):
    out, _ = export("mae", "paddleseg", "--no_verify")
    (out / "notes.txt").write_text("mine")
    export("mae", "paddleseg", "--no_verify")
    words = ["--no_verify"]
    line = ["export", "--target", "timm", "--model_path", str(file_of("mae")), "--save_path", str(out)]
    assert main([*line, "--num_heads", "3", *words]) == 0
    assert {file.name for file in out.iterdir()} == {"example.py", "export.json", "model.safetensors", "notes.txt"}
    capsys.readouterr()
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_text("mine")
    assert str(other) in run(capsys, file_of("mae"), other, "timm", *words)
    assert [file.name for file in other.iterdir()] == ["model.safetensors"]
    (out / "model.safetensors").unlink()
    described = json.loads((out / "export.json").read_text())
    described["files"].remove("example.py")
    (out / "export.json").write_text(json.dumps(described))
    assert "example.py" in run(capsys, file_of("mae"), out, "timm", *words)


def test_the_replaced_export_of_another_checkpoint_is_named(export, file_of, capsys):
    out, described = export("mae", "paddleseg", "--no_verify")
    assert described["checkpoint"] == str(file_of("mae"))
    export("mae", "paddleseg", "--no_verify")
    assert capsys.readouterr().err == ""
    line = ["export", "--target", "timm", "--model_path", str(file_of("mae_classifier")), "--save_path", str(out)]
    assert main([*line, "--num_heads", "3", "--no_verify"]) == 0
    told = f"the export of {file_of('mae')} in {out} will be replaced by that of {file_of('mae_classifier')}"
    assert told in capsys.readouterr().err


def test_a_difference_is_an_error_and_a_missing_package_is_said(file_of, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "paddleseg" else found(name))
    line = [
        "export",
        "--target",
        "paddleseg",
        "--model_path",
        str(file_of("mae")),
        "--save_path",
        str(tmp_path / "out"),
    ]
    assert main([*line, "--num_heads", "3"]) == 0
    assert "not verified: paddleseg is not installed" in capsys.readouterr().out
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: True)
    config = ExportConfig(target="paddleseg", model_path=str(file_of("mae")), save_path="unused", num_heads=3)
    target = load_target("paddleseg")
    content = open_content(config, target.parts)
    right = [target.expected(content, content.sample(batch, seed=batch)) for batch in verify.BATCHES]
    wrong = [{"patches": outputs["patches"] + 0.01} for outputs in right]
    monkeypatch.setattr(verify, "_run_in_process", lambda *_: right)
    assert verify.verify(target, content, tmp_path, 0.0).differences == {"patches": 0.0}
    monkeypatch.setattr(verify, "_run_in_process", lambda *_: wrong)
    with pytest.raises(CheckpointError, match=r"patches 0\.01"):
        verify.verify(target, content, tmp_path, 1e-5)


def test_an_example_that_fails_in_this_process_is_one_sentence(tmp_path):
    (tmp_path / "example.py").write_text("raise RuntimeError('stack\\nno kernel')\n")
    with pytest.raises(
        CheckpointError, match=r"not run in Paddle Inference \(RuntimeError\): no kernel; .*--no_verify"
    ):
        verify._run_here(SimpleNamespace(title="Paddle Inference"), tmp_path, [])


def test_paddle_is_told_to_hide_its_warnings_unless_the_user_decides():
    probe = "import os, sys, plsc_mae.export; assert 'paddle' not in sys.modules; print(os.environ['GLOG_minloglevel'])"
    for given, level in (({}, "2"), ({"GLOG_minloglevel": "0"}, "0")):
        environ = {name: value for name, value in os.environ.items() if name != "GLOG_minloglevel"} | given
        done = subprocess.run([sys.executable, "-c", probe], env=environ, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == level
