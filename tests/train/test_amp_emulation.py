"""Mixed precision on a GPU, emulated on a CPU: losses stay near float32, and every operation has a GPU kernel."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import paddle
import pytest

from plsc_mae.cli import main
from plsc_mae.models import layers

_spec = importlib.util.spec_from_file_location("amp_emulation", Path(__file__).with_name("amp_emulation.py"))
amp_emulation = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(amp_emulation)

pytestmark = [pytest.mark.compat, pytest.mark.slow]

UPDATES = 30
TABLE = Path(__file__).parents[1] / "golden" / "gpu_kernels_2.6.2.json"
ENCODER = "--input_size 32 --patch_size 8 --embed_dim 32 --depth 2 --num_heads 4 --drop_path 0.2"
CAE = (
    f"pretrain --model cae_tiny_patch16_224_8k_vocab {ENCODER} --decoder_embed_dim 32 --regressor_depth 1 "
    "--num_decoder_self_attention 1 --decoder_num_heads 4 --num_mask_patches 8 --min_mask_patches_per_block 2 "
    "--clip_grad 3 --vis_freq 0"
)
RUNS = {
    "mae": f"pretrain --model mae_vit_tiny_patch16 {ENCODER} --decoder_embed_dim 32 --decoder_depth 1 "
    "--decoder_num_heads 4 --norm_pix_loss --vis_freq 0",
    "cae": f"{CAE} --discrete_vae_type random_init --discrete_vae_hidden 8 --decoder_num_classes 32",
    "cae of pixels": f"{CAE} --target_mode rgb --discrete_vae_type to_tensor --decoder_num_classes 192",
    "finetune mae": f"finetune --model vit_base_patch16 {ENCODER} --mixup 0.8 --cutmix 1.0 --model_ema "
    "--layer_decay 0.75 --clip_grad 1",
    "finetune cae": f"finetune --model cae_tiny_patch16_224 {ENCODER} --layer_decay 0.75",
}
# Attention layers per update that run in the flash kernel. CAE has two encoder blocks, applied to visible and to hidden
# patches, a regressor block with cross attention and a decoder block. Its fine-tuning has relative position biases.
FLASH = {"mae": 3, "cae": 6, "cae of pixels": 6, "finetune mae": 2, "finetune cae": 0}


@pytest.fixture(autouse=True)
def remember_tokens():
    """Replace the fixture that keeps tokens from run to run: they differ between float32 and float16."""


@pytest.fixture
def train(images, tmp_path, monkeypatch):
    """Return a function that trains for 30 updates in emulated precision: (losses, emulation)."""

    def run(line: str, dtype: str, *, paddle_3: bool = True, updates: int = UPDATES):
        emulation, folder = amp_emulation.Emulation(dtype, paddle_3=paddle_3), tmp_path / f"{dtype}{paddle_3}"
        common = "--epochs 4 --warmup_epochs 1 --lr none --blr 1e-2 --batch_size 12 --print_freq 1 --num_workers 0"
        words = f"{line} {common} --device cpu --no_save_ckpt --max_train_step {updates}".split()
        with monkeypatch.context() as patch:
            emulation.install(patch)
            assert main([*words, "--data_path", str(images), "--output_dir", str(folder)]) == 0
        records = [json.loads(text) for text in (folder / "train.jsonl").read_text().splitlines()]
        records = [record for record in records if "loss" in record]
        assert len(records) == updates
        assert all("grad_norm" in record for record in records)  # each update was applied
        assert {record["loss_scale"] for record in records} == {65536.0 if dtype == "float16" else 1.0}
        return [record["loss"] for record in records], emulation

    return run


def tolerance(dtype: str) -> float:
    """Return the relative deviation of a loss from float32 that the rounding of `dtype` explains.

    A mean of many rounded terms is about as exact as one term, and in 30 updates the weights hardly leave the course of
    float32: losses deviate by at most 0.7 of the unit roundoff (Paddle 3.3.1). Paddle 2.6 truncates on the CPU, where
    GPUs round to nearest: errors are twice as large and have one sign, and losses deviate by up to 2.2.
    """
    unit = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    rounded = paddle.to_tensor(1 + 1.9 * unit).astype(dtype).astype("float32").item()
    return unit if rounded > 1 else 3 * unit


@pytest.mark.parametrize("name", RUNS)
def test_training_in_mixed_precision(train, name):
    expected, _ = train(RUNS[name], "float32")
    kernels = json.loads(TABLE.read_text())["kernels"]
    for dtype in ("float16", "bfloat16"):
        for paddle_3 in (False, True):
            losses, emulation = train(RUNS[name], dtype, paddle_3=paddle_3)
            assert losses == pytest.approx(expected, rel=tolerance(dtype)), dtype
            assert not emulation.mixed
            assert emulation.kernels["matmul", dtype] > emulation.kernels["matmul", "float32"] == 0
            assert {
                (kernel, kind) for kernel, kind in emulation.kernels if kind not in kernels.get(kernel, ())
            } == set()
            if FLASH[name]:
                assert emulation.attention["flash"] >= FLASH[name] * UPDATES
                assert emulation.attention["plain"] == 0
                assert emulation.kernels["flash_attn_grad", dtype] >= FLASH[name] * UPDATES - UPDATES * 2
            else:
                assert emulation.attention["flash"] == 0


def test_the_emulation_sees_a_bias_of_another_dtype(train, monkeypatch):
    """Linear layers that add a float32 bias compute in float32 from there on, and attention runs plain."""
    _, usual = train(RUNS["mae"], "bfloat16", updates=2)
    monkeypatch.setattr(layers, "add_bias", lambda x, bias: x if bias is None else x + bias)
    _, promoted = train(RUNS["mae"], "bfloat16", paddle_3=False, updates=2)
    assert (usual.attention["plain"], promoted.attention["flash"]) == (0, 0)
    assert promoted.kernels["gelu", "float32"] == usual.kernels["gelu", "bfloat16"] > 0
    assert usual.kernels["gelu", "float32"] == 0
    assert sum(promoted.casts.values()) > sum(usual.casts.values())


def test_on_the_paths_of_a_gpu_float32_is_that_of_the_cpu(train, images, tmp_path):
    """The emulation changes nothing but dtypes."""
    emulated, emulation = train(RUNS["mae"], "float32", updates=10)
    assert not any(kind in ("float16", "bfloat16") for _, kind in emulation.kernels)
    words = f"{RUNS['mae']} --epochs 4 --warmup_epochs 1 --lr none --blr 1e-2 --batch_size 12 --print_freq 1".split()
    words += ["--num_workers", "0", "--no_save_ckpt", "--max_train_step", "10", "--data_path", str(images)]
    assert main([*words, "--device", "cpu", "--output_dir", str(tmp_path / "plain")]) == 0
    records = [json.loads(text) for text in (tmp_path / "plain/train.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in records if "loss" in record] == pytest.approx(emulated, rel=1e-5)
