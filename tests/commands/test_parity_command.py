"""The command `plsc-mae parity` on tiny networks, and its report in docs/reference/parity.md."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from plsc_mae.cli import COMMANDS, main
from plsc_mae.commands.parity import command_line
from plsc_mae.config.parity import ParityConfig
from plsc_mae.config.resolve import parse


def read(line: str) -> ParityConfig:
    return parse(shlex.split(line)[2:], COMMANDS["parity"].configs, prog="plsc-mae parity")


def test_checkpoint_of_this_suite(trained, tmp_path, capsys):
    file = trained() / "checkpoint-1.pd"
    assert main(["parity", "--checkpoint", str(file), "--save_path", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "| encoder.blocks.0 |" in shown
    assert shown.rstrip().splitlines()[-1].startswith("parity: ")
    report = json.loads((tmp_path / "out/parity.json").read_text())
    assert report["ok"] is True
    (comparison,) = report["comparisons"]
    assert comparison["network"] == "mae_vit_tiny_patch16"
    rows = {section["title"]: section["rows"] for section in comparison["sections"]}
    assert [row["name"] for row in rows["forward"]] == [
        *("encoder.embed", "encoder.blocks.0", "latent"),
        *("decoder.embed", "decoder.blocks.0", "pred", "target", "mask", "loss"),
    ]
    assert all(row["ok"] and row["relative"] <= 1e-5 for found in rows.values() for row in found)
    page = (tmp_path / "out/parity.md").read_text()
    assert f"| weights | of {file} |" in page
    assert page.count("| ok |") > 15


@pytest.mark.long
def test_beyond_tolerance_is_exit_code_1_and_names_the_first_layer(trained_cae, tmp_path, capsys):
    file = tmp_path / "report.json"
    line = ["parity", "--checkpoint", str(trained_cae()), "--tolerance", "1e-12", "--save_path", str(file)]
    assert main(line) == 1
    error = capsys.readouterr().err
    for value in ("cae_tiny_patch16_224_8k_vocab", "oracle", "forward", "encoder.embed", "1e-12"):
        assert value in error
    assert json.loads(file.read_text())["ok"] is False


def test_an_unsupported_network_is_refused_before_any_comparison(trained_cae, capsys):
    assert main(["parity", "--checkpoint", str(trained_cae()), "--reference", "huggingface"]) == 2
    shown = capsys.readouterr()
    for value in ("--reference huggingface", "Hugging Face transformers", "cae_tiny_patch16_224_8k_vocab"):
        assert value in shown.err
    assert "|" not in shown.out


@pytest.mark.long
@pytest.mark.parametrize("name", ["mae/checkpoints/priv_pretrain_cls", "cae/checkpoints/cae_pretrain_checkpoint-1"])
def test_checkpoint_of_another_implementation(root, name, capsys):
    file = root / f"tests/golden/{name}.pth"
    assert main(["parity", "--checkpoint", str(file), "--num_heads", "4", "--decoder_num_heads", "4"]) == 0
    assert "| loss |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--checkpoint x --model mae_vit_base_patch16", ["--checkpoint", "--model"]),
        ("--checkpoint x --dialect mae_priv", ["--checkpoint", "--dialect"]),
        ("--python python3", ["--python", "--reference"]),
        ("--model vit_base_patch16", ["vit_base_patch16"]),
        ("--model mae_vit_bose_patch16", ["mae_vit_bose_patch16", "mae_vit_base_patch16"]),
        ("--model mae_vit_tiny_patch16 --reference .", ["--reference .", "facebookresearch/mae", "Atten4Vis/CAE"]),
        ("--tolerance 0", ["--tolerance", "(0, 1)"]),
    ],
)
def test_wrong_options_are_named(line, named, capsys):
    assert main(["parity", *line.split()]) == 2
    error = capsys.readouterr().err
    assert all(value in error for value in named), error


def test_the_command_line_of_a_report_has_its_options():
    config = ParityConfig(model=("mae_vit_base_patch16", "cae_base_patch16_224_8k_vocab"), random=0)
    assert command_line(config) == "plsc-mae parity --random 0"
    other = ParityConfig(model=("mae_vit_tiny_patch16",), amp=True, tolerance=0.05, save_path="a b.md")
    assert read(command_line(other)) == other


def test_the_page_in_docs_is_a_report_without_failures(root):
    page = (root / "docs/reference/parity.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\| command \| `(.+)` \|$", page, re.MULTILINE)
    config = read(line)
    assert config.save_path == "docs/reference/parity.md"
    assert config.model == ParityConfig().model
    assert not config.checkpoint
    summary = re.findall(r"^\| (\S+) \| (.+?) \| (\w+) \| \d+ \| .+ \| (\S+) \| (\S+) \| (.+) \|$", page, re.MULTILINE)
    against = {(network, title) for network, reference, title, *_ in summary if "oracle" in reference}
    assert against == {(network, title) for network in config.model for title in ("forward", "gradients", "updates")}
    for *_, found, tolerance, verdict in summary:
        assert verdict == "ok"
        assert float(found) <= float(tolerance)
    rows = re.findall(r"^\| (\S+) .*\| (\S+) \| (\S+) \| (\S+) \|$", page[page.index("### forward") :], re.MULTILINE)
    assert len(rows) > 100
    for name, found, tolerance, verdict in rows:
        if name.isdigit():  # "43 more with smaller differences"
            continue
        assert verdict == "ok", name
        assert float(found) <= float(tolerance), name
