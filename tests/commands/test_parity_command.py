"""`plsc-mae parity` as it is typed, on tiny networks, and the page that it wrote."""

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
    assert "parity: all within tolerance" in shown
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
    assert "cae_tiny_patch16_224_8k_vocab against the float64 oracle, forward: encoder.embed differs by" in error
    assert "tolerance 1e-12" in error
    assert json.loads(file.read_text())["ok"] is False


def test_a_network_that_the_reference_has_not_is_told_first(trained_cae, capsys):
    assert main(["parity", "--checkpoint", str(trained_cae()), "--reference", "huggingface"]) == 2
    shown = capsys.readouterr()
    assert "Hugging Face transformers has no network like cae_tiny" in shown.err
    assert "|" not in shown.out


@pytest.mark.long
@pytest.mark.parametrize("name", ["mae/checkpoints/priv_pretrain_cls", "cae/checkpoints/cae_pretrain_checkpoint-1"])
def test_checkpoint_of_another_implementation(root, name, capsys):
    file = root / f"tests/golden/{name}.pth"
    assert main(["parity", "--checkpoint", str(file), "--num_heads", "4", "--decoder_num_heads", "4"]) == 0
    assert "| loss |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--checkpoint x --model mae_vit_base_patch16", "leave --model out"),
        ("--checkpoint x --dialect mae_priv", "leave --dialect out"),
        ("--python python3", "give --reference too"),
        ("--model vit_base_patch16", "model vit_base_patch16"),
        ("--model mae_vit_bose_patch16", "did you mean mae_vit_base_patch16"),
        ("--model mae_vit_tiny_patch16 --reference .", "is no checkout of facebookresearch/mae"),
        ("--tolerance 0", "--tolerance must lie in (0, 1)"),
    ],
)
def test_mistakes_are_told_in_a_sentence(line, message, capsys):
    assert main(["parity", *line.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_command_line_of_a_report_gives_its_options_back():
    config = ParityConfig(model=("mae_vit_base_patch16", "cae_base_patch16_224_8k_vocab"), random=0)
    assert command_line(config) == "plsc-mae parity --random 0"
    other = ParityConfig(model=("mae_vit_tiny_patch16",), amp=True, tolerance=0.05, save_path="a b.md")
    assert read(command_line(other)) == other


def test_the_page_in_docs_is_this_commands_and_says_ok(root):
    page = (root / "docs/parity.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\| command \| `(.+)` \|$", page, re.MULTILINE)
    config = read(line)
    assert config.save_path == "docs/parity.md"
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
        if name.isdigit():  # "43 more, nearer"
            continue
        assert verdict == "ok", name
        assert float(found) <= float(tolerance), name
