"""`plsc-mae plan` tells what a run costs, without starting it; docs/plan.md tells the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from plsc_mae.cli import main
from plsc_mae.config import PHASES
from plsc_mae.config.plan import PlanOptions, planned
from plsc_mae.config.schema import options

pytestmark = pytest.mark.compat

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/plan.md"


@pytest.fixture
def told(capsys, monkeypatch):
    """What a plan prints; configs are found from the repository."""
    monkeypatch.chdir(ROOT)

    def run(line: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["plan", *shlex.split(line)]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def test_it_takes_every_option_of_every_run():
    for configs in PHASES.values():
        for method, cls in planned(configs).items():
            assert issubclass(cls, configs[method])
            own = {item.name for item in options(configs[method])}
            new = {item.name for item in options(PlanOptions)}
            assert not own & new
            assert {item.name for item in options(cls)} == own | new


@pytest.mark.long
def test_what_fits_and_what_does_not(told):
    base = "finetune --model vit_huge_patch14 --devices 8 --batch_size 16"
    assert re.search(r"^fits: [\d.]+ of 36.0 GiB, which are 40 less 10% of headroom", told(f"{base}"), re.MULTILINE)
    too_much = told(f"{base} --batch_size 256 --device_memory 80 --headroom 0")
    assert re.search(r"^does not fit: [\d.]+ of 80.0 GiB", too_much, re.MULTILINE)
    assert re.search(r"^fits with --recompute: [\d.]+ GiB$", too_much, re.MULTILINE)
    assert "no layout of 8 such devices makes it fit" in told(f"{base} --device_memory 1")


def test_the_run_is_counted(told):
    out = told("pretrain -c configs/mae/pretrain_vit_base_1600e.yaml --devices 32 --images_per_second 5000")
    assert "111.66 M  parameters" in out
    assert "4096 images  batch 128 x 32 x accum_iter 1" in out
    assert "312 updates  1281167 images" in out
    assert "499200 updates  1600 epochs" in out
    assert "113.9 h  at 5000 images/s" in out
    assert "1000 images/s" in told("pretrain --model mae_vit_base_patch16")


def test_images_are_counted_and_not_read(told, tmp_path):
    folder = tmp_path / "train/a"
    folder.mkdir(parents=True)
    for i in range(70):
        (folder / f"{i}.jpg").write_text("no picture")
    assert "1 updates  70 images" in told(f"pretrain --model mae_vit_tiny_patch16 --data_path {tmp_path}")
    few = told(f"pretrain --model mae_vit_tiny_patch16 --data_path {tmp_path} --batch_size 71", code=2)
    assert "70 images are fewer than one batch of 71 x 1" in few


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "unknown command 'plan'; did you mean 'plan pretrain'?"),
        ("finetune --model vit_base_patch16 --devices 6 --tensor_parallel 4", "cannot form groups"),
        ("finetune --model vit_base_patch16 --devices 8 --tensor_parallel 8", "does not divide the 12 attention heads"),
        ("linprobe --model vit_base_patch16 --cache_features", "leave --cache_features out"),
        ("finetune --model vit_base_patch16 --devices 2 --measure", "--measure runs on one device"),
        ("pretrain --model mae_vit_base_patch16 --input_size 230", "not a multiple of patch_size 16"),
        ("pretrain --model vit_base_patch16", "model vit_base_patch16 is for another purpose"),
    ],
)
def test_mistakes_are_told_in_a_sentence(told, line, sentence):
    error = told(line, code=2)
    assert error.startswith("plsc-mae: error: ")
    assert sentence in error


def test_the_example_in_the_document_is_what_is_printed(told):
    command, output = re.search(
        r"```bash\nplsc-mae plan (.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.S
    ).groups()
    assert told(command.replace("\\\n", " ")) == output


@pytest.mark.long
def test_the_tables_in_the_document_are_what_is_computed(told):
    rows = re.findall(r"^\| `([^`]+\.yaml[^`]*)` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) >= 10
    for line, cells in rows:
        phase = re.search(r"/(pretrain|finetune|linprobe)_", line)[1]
        out = told(f"{phase} -c {line}")
        for cell in (cell.strip() for cell in cells.split("|")):
            number = re.match(r"[\d.]+", cell)
            assert number is None or re.search(rf"(?<![\d.]){re.escape(cell)}(?![\d.])", out), (line, cell)
