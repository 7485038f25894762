"""`plsc-mae weights convert`: there and back, parts, what is refused, and Hugging Face itself reading the result."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.cli import main
from plsc_mae.models.mae import MaskedAutoencoder

pytestmark = [pytest.mark.compat, pytest.mark.once]
HEADS = ["--num_heads", "2", "--decoder_num_heads", "2"]


@pytest.fixture
def files(root):
    return root / "tests/golden"


@pytest.mark.parametrize(
    ("file", "dialect", "suffix", "back"),
    [
        ("mae/checkpoints/fb_training.pth", "huggingface", ".safetensors", "facebook"),
        ("mae/checkpoints/fb_training_legacy_nonzip.pth", "plsc", ".pd", "facebook"),
        ("mae/checkpoints/fb_released_full.pth", "libai", ".pth", "facebook"),
        ("mae/checkpoints/fb_finetuned_gap.pth", "mmpretrain", ".pth", "facebook"),
        ("mae/checkpoints/hf_vitmae_v5names.safetensors", "facebook", ".pth", "huggingface"),
        ("mae/checkpoints/priv_pretrain_gap.pth", "mae_priv", ".npz", "mae_priv"),
        ("cae/checkpoints/cae_pretrain_checkpoint-1.pth", "plsc_cae", ".pdparams", "cae"),
        ("cae/checkpoints/cae_finetune_checkpoint-3.pth", "plsc_beit", ".pd", "beit"),
    ],
)
def test_there_and_back_is_bit_exact(files, tmp_path, capsys, file, dialect, suffix, back):
    there, again = tmp_path / f"there{suffix}", tmp_path / "again.pth"
    heads = ["--num_heads", "3", "--decoder_num_heads", "3"] if file.startswith("cae") else HEADS
    assert main(["weights", "convert", str(files / file), str(there), "--dialect", dialect, *heads]) == 0
    assert main(["weights", "convert", str(there), str(again), "--dialect", back, *heads]) == 0
    assert f"tensors of {there} ({dialect}) as {back}" in capsys.readouterr().out
    original, found = weights.read(files / file), weights.read(again)
    if file.endswith("v5names.safetensors"):  # the same tensors under the names of the Hub
        original = weights.read(files / "mae/checkpoints/hf_vitmae_pytorch_model.bin")
        original.model.update(
            {
                name.replace("decoder_encoder.layer", "decoder_layers"): original.model.pop(name)
                for name in list(original.model)
                if "decoder_encoder" in name
            }
        )
    kept = {name for name in original.model if not name.endswith(("relative_position_index", "rd_pos_embed"))}
    assert kept <= set(found.model)
    for name in kept:
        np.testing.assert_array_equal(found.model[name], original.model[name], err_msg=name)


def test_the_encoder_alone(files, tmp_path, capsys):
    source, out = files / "mae/checkpoints/fb_training.pth", tmp_path / "encoder.pth"
    assert main(["weights", "convert", str(source), str(out), "--dialect", "timm", "--encoder"]) == 0
    told = capsys.readouterr().out
    assert "30 tensors" in told
    assert "left out: decoder_blocks.0.attn.proj.bias, decoder_blocks.0.attn.proj.weight, " in told
    assert "and 17 more" in told
    assert "of model, optimizer, only the network is converted" in told
    found, original = weights.read(out).model, weights.read(source).model
    assert set(found) == {name for name in original if not name.startswith(("decoder_", "mask_token"))}
    assert all(np.array_equal(found[name], original[name]) for name in found)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name what to convert: plsc-mae weights convert IN OUT --dialect NAME"),
        (["FULL", "OUT.pth"], "name what to convert"),
        (["FULL", "OUT.pth", "--dialect", "facebok"], "unknown dialect 'facebok'; known: plsc_mae, facebook"),
        (["FULL", "OUT.onnx", "--dialect", "facebook"], "no known suffix"),
        (["FULL", "OUT.pth", "--dialect", "cae"], "dialect 'cae' cannot represent all tensors"),
        (["FULL", "OUT.pth", "--dialect", "libai"], "does not store its number of heads; give it with --num_heads"),
        (["FULL", "OUT", "--dialect", "huggingface"], "does not store its number of heads; give it with --num_heads"),
        (["HTML", "OUT.pth", "--dialect", "facebook"], "a web page instead of weights"),
    ],
)
def test_refusals_write_nothing(files, tmp_path, capsys, words, told):
    names = {"FULL": str(files / "mae/checkpoints/fb_released_full.pth"), "OUT": str(tmp_path / "out")}
    names["HTML"] = str(files / "mae/checkpoints/bad_html.pth")
    for short, name in names.items():
        words = [word.replace(short, name) for word in words]
    assert main(["weights", "convert", *words]) != 0
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unless_asked(files, tmp_path, capsys):
    target = tmp_path / "w.pth"
    target.write_bytes((files / "mae/checkpoints/fb_training.pth").read_bytes())
    before = target.read_bytes()
    words = ["weights", "convert", str(target), str(target), "--dialect", "facebook"]
    assert main([*words, "--overwrite"]) == 2
    assert "w.pth is the file that is read" in capsys.readouterr().err
    words[2] = str(files / "mae/checkpoints/fb_training.pth")
    assert main(words) == 2
    assert "w.pth exists; name another file, or give --overwrite" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert main([*words, "--overwrite"]) == 0
    assert len(weights.read(target).tensors) == len(weights.read(files / "mae/checkpoints/fb_released_full.pth").model)


def test_positions_of_a_rectangle_are_not_replaced(tmp_path, capsys):
    """A computed table shows its grid; a trained one does not, and an autoencoder needs it."""
    sizes = {"img_size": (16, 32), "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    sizes |= {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}
    source, out = tmp_path / "wide.pth", tmp_path / "out.pth"
    words = ["weights", "convert", str(source), str(out), "--dialect", "facebook"]
    weights.save(MaskedAutoencoder(**sizes), source, "facebook")
    assert main(words) == 0
    for name, value in weights.read(source).model.items():
        np.testing.assert_array_equal(weights.read(out).model[name], value, err_msg=name)
    model = MaskedAutoencoder(**sizes, train_positions=True)
    model.encoder.pos_embed.set_value(model.encoder.pos_embed + 0.1)
    weights.save(model, source, "facebook")
    assert main([*words, "--overwrite"]) == 2
    assert "not square" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["priv_pretrain_cls.pth", "priv_pretrain_gap.pth", "mp_pretrain.pth"])
def test_by_our_names_and_back(files, tmp_path, kind):
    source, dialect = files / "mae/checkpoints" / kind, "mae_pytorch" if kind.startswith("mp") else "mae_priv"
    assert main(["weights", "convert", str(source), str(tmp_path / "a.pth"), "--dialect", "plsc_mae"]) == 0
    assert main(["weights", "convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--dialect", dialect]) == 0
    found, original = weights.read(tmp_path / "b.pth").model, weights.read(source).model
    assert set(found) == set(original)
    assert all(np.array_equal(found[name], original[name]) for name in original)


def test_a_classifier_is_no_hugging_face_folder(files, tmp_path, capsys):
    source = str(files / "mae/checkpoints/fb_finetuned_gap.pth")
    assert main(["weights", "convert", source, str(tmp_path / "hf-v1.0"), "--dialect", "huggingface", *HEADS]) != 0
    assert "a Hugging Face folder can hold autoencoders and encoders" in capsys.readouterr().err


def test_a_hugging_face_folder_tells_the_sizes(files, tmp_path):
    source = str(files / "mae/checkpoints/fb_training.pth")
    assert main(["weights", "convert", source, str(tmp_path / "hf"), "--dialect", "huggingface", *HEADS]) == 0
    settings = json.loads((tmp_path / "hf/config.json").read_text())
    recorded = json.loads((files / "mae/checkpoints/hf_vitmae_config.json").read_text())
    differing = {name for name in recorded if settings.get(name) != recorded[name]}
    assert differing <= {"layer_norm_eps", "mask_ratio", "norm_pix_loss"}
    assert settings["layer_norm_eps"] == 1e-6


@pytest.mark.skipif("PARITY_PYTHON" not in os.environ, reason="needs PARITY_PYTHON, an interpreter that has torch")
def test_hugging_face_reads_the_folder(files, tmp_path):
    """Nothing is missing or left over, and its loss on the same noise is ours to 1e-5."""
    source = files / "mae/checkpoints/fb_training.pth"
    assert main(["weights", "convert", str(source), str(tmp_path / "hf"), "--dialect", "huggingface", *HEADS]) == 0
    rng = np.random.default_rng(0)
    settings = json.loads((tmp_path / "hf/config.json").read_text())
    side, patch = settings["image_size"], settings["patch_size"]
    images = rng.standard_normal((2, 3, side, side), np.float32)
    noise = rng.random((2, (side // patch) ** 2), np.float32)
    np.savez(tmp_path / "input.npz", images=images, noise=noise)
    script = """
import sys, numpy, torch
from transformers import ViTMAEForPreTraining
model, told = ViTMAEForPreTraining.from_pretrained(sys.argv[1], output_loading_info=True)
assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
data = numpy.load(sys.argv[2])
images, noise = (torch.from_numpy(data[name]) for name in ("images", "noise"))
with torch.no_grad():
    print("loss", float(model.eval()(pixel_values=images, noise=noise).loss))
"""
    command = [os.environ["PARITY_PYTHON"], "-c", script, str(tmp_path / "hf"), str(tmp_path / "input.npz")]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    sizes = {"img_size": side, "patch_size": patch, "embed_dim": settings["hidden_size"], "num_heads": 2}
    sizes |= {"depth": settings["num_hidden_layers"], "decoder_embed_dim": settings["decoder_hidden_size"]}
    sizes |= {"decoder_depth": settings["decoder_num_hidden_layers"], "decoder_num_heads": 2}
    model = MaskedAutoencoder(**sizes, norm_pix_loss=settings["norm_pix_loss"])
    weights.load(model, source)
    ours = float(model(paddle.to_tensor(images), paddle.to_tensor(noise)).loss)
    assert float(told.split("loss ")[1].split()[0]) == pytest.approx(ours, abs=1e-5)


def test_the_config_of_a_folder_is_kept(files, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("{}")
    words = ["weights", "convert", str(files / "mae/checkpoints/fb_training.pth"), str(tmp_path / "out")]
    words += ["--dialect", "huggingface", *HEADS]
    assert main(words) == 2
    assert f"{tmp_path}/out/config.json exists" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
    assert (tmp_path / "out/config.json").read_text() == "{}"
    assert main([*words, "--overwrite"]) == 0


def test_a_config_that_cannot_be_written_is_one_sentence(files, tmp_path, capsys):
    (tmp_path / "out/config.json/full").mkdir(parents=True)
    words = ["weights", "convert", str(files / "mae/checkpoints/fb_training.pth"), str(tmp_path / "out")]
    assert main([*words, "--dialect", "huggingface", *HEADS, "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/out/config.json cannot be written" in error
    assert error.count("\n") == 1


def test_the_file_that_is_read_is_not_replaced(files, tmp_path, capsys):
    file = tmp_path / "x.pth"
    file.write_bytes((files / "mae/checkpoints/fb_training.pth").read_bytes())
    (tmp_path / "link.pth").symlink_to(file)
    words = ["weights", "convert", str(file), str(tmp_path / "link.pth"), "--dialect", "plsc", "--overwrite", *HEADS]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "link.pth" in err
    assert "optimizer" in err
    assert file.read_bytes() == (files / "mae/checkpoints/fb_training.pth").read_bytes()
