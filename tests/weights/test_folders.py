"""Folders of Hugging Face and DeepSpeed, and those that cannot be read."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from plsc_mae import weights
from plsc_mae.cli import main
from plsc_mae.config import FinetuneConfig
from plsc_mae.errors import CheckpointError
from plsc_mae.loading.classifier import load_classifier
from plsc_mae.loading.classifier_weights import warn_of_statistics
from plsc_mae.loading.encoder import load_encoder
from plsc_mae.loading.training_config import training_config
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.train.checkpoint.file import read_footer
from plsc_mae.weights.write import write_file

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
CONFIG = {
    "model_type": "vit_mae",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "decoder_num_attention_heads": 2,
    "layer_norm_eps": 1e-12,
    "image_size": 32,
    "patch_size": 8,
    "norm_pix_loss": True,
    "mask_ratio": 0.5,
}


@pytest.fixture(scope="module")
def network() -> dict[str, np.ndarray]:
    """A small autoencoder under Hugging Face's names."""
    return weights.export(MaskedAutoencoder(**SIZES, decoder_embed_dim=16, decoder_num_heads=2), "huggingface")


@pytest.fixture
def folder(tmp_path):
    """Write config.json and the weights: one file, or shards with their index."""

    def write(arrays, name: str, config: dict | None = None, shards: int = 0):
        path = tmp_path / "model"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(CONFIG if config is None else config))
        if not shards:
            write_file(path / name, arrays)
            return path
        stem, _, suffix = name.rpartition(".")
        places = {}
        for i in range(shards):
            part = dict(list(arrays.items())[i::shards])
            shard = f"{stem}-{i + 1:05}-of-{shards:05}.{suffix}"
            write_file(path / shard, part)
            places |= dict.fromkeys(part, shard)
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (path / f"{name}.index.json").write_text(json.dumps(index))
        return path

    return write


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shards", [0, 3])
def test_one_file_and_shards_give_the_same(network, folder, name, shards):
    path = folder(network, name, shards=shards)
    stored = weights.read_network(path)
    assert (stored.dialect, set(stored.model)) == ("huggingface", set(network))
    for tensor, value in network.items():
        np.testing.assert_array_equal(stored.model[tensor], value)


def test_the_config_replaces_options(network, folder):
    """Heads of an unpublished width, the eps and the kind of target come from config.json."""
    path = folder(network, "model.safetensors")
    encoder = load_encoder(str(path)).network
    assert (encoder.blocks[0].attn.num_heads, encoder.blocks[0].norm1._epsilon) == (4, 1e-12)
    assert encoder.norm._epsilon == 1e-12
    trained = training_config(weights.read(path), {"num_heads": None, "decoder_num_heads": None})
    assert (trained.num_heads, trained.decoder_num_heads) == (4, 2)
    assert (trained.norm_pix_loss, trained.mask_ratio) == (True, 0.5)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({str(i): f"class {i}" for i in (10, 9, 2, 1, 0, 3, 4, 5, 6, 7, 8)}, tuple(f"class {i}" for i in range(11))),
        ({str(i): f"LABEL_{i}" for i in range(11)}, tuple(map(str, range(11)))),
        ({"first": "a"}, tuple(map(str, range(11)))),
        ({"9" * 5000: "a"}, tuple(map(str, range(11)))),
        ({"0": "a", "12": "b"}, tuple(map(str, range(11)))),
        ({str(i): f"class {i}" for i in range(12)}, tuple(map(str, range(11)))),
        ({"0": "a\u001b[31m\nb", "1": "\ud800"}, ("a\\x1b[31m\\x0ab", "\\ud800", *map(str, range(2, 11)))),
    ],
)
def test_a_classifier_has_the_names_of_its_config(folder, labels, expected):
    model = ImageClassifier(**SIZES, num_classes=11, positions="learned", global_pool=False)
    arrays = weights.export(model, "huggingface")
    trained = load_classifier(str(folder(arrays, "model.safetensors", {**CONFIG, "id2label": labels})))
    assert trained.classes == expected
    assert not trained.network.mean_pooled


def test_the_statistics_of_the_images_are_read(folder):
    model = ImageClassifier(**SIZES, num_classes=3, positions="learned", global_pool=False)
    path = folder(weights.export(model, "huggingface"), "model.safetensors")
    imagenet = load_classifier(str(path)).normalize
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    halves = load_classifier(str(path)).normalize
    assert halves.mean.flatten().tolist() == [0.5] * 3 != imagenet.mean.flatten().tolist()


@pytest.mark.parametrize(
    ("stated", "mean", "std"),
    [
        ({"image_mean": [0.25, 0.5, 0.75], "image_std": [0.5, 0.25, 0.5]}, [0.25, 0.5, 0.75], [0.5, 0.25, 0.5]),
        ({"image_mean": [0.5] * 3, "image_std": [1, 1, 1]}, [0.5] * 3, [1.0] * 3),
        ({"image_mean": 0.5, "image_std": 0.25}, [0.5] * 3, [0.25] * 3),
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, [0.0] * 3, [1.0] * 3),
    ],
)
def test_other_statistics_of_the_images_are_used(network, folder, stated, mean, std):
    model = ImageClassifier(**SIZES, num_classes=3, positions="learned", global_pool=False)
    path = folder(weights.export(model, "huggingface"), "model.safetensors")
    (path / "preprocessor_config.json").write_text(json.dumps(stated))
    for normalize in (load_classifier(str(path)).normalize, load_encoder(str(path)).normalize):
        assert normalize.mean.flatten().tolist() == mean
        assert normalize.std.flatten().tolist() == std
    write_file(path / "model.safetensors", network)  # an autoencoder
    assert load_encoder(str(path)).normalize.mean.flatten().tolist() == mean


@pytest.mark.parametrize("stated", [{"image_mean": [0.5], "image_std": [1]}, {"image_mean": [0.5] * 3, "image_std": 0}])
def test_invalid_statistics_are_refused(network, folder, stated):
    path = folder(network, "model.safetensors")
    (path / "preprocessor_config.json").write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match=r"mean \[?0\.5.* std .*expected three numbers"):
        weights.read(path)


def test_runs_warn_of_other_statistics(folder, caplog):
    model = ImageClassifier(**SIZES, num_classes=3, positions="learned", global_pool=False)
    path = folder(weights.export(model, "huggingface"), "model.safetensors")
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    stored = weights.read_network(path)
    warn_of_statistics(stored, FinetuneConfig(imagenet_inception_mean_and_std=True))
    assert not caplog.text
    warn_of_statistics(stored, FinetuneConfig())
    assert "mean [0.5, 0.5, 0.5]" in caplog.text
    assert "--imagenet_inception_mean_and_std" in caplog.text
    caplog.clear()
    for channels in (1, 4):  # of runs on other images than RGB
        warn_of_statistics(stored, FinetuneConfig(in_chans=channels, imagenet_inception_mean_and_std=True))
        assert not caplog.text
        warn_of_statistics(stored, FinetuneConfig(in_chans=channels))
        assert f"by {[0.449] * channels} and" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(("activation", "accepted"), [("relu", False), ("quick_gelu", False), ("gelu_new", True)])
def test_other_activations_are_refused_and_approximations_reported(network, folder, caplog, activation, accepted):
    path = folder(network, "model.safetensors", {**CONFIG, "hidden_act": activation})
    if accepted:
        weights.read(path)
        assert activation in caplog.text
    else:
        with pytest.raises(CheckpointError, match=rf"config\.json: hidden_act is '{activation}'"):
            weights.read(path)


@pytest.mark.parametrize("elsewhere", ["../secret.bin", "/etc/passwd", "sub/model.bin", "..", "a\\b", "", 3])
def test_an_index_stays_in_its_folder(network, folder, elsewhere):
    path = folder(network, "pytorch_model.bin", shards=2)
    index = json.loads((path / "pytorch_model.bin.index.json").read_text())
    index["weight_map"]["vit.layernorm.bias"] = elsewhere
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        weights.read(path)
    assert repr(elsewhere) in str(caught.value)
    assert "vit.layernorm.bias" in str(caught.value)


def test_missing_shards_and_tensors_are_named(network, folder):
    path = folder(network, "model.safetensors", shards=3)
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["another"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00003\.safetensors lacks the tensor another"):
        weights.read(path)
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 3 shards.*model-00002-of-00003\.safetensors"):
        weights.read(path)
    index.write_text('{"weight_map": []}')
    with pytest.raises(CheckpointError, match="no table 'weight_map'"):
        weights.read(path)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\xff"])
def test_a_damaged_config_is_refused_in_one_sentence(network, folder, text):
    path = folder(network, "model.safetensors")
    (path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        weights.read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", "4"),
        ("layer_norm_eps", 0),
        ("image_size", [32]),
        ("mask_ratio", 1),
        ("norm_pix_loss", 1),
    ],
)
def test_invalid_settings_are_named(network, folder, key, value):
    with pytest.raises(CheckpointError, match=rf"config\.json: {key} .*{re.escape(repr(value))}"):
        weights.read(folder(network, "model.safetensors", {**CONFIG, key: value}))


def test_the_cache_of_the_hub(network, folder, tmp_path):
    """A snapshot has links to blobs outside of it."""
    path, cache = folder(network, "model.safetensors"), tmp_path / "models--facebook--vit-mae-base"
    snapshot = cache / "snapshots" / "0123abc"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(path.iterdir())):
        shutil.move(file, cache / "blobs" / str(i))
        (snapshot / file.name).symlink_to(cache / "blobs" / str(i))
    for place in (cache, snapshot):
        assert load_encoder(str(place)).network.blocks[0].attn.num_heads == 4


def test_deepspeed(network, tmp_path):
    save = tmp_path / "run"
    (save / "global_step7").mkdir(parents=True)
    (save / "latest").write_text("global_step7\n")
    write_file(save / "global_step7" / "mp_rank_00_model_states.pt", network, "module")
    for place in (save, save / "global_step7"):
        assert weights.read_network(place).dialect == "huggingface"
    write_file(save / "global_step7" / "mp_rank_01_model_states.pt", network, "module")
    with pytest.raises(CheckpointError, match="2 tensor-parallel parts"):
        weights.read(save)
    (save / "latest").write_text("../run/global_step7")
    with pytest.raises(CheckpointError, match="is a folder without"):
        weights.read(save)


def test_the_folder_of_a_run_names_its_newest_checkpoint(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"{tmp_path} is a folder without checkpoints of a run"):
        weights.read(tmp_path)
    for seconds, name in enumerate(("try_checkpoint-9.pd", "checkpoint-20.pd", "checkpoint-3.pd")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    for read in (weights.read, read_footer):
        with pytest.raises(CheckpointError, match=f"the folder of a run.* {tmp_path}/checkpoint-3.pd"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", r"ZeRO stage 3.*zero_to_fp32\.py"),
        ("__0_0.distcp", "dcp_to_torch"),
        ("adapter_config.json", "adapter without its base network"),
        ("tf_model.h5", "TensorFlow.*save_pretrained"),
        ("flax_model.msgpack", "Flax.*save_pretrained"),
        ("weights-3.pd", r"give the weight file inside it; it contains weights-3\.pd"),
        ("notes.txt", "give the weight file inside it$"),
    ],
)
def test_other_folders_are_answered_with_a_remedy(tmp_path, file, words):
    (tmp_path / file).write_text("")
    with pytest.raises(CheckpointError, match=words) as caught:
        weights.read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_folder_is_reported(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may list every folder
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be read: Permission denied"):
        weights.read(tmp_path)


def test_a_folder_of_timm(folder):
    """timm's folders have its names, and describe images and classes in another table."""
    model = ImageClassifier(**SIZES, num_classes=2, positions="learned", global_pool=False)
    described = {"mean": [0.5, 0.5, 0.5], "label_names": ["cat", "dog"]}
    config = {"architecture": "vit_base_patch16_224", "pretrained_cfg": described, "num_classes": 2}
    path = folder(weights.export(model, "timm"), "model.safetensors", config)
    trained = load_classifier(str(path), num_heads=4)
    assert trained.classes == ("cat", "dog")


def test_metadata_of_safetensors_is_kept(network, tmp_path):
    save_file(
        {name: np.ascontiguousarray(x) for name, x in network.items()}, tmp_path / "model.safetensors", {"a": "b"}
    )
    assert weights.read(tmp_path).meta == {"a": "b"}


def test_the_files_beside_the_weights_point_to_their_folder(network, folder):
    path = folder(network, "model.safetensors", shards=2)
    for name in ("config.json", "model.safetensors.index.json"):
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is not a weight file.*give its folder, {path}"):
            weights.read(path / name)


def test_a_conversion_names_the_settings_that_it_drops(folder, tmp_path, capsys):
    model = ImageClassifier(**SIZES, num_classes=3, positions="learned", global_pool=False)
    config = {**CONFIG, "id2label": {"0": "a", "1": "b", "2": "c"}}
    path = folder(weights.export(model, "huggingface"), "model.safetensors", config)
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    assert main(["weights", "convert", str(path), str(tmp_path / "out.npz"), "--dialect", "timm"]) == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("names of 3 classes", "mean and std", "eps 1e-12"))
