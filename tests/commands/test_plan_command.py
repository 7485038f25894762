"""`plsc-mae plan` prints the cost of a run without starting it, and docs/reference/plan.md has the same numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import paddle
import pytest

from plsc_mae import runtime
from plsc_mae.cli import main
from plsc_mae.config import PHASES
from plsc_mae.config.plan import PlanOptions, planned
from plsc_mae.config.schema import options

pytestmark = [pytest.mark.compat, pytest.mark.once]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/plan.md"
SMALL = "pretrain --model mae_vit_tiny_patch16 --depth 1 --decoder_depth 1"
CAE, PROBE = "finetune --model cae_base_patch16_224", "linprobe --model vit_base_patch16"


@pytest.fixture
def printed(capsys, monkeypatch):
    """Run a plan from the repository's folder and return its output, or its error."""
    monkeypatch.chdir(ROOT)

    def run(line: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["plan", *shlex.split(line)]) == code
        output = capsys.readouterr()
        return output.err if code else output.out

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
def test_what_fits_and_what_does_not(printed):
    base = "finetune --model vit_huge_patch14 --devices 8 --batch_size 16"
    assert re.search(r"^fits: [\d.]+ of 36.0 GiB .*40 GiB less 10% headroom", printed(f"{base}"), re.MULTILINE)
    too_much = printed(f"{base} --batch_size 256 --device_memory 80 --headroom 0")
    assert re.search(r"^does not fit: [\d.]+ of 80.0 GiB", too_much, re.MULTILINE)
    assert re.search(r"^fits with --recompute: [\d.]+ GiB$", too_much, re.MULTILINE)
    assert "no layout of 8 such devices makes it fit" in printed(f"{base} --device_memory 1")


def test_files_of_the_run_are_read_or_named(printed, tmp_path, capsys):
    stats = tmp_path / "stats.json"
    stats.write_text('{"in_chans": 4, "mean": [0.1, 0.2, 0.3, 0.4], "std": [0.1, 0.1, 0.1, 0.1]}')
    lines = [printed(f"{SMALL} {channels}") for channels in (f"--stats {stats}", "--in_chans 4", "")]
    assert lines[0] == lines[1] != lines[2]
    missing = tmp_path / "none.json"
    told = printed(f"{SMALL} --stats {missing}", 2)
    assert f"cannot read --stats {missing}: " in told
    assert f"write the file by `plsc-mae stats DIR --save_path {missing}`" in told
    assert main(["plan", *f"{PROBE} --depth 1 --finetune {tmp_path / 'none.pd'}".split()]) == 0
    assert "none.pd does not exist here, so the plan has the sizes of --model" in capsys.readouterr().err


def test_the_run_is_counted(printed):
    out = printed("pretrain -c configs/mae/pretrain_vit_base_1600e.yaml --devices 32 --images_per_second 5000")
    assert "111.66 M  parameters" in out
    assert "4096 images  batch 128 x 32 x accum_iter 1" in out
    assert "312 updates  1281167 images" in out
    assert "499200 updates  1600 epochs" in out
    assert "113.9 h  at 5000 images/s" in out
    assert "1000 images/s" in printed("pretrain --model mae_vit_base_patch16")


@pytest.mark.parametrize(("images", "time"), [(1200, "2 min"), (500, "50 s"), (36_000, "1.0 h")])
def test_short_runs_take_minutes_or_seconds(printed, images, time):
    out = printed(f"{SMALL} --num_images {images} --epochs 10 --warmup_epochs 1 --images_per_second 100")
    assert re.search(rf"^  time +{time}  at 100 images/s$", out, re.MULTILINE)


def test_a_plan_for_this_cpu_assumes_its_memory(printed, monkeypatch):
    monkeypatch.setattr(runtime, "memory_bytes", lambda: 6 << 30)
    assert "2 processes of 3 GiB (--device_memory), float32" in printed(f"{SMALL} --device cpu --devices 2")
    assert "1 process of 5 GiB" in printed(f"{SMALL} --device cpu --device_memory 5")
    assert "1 device of 40 GiB" in printed(SMALL)
    assert "unknown  give --measure to time updates here" in printed(f"{SMALL} --device cpu")


def test_without_a_gpu_the_plan_says_that_it_is_for_others(monkeypatch, capsys, on_chip):
    hint = "no GPU here: this is a plan for GPUs; `--device cpu --measure` plans and times a run on this machine"
    for line, hinted in ((SMALL, True), (f"{SMALL} --device cpu", False), (f"{SMALL} --device gpu", False)):
        assert main(["plan", *shlex.split(line)]) == 0
        assert (hint in capsys.readouterr().err) == hinted
    on_chip(8, 0)
    assert main(["plan", *shlex.split(SMALL)]) == 0
    assert hint not in capsys.readouterr().err


@pytest.fixture
def on_chip(monkeypatch):
    """Return a function that pretends that Paddle has a GPU of some compute capability."""

    def pretend(*capability: int) -> None:
        monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
        monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: "A GPU")

    return pretend


def test_attention_follows_the_gpu_of_this_machine(printed, on_chip):
    assert "mixed precision O1, flash attention" in printed(SMALL)
    on_chip(7, 5)
    assert "mixed precision O1, no flash attention" in printed(SMALL)
    assert "mixed precision O1, flash attention" in printed(f"{SMALL} --flash")


def test_precision_follows_the_gpu_of_this_machine(printed, on_chip):
    in_float32 = printed(f"{SMALL} --no_amp")
    on_chip(6, 1)
    assert printed(SMALL) == in_float32
    assert "mixed precision" in printed(f"{SMALL} --flash")
    on_chip(7, 5)
    refusal = printed(f"{SMALL} --amp_dtype bfloat16", code=2)
    assert "--amp_dtype bfloat16: A GPU has compute capability 7.5" in refusal
    assert "--amp_dtype float16" in refusal
    assert "float32" in printed(f"{SMALL} --amp_dtype bfloat16 --device cpu")
    on_chip(8, 0)
    assert "mixed precision" in printed(f"{SMALL} --amp_dtype bfloat16")


def test_images_are_counted_and_not_read(printed, tmp_path):
    folder = tmp_path / "train/a"
    folder.mkdir(parents=True)
    for i in range(70):
        (folder / f"{i}.jpg").write_text("no picture")
    out = printed(f"pretrain --model mae_vit_tiny_patch16 --data_path {tmp_path}")
    assert "1 update  70 images" in out
    few = printed(f"pretrain --model mae_vit_tiny_patch16 --data_path {tmp_path} --batch_size 71", code=2)
    assert "70 images cannot fill one batch of 71 x 1" in few


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("pretrian", "unknown command 'plan pretrian'; did you mean 'plan pretrain'?"),
        ("finetune --model vit_base_patch16 --devices 6 --tensor_parallel 4", "cannot form groups"),
        ("finetune --model vit_base_patch16 --devices 8 --tensor_parallel 8", "does not divide the 12 attention heads"),
        (f"{PROBE} --cache_features", "--cache_features cannot be planned"),
        (f"{PROBE} --devices 2 --pipeline_parallel 2 --lr_sweep 1 2", "--lr_sweep and --pipeline_parallel"),
        (f"{CAE} --devices 2 --tensor_parallel 2 --attn_drop_rate 0.1", "--attn_drop_rate and --tensor_parallel"),
        ("finetune --model vit_base_patch16 --devices 16 --pipeline_parallel 16", "--pipeline_parallel 16"),
        ("finetune --model vit_base_patch16 --devices 2 --measure", "--measure"),
        ("pretrain --model mae_vit_base_patch16 --input_size 230", "not a multiple of patch_size 16"),
        ("pretrain --num_images 80 --batch_size 20 --accum_iter 32", "--accum_iter 4 or less"),
        (
            "pretrain --model vit_base_patch16",
            "vit_base_patch16 is not for pre-training; did you mean mae_vit_base_patch16",
        ),
    ],
)
def test_mistakes_are_named_in_one_sentence(printed, line, sentence):
    error = printed(line, code=2)
    assert error.startswith("plsc-mae: error: ")
    assert sentence in error


def test_the_example_in_the_document_is_what_is_printed(printed):
    command, output = re.search(
        r"```bash\nplsc-mae plan (.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.S
    ).groups()
    assert printed(command.replace("\\\n", " ")) == output


@pytest.mark.long
def test_the_tables_in_the_document_are_what_is_computed(printed):
    rows = re.findall(r"^\| `([^`]+\.yaml[^`]*)` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) >= 10
    for line, cells in rows:
        phase = re.search(r"/(pretrain|finetune|linprobe)_", line)[1]
        out = printed(f"{phase} -c {line}")
        for cell in (cell.strip() for cell in cells.split("|")):
            number = re.match(r"[\d.]+", cell)
            assert number is None or re.search(rf"(?<![\d.]){re.escape(cell)}(?![\d.])", out), (line, cell)
