"""The first and the last lines of a run: what will happen, and the commands for its result, which work."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
from pathlib import Path

import numpy as np
import pytest
from paddle import nn
from PIL import Image

from plsc_mae import console
from plsc_mae.cli import COMMANDS, main
from plsc_mae.commands import next_steps
from plsc_mae.commands.next_steps import after_pretraining
from plsc_mae.config import PRETRAIN
from plsc_mae.config.resolve import from_mapping, parse
from plsc_mae.data.listing import list_images
from plsc_mae.errors import UserError
from plsc_mae.methods.label_kinds import Classes

SHORT = "--epochs 1 --warmup_epochs 0 --num_workers 0"
TINY_SIMMIM = (
    "--model pretrain_simmim_tiny_patch16_224 --input_size 32 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 2 "
    "--mask_patch_size 16 --vis_freq 0"
)


def run(line: str, capsys) -> list[str]:
    assert main(shlex.split(line)) == 0
    return capsys.readouterr().out.splitlines()


def next_commands(lines: list[str]) -> dict[str, list[str]]:
    """Return {use: words after the program} of the lines below `next:`."""
    found = {}
    for line in lines[lines.index("next:") + 1 :]:
        use, *words = shlex.split(line)
        found[use] = words[next(i for i, word in enumerate(words) if word in {name.split()[0] for name in COMMANDS}) :]
    return found


@pytest.fixture(scope="module")
def options(tiny) -> str:
    return f"{' '.join(tiny)} --epochs 1 --warmup_epochs 0 --num_workers 0 --vis_freq 0 --device cpu"


@pytest.mark.compat
def test_a_run_announces_its_plan_and_ends_with_commands_that_work(options, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = run(f"pretrain {options} --data_path {images} --output_dir 'my run'", capsys)
    rows = {line.split()[0]: line for line in lines if line.startswith("  ") and not line.startswith("   ")}
    assert list(rows) == ["data", "network", "recipe", "options", "memory", "time", "output", "stop"]
    assert f"{images}: 30 images, 3 updates per epoch" in rows["data"]
    assert "docs/few-images.md" in " ".join(lines)
    assert "iB per process for tensors" in rows["memory"]
    (continuing,) = (line for line in lines if line.endswith("--auto_resume"))
    assert "pretrain --config 'my run/config.yaml' --auto_resume" in continuing
    assert any(line.startswith("epoch 0 done (1/1): loss ") for line in lines)
    (end,) = (line for line in lines if line.startswith("finished: 1 of 1 epoch, 3 updates"))
    assert end.endswith("saved in my run/checkpoint-0.pd")

    commands = next_commands(lines)
    assert list(commands) == ["learning", "pictures", "classifier", "others"]
    tuning = parse(commands["classifier"][1:], COMMANDS["finetune"].configs, prog="finetune")
    assert (tuning.epochs, tuning.blr) == (300, 0.01)  # few images, and a narrow encoder
    assert (tuning.embed_dim, tuning.input_size) == (None, (224,))  # those of the checkpoint
    assert tuning.crop_pct is None
    assert main([*commands["pictures"], "--max_images", "1"]) == 0
    assert Path("my run/reconstruction").is_dir()
    assert main(commands["others"]) == 0
    tuned = [*commands["classifier"], *SHORT.split()]
    capsys.readouterr()
    assert main(tuned) == 0
    out, err = capsys.readouterr()
    assert "within chance" in out + err  # after three updates
    commands = next_commands([line for line in out.splitlines() if "read: " not in line])
    assert list(commands) == ["learning", "data"]  # this classifier is of no use
    assert "read: docs/few-images.md" in out
    assert commands["learning"] == ["report", "my run-finetune"]
    parse(commands["data"][1:], COMMANDS["doctor"].configs, prog="doctor")
    monkeypatch.setattr(Classes, "chance", lambda *_: -1.0)
    assert main([*tuned, "--output_dir", "tuned"]) == 0
    lines = capsys.readouterr().out.splitlines()
    value = json.loads(Path("tuned/log.txt").read_text())["test_acc1"]
    (result,) = (line for line in lines if line.startswith("result: "))
    assert f"test_acc1 {value:.4g} at its best, {value:.4g} at the end; luck reaches up to -1; worst class: '" in result
    assert result.endswith(" right")
    commands = next_commands(lines)
    assert list(commands) == ["learning", "predict", "evaluate", "deploy", "others"]
    assert main(commands["predict"]) == 0
    assert main(commands["evaluate"]) == 0
    parse(commands["deploy"][1:], COMMANDS["export"].configs, prog="export")


@pytest.fixture
def gray_list(tmp_path) -> Path:
    """A list file of ten gray 16-bit images of two classes and an unreadable one; its path has spaces."""
    folder, rng = tmp_path / "my images", np.random.default_rng(0)
    folder.mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 4096, (32, 32), np.uint16)).save(folder / f"{i}.png")
    (folder / "10.png").write_bytes(b"no image")
    (folder / "my list.txt").write_text("".join(f"{i}.png {int(i % 4 == 0)}\n" for i in range(11)))
    return folder / "my list.txt"


@pytest.mark.parametrize("method", ["mae", pytest.param("simmim", marks=pytest.mark.slow)])
def test_commands_work_for_few_gray_images_without_validation(
    method, options, gray_list, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = {"mae": options, "simmim": TINY_SIMMIM}[method].split()
    given = ["--in_chans", "1", "--bad_image", "skip", "--data_path", str(gray_list), "--output_dir", "my run"]
    assert main(["pretrain", *words, *SHORT.split(), "--batch_size", "4", *given]) == 0
    commands = next_commands(capsys.readouterr().out.splitlines())
    assert main(commands["pictures"]) == 1  # the unreadable image is left out
    capsys.readouterr()
    assert main(commands["others"]) == 0
    assert "converted" not in "".join(capsys.readouterr())  # all commands read one channel
    assert "--balance_classes" in commands["classifier"]  # 3 and 8 images
    assert "--bad_image" in commands["classifier"]
    assert main([*commands["classifier"], *SHORT.split()]) == 0
    commands = next_commands(capsys.readouterr().out.splitlines())
    assert list(commands) == ["learning", "predict", "deploy", "others"]
    assert main(commands["predict"]) == 1


def test_rectangular_inputs_keep_whole_images(options, images, tmp_path, capsys):
    shape = "--input_size 48 64 --crop_scale 0.5 1"
    lines = run(f"pretrain {options} {shape} --data_path {images} --output_dir {tmp_path / 'run'}", capsys)
    tuning = parse(next_commands(lines)["classifier"][1:], COMMANDS["finetune"].configs, prog="finetune")
    assert (tuning.crop_pct, tuning.crop_scale) == (1, (0.5, 1))
    assert "changed to patch_size " in " ".join(lines)


@pytest.mark.parametrize(
    ("heading", "given"),
    [
        ("### Color photographs of 4:3", {"input_size": (144, 192), "crop_scale": (0.5, 1)}),
        ("### Gray images on a CPU", {"input_size": (64,), "in_chans": 1, "patch_size": 8}),
    ],
)
def test_a_tiny_network_gets_the_command_of_the_page(heading, given):
    """Its command on 100 to 299 labeled images is that of docs/few-images.md, whose accuracy was measured."""
    section = Path("docs/few-images.md").read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    block = section.partition("```bash\n")[2].partition("```")[0].replace("\\\n", " ")
    (line,) = (line for line in block.splitlines() if line.startswith("plsc-mae finetune"))
    page = parse(shlex.split(line)[2:], COMMANDS["finetune"].configs, prog="finetune")
    config = PRETRAIN["mae"](data_path="<data in memory>", **given)
    flags = next_steps._classifier_flags(config, np.arange(108) % 3, width=64)
    words = f"--finetune {page.finetune} --data_path DIR --output_dir tuned --num_workers 1{flags}"
    assert parse(words.split(), COMMANDS["finetune"].configs, prog="finetune") == page
    assert "--epochs 300" in next_steps._classifier_flags(config, np.arange(99) % 3, width=64)  # not measured
    assert "--epochs 300" in next_steps._classifier_flags(config, np.arange(108) % 3, width=192)
    many = next_steps._classifier_flags(config, np.arange(1200) % 3, width=64)
    assert ("--blr 0.03" in many, "--epochs" in many) == (True, False)
    assert "--blr" not in next_steps._classifier_flags(config, np.arange(1200) % 3, width=192)


def test_commands_keep_the_validation_list(options, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["split", str(images / "train"), "lists"]) == 0
    Path("lists/train.txt").rename("lists/other.txt")
    lines = run(f"pretrain {options} --data_path lists/other.txt --output_dir run", capsys)
    tuning = [*next_commands(lines)["classifier"], *SHORT.split()]
    assert tuning[tuning.index("--eval_data_path") + 1] == "lists/val.txt"
    assert main(tuning) == 0
    data = next_commands([line for line in capsys.readouterr().out.splitlines() if "read: " not in line])["data"]
    assert data == ["doctor", "--data_path", "lists/other.txt", "--eval_data_path", "lists/val.txt"]
    assert main(data) == 0
    monkeypatch.setattr(Classes, "chance", lambda *_: -1.0)
    assert main([*tuning, "--output_dir", "tuned", "--train_fraction", "0.5"]) == 0
    commands = next_commands(capsys.readouterr().out.splitlines())
    assert main(commands["predict"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.endswith((".png", ".jpg"))]
    assert len(shown) == len(Path("lists/val.txt").read_text().splitlines())
    assert not any(".." in line for line in shown)
    assert main(commands["evaluate"]) == 0


def test_lines_of_weights_inspect_are_quoted(options, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(f"pretrain {options} --data_path {images} --output_dir 'my run' --max_train_step 1", capsys)
    lines = run("weights inspect 'my run/checkpoint-latest.pd'", capsys)
    commands = [shlex.split(line[line.index("plsc-mae ") :])[1:] for line in lines if "plsc-mae " in line]
    assert {"knn", "reconstruct", "finetune"} <= {words[0] for words in commands}
    for words in commands:
        assert "my run/checkpoint-latest.pd" in words
        parse([word.replace("N", "2") for word in words[1:]], COMMANDS[words[0]].configs, prog=words[0])


def test_a_network_without_an_encoder_has_no_pictures(images, tmp_path, capsys):
    config = from_mapping({"data_path": "<data in memory>", "output_dir": str(tmp_path)}, PRETRAIN, "test")
    with log_shown():
        after_pretraining(config, nn.Linear(2, 2), tmp_path / "checkpoint-0.pd", list_images(images, "train"))
    assert list(next_commands(capsys.readouterr().out.splitlines())) == ["learning", "others"]


@contextlib.contextmanager
def log_shown():
    """Show the log of the package as a command does."""
    log = logging.getLogger("plsc_mae")
    before = log.handlers, log.level, log.propagate
    console.log_to_console(main=True)
    yield
    log.handlers, log.level, log.propagate = before


def test_json_and_quiet(options, images, tmp_path, capsys):
    line = f"pretrain {options} --data_path {images}"
    events = [json.loads(text) for text in run(f"{line} --output_dir {tmp_path / 'json'} --json", capsys)]
    kinds = [event["event"] for event in events]
    assert [kind for kind in kinds if kind != "message"] == [
        "plan",
        "start",
        "update",
        "update",
        "epoch",
        "end",
        "next",
    ]
    by_kind = dict(zip(kinds, events, strict=True))
    assert by_kind["plan"]["images"] == 30
    assert by_kind["plan"]["planned_memory_bytes"] > 1e5
    assert by_kind["start"]["continue"].endswith("--auto_resume --json")
    stored = json.loads((tmp_path / "json/train.jsonl").read_text())
    assert {name: by_kind["update"][name] for name in stored if name != "run"} == {
        name: value for name, value in stored.items() if name != "run"
    }
    assert by_kind["epoch"]["train_loss"] == pytest.approx(stored["loss"])
    assert by_kind["end"]["checkpoint"].endswith("checkpoint-0.pd")
    assert run(f"{line} --output_dir {tmp_path / 'quiet'} --quiet", capsys) == []
    with pytest.raises(UserError, match=r"--quiet.*--json"):
        parse(["--quiet", "--json"], COMMANDS["pretrain"].configs, prog="pretrain")
