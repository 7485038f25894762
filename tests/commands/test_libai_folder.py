"""Fine-tuning from a checkpoint folder as LiBai writes it on OneFlow, with its names and order of rows."""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from plsc_mae import create_model, weights
from plsc_mae.cli import main
from plsc_mae.data.demo import make_demo_data

CONFIG = Path(__file__).parents[2] / "configs/libai/finetune_vit_base.yaml"
SIZES = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 4}


def write_folder(folder, tensors, oneflow):
    """Write tensors as oneflow.save does: a pickle of their folders' names, and in each shape, type and values."""
    folder.mkdir(parents=True)
    entries = {}
    for i, (name, value) in enumerate(tensors.items()):
        entries[name] = oneflow.Tensor()
        entries[name].path = f"tensor_{i}"
        tensor = folder / f"tensor_{i}"
        tensor.mkdir()
        dims = "".join(f"  dim: {side}\n" for side in value.shape)
        (tensor / "meta").write_text(f"shape {{\n{dims}}}\ndata_type: kFloat\n")
        (tensor / "out").write_bytes(np.ascontiguousarray(value, np.float32).tobytes())
    (folder / "pickled_data").write_bytes(pickle.dumps({"protocol_version": 1, "data": entries}))


@pytest.fixture
def oneflow(monkeypatch):
    """A module of this name, whose tensors can be pickled."""
    module = types.ModuleType("oneflow")
    module.Tensor = type("Tensor", (), {"__module__": "oneflow"})
    monkeypatch.setitem(sys.modules, "oneflow", module)
    return module


def test_a_folder_of_libai_starts_fine_tuning_as_our_own_file_does(tmp_path, oneflow, capsys):
    model = create_model("mae_vit_tiny_patch16", img_size=32, norm_eps=1e-5, train_positions=True, **SIZES, **DECODER)
    weights.save(model, tmp_path / "ours.pd", "plsc_mae")
    write_folder(tmp_path / "model_0000009" / "model", weights.export(model, "libai"), oneflow)
    make_demo_data(tmp_path / "data", image_size=32, train_per_class=2, val_per_class=1)
    losses = []
    for name in ("ours.pd", "model_0000009"):
        sizes = " ".join(f"--{key} {value}" for key, value in SIZES.items())
        out = tmp_path / f"from-{name}"
        flags = f"--config {CONFIG} {sizes} --input_size 32 --batch_size 4 --accum_iter 1"
        flags += f" --max_train_step 3 --print_freq 1 --num_workers 0 --data_path {tmp_path / 'data'}"
        assert main(["finetune", *flags.split(), "--finetune", str(tmp_path / name), "--output_dir", str(out)]) == 0
        losses.append([json.loads(line)["loss"] for line in (out / "train.jsonl").read_text().splitlines()])
    assert capsys.readouterr().out.count("28 tensors loaded") == 2
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
