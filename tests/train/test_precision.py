"""Options and GPU select the precision; Paddle itself would compute in float32, with a warning only."""

from __future__ import annotations

import paddle
import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.errors import ConfigError
from plsc_mae.train.precision import INITIAL_LOSS_SCALE, choose_precision

pytestmark = pytest.mark.compat


@pytest.fixture
def on_chip(monkeypatch):
    """Return a function that chooses the precision on a GPU of some compute capability."""

    def choose(capability: tuple[int, int], amp_dtype: str = "auto", amp: bool = True):
        monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: "A GPU")
        return choose_precision(amp, amp_dtype, True)

    return choose


@pytest.fixture
def volta(monkeypatch):
    """Pretend that Paddle has a V100, on which nothing can be computed here."""
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle, "set_device", lambda _: None)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: "V100")


@pytest.mark.parametrize(
    ("capability", "dtype", "scale"),
    [((6, 1), None, None), ((7, 5), "float16", INITIAL_LOSS_SCALE), ((8, 0), "bfloat16", None)],
)
def test_auto_takes_the_best_type(on_chip, capability, dtype, scale):
    precision = on_chip(capability)
    assert (precision.dtype, precision.initial_loss_scale) == (dtype, scale)
    assert (dtype or "float32") in precision.note


@pytest.mark.parametrize(
    ("capability", "dtype", "remedy"),
    [
        ((7, 0), "bfloat16", "use --amp_dtype float16, or --no_amp"),
        ((6, 1), "bfloat16", "use --no_amp"),
        ((6, 1), "float16", "use --no_amp"),
    ],
)
def test_a_type_that_the_gpu_lacks_is_refused(on_chip, capability, dtype, remedy):
    with pytest.raises(
        ConfigError, match=rf"--amp_dtype {dtype}: A GPU has .* {capability[0]}\.{capability[1]}.*{remedy}"
    ):
        on_chip(capability, dtype)
    assert on_chip(capability, dtype, amp=False).dtype is None


def test_on_cpu_every_option_means_float32():
    assert [choose_precision(True, dtype, False).dtype for dtype in ("auto", "float16", "bfloat16")] == [None] * 3


@pytest.mark.parametrize(
    "line",
    [
        "pretrain --model mae_vit_tiny_patch16",
        "finetune --model vit_tiny_patch16",
        "linprobe --model vit_tiny_patch16",
        "bench step --model mae_vit_tiny_patch16",
        "plan pretrain --model mae_vit_tiny_patch16 --depth 1 --batch_size 2 --measure",
        "parity --model mae_vit_tiny_patch16 --amp",
    ],
)
def test_every_command_refuses_it_before_any_work(line, volta, tmp_path, capsys):
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    trains = line.split()[0] in ("pretrain", "finetune", "linprobe")
    folders = f" --data_path {tmp_path} --output_dir {tmp_path}/out" if trains else ""
    assert main(f"{line}{folders} --device gpu --amp_dtype bfloat16".split()) == 2
    assert "--amp_dtype bfloat16: V100 has compute capability 7.0" in capsys.readouterr().err
