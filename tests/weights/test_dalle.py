"""Reading the discrete VAE: every format gives the same tensors, and every problem is one sentence.

The tokens and drawings recorded with the files are compared as in tests/models/test_dalle.py.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from plsc_mae.errors import CheckpointError
from plsc_mae.models.dalle import DalleDecoder, DalleEncoder, map_pixels
from plsc_mae.weights.dalle import find_dalle, has_dalle, infer_sizes, read_dalle

pytestmark = [pytest.mark.compat, pytest.mark.once]

PARTS = ("encoder", "decoder")
NETWORKS = {"encoder": DalleEncoder, "decoder": DalleDecoder}
SIZES = {
    "encoder": {"n_hid": 8, "vocab_size": 24, "in_chans": 3, "blocks_per_group": 2},
    "decoder": {"n_init": 8, "n_hid": 8, "vocab_size": 24, "out_chans": 3, "blocks_per_group": 2},
}


@pytest.fixture(scope="module")
def files() -> Path:
    return Path(__file__).parents[1] / "golden" / "cae" / "checkpoints"


def as_pd(tensors, path: Path) -> None:
    network = NETWORKS["decoder" if "decoder" in path.name else "encoder"]
    paddle.save(network.from_arrays(tensors, infer_sizes(tensors)).state_dict(), str(path))


def as_safetensors(tensors, path: Path) -> None:
    save_file({name: np.array(value) for name, value in tensors.items()}, str(path))


FORMS = {
    "module before torch 1.6": "dalle_module_legacy_{}.pkl",
    "module": "dalle_module_zip_{}.pkl",
    "state dict": "dalle_statedict_{}.pth",
    "PLSC": as_pd,
    "safetensors": as_safetensors,
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_recorded_outputs(golden, files, tmp_path, part, form):
    case = golden("cae/checkpoints/dalle_expected")
    if callable(form):
        path = tmp_path / (f"{part}_weight.pd" if form is as_pd else f"{part}.safetensors")
        form(read_dalle(files / f"dalle_statedict_{part}.pth", part), path)
    else:
        path = files / form.format(part)
    tensors = read_dalle(path, part)
    names = case.meta[f"{part}_names"]
    assert sorted(tensors) == sorted(names)
    norms = [np.linalg.norm(tensors[name].astype(np.float64)) for name in names]
    np.testing.assert_allclose(norms, case[f"output/{part}_param_norm"], rtol=1e-6)
    assert infer_sizes(tensors) == SIZES[part]

    network = NETWORKS[part].from_arrays(tensors, infer_sizes(tensors), origin=str(path))
    if part == "encoder":
        found = network(map_pixels(paddle.to_tensor(case["input/image"])))
        expected = case["output/encoder_logits"]
    else:
        one_hot = np.eye(24, dtype=np.float32)[case["input/given_indices"]].transpose(0, 3, 1, 2)
        found, expected = network(paddle.to_tensor(one_hot)), case["output/decoder_stats_from_given"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def place(files, tmp_path) -> Path:
    """Create a folder whose path contains both words, `encoder` and `decoder`."""
    folder = tmp_path / "decoder_runs" / "my_encoder_dir"
    folder.mkdir(parents=True)
    shutil.copy(files / "dalle_statedict_encoder.pth", folder / "encoder.pth")
    shutil.copy(files / "dalle_statedict_decoder.pth", folder / "decoder.pth")
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_told_by_the_name_of_the_file_and_not_of_its_folder(place, part):
    assert find_dalle(place, part) == place / f"{part}.pth"
    assert has_dalle(place, part)
    assert infer_sizes(read_dalle(str(place), part)) == SIZES[part]


@pytest.mark.parametrize("part", PARTS)
def test_a_file_may_have_any_name(place, part):
    path = (place / f"{part}.pth").rename(place / "weights.bin")
    assert infer_sizes(read_dalle(path, part)) == SIZES[part]


def test_published_names_come_first(place):
    for name in ("encoder.pkl", "encoder_weight.pd"):  # the later one is preferred
        (place / name).touch()
        assert find_dalle(place, "encoder") == place / name


def test_an_unreadable_folder_is_reported(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may list every folder
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be read: Permission denied"):
        find_dalle(tmp_path, "encoder")


def test_names_are_words(place):
    (place / "decoder.pth").rename(place / "autodecoder.pth")
    assert not has_dalle(place, "decoder")
    (place / "autodecoder.pth").rename(place / "decoder.txt")
    assert not has_dalle(place, "decoder")


def test_a_file_is_its_own_part_only(place):
    assert has_dalle(place / "encoder.pth", "encoder")
    assert not has_dalle(place / "encoder.pth", "decoder")
    assert not has_dalle(place / "none", "encoder")


@pytest.mark.parametrize("part", PARTS)
def test_one_file_may_hold_both_parts(place, tmp_path, part):
    both = {f"vae.{p}.{name}": value for p in PARTS for name, value in read_dalle(place, p).items()}
    as_safetensors(both, tmp_path / "vae.safetensors")
    found, expected = read_dalle(tmp_path / "vae.safetensors", part), read_dalle(place, part)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["blocks.input.w"], expected["blocks.input.w"])


SOURCES = ("https://cdn.openai.com/dall-e/encoder.pkl", "CAE/encoder_weight.pd", "--discrete_vae_type random_init")


@pytest.mark.parametrize("where", ["none", "empty"])
def test_nothing_found_names_files_and_sources(tmp_path, where):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError) as caught:
        read_dalle(tmp_path / where, "decoder")
    for text in (str(tmp_path / where), "decoder_weight.pd or decoder.pkl", *SOURCES):
        assert text in str(caught.value)


def refusal(path: Path, part) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_dalle(path, part)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_wrong_part_is_refused(place):
    for part, other in (PARTS, PARTS[::-1]):
        assert f"DALL-E's {other}, expected the {part}" in refusal(place / f"{other}.pth", part)


def test_two_candidates_are_refused(place):
    shutil.copy(place / "encoder.pth", place / "encoder_old.pth")
    assert "more than one encoder: encoder.pth, encoder_old.pth" in refusal(place, "encoder")
    assert not has_dalle(place, "encoder")


def test_other_weights_are_refused(root, place):
    other = root / "tests/golden/mae/checkpoints/fb_released_encoder.pth"
    assert "no DALL-E encoder" in refusal(other, "encoder")
    flat = dict(read_dalle(place, "encoder"))
    flat["blocks.input.w"] = flat["blocks.input.w"].reshape(8, -1)
    as_safetensors(flat, place / "encoder.safetensors")
    assert "no DALL-E encoder" in refusal(place / "encoder.safetensors", "encoder")


def test_a_damaged_file_is_refused(place):
    path = place / "encoder.pth"
    path.write_bytes(path.read_bytes()[:1000])
    assert "cannot be read" in refusal(path, "encoder")


def test_reading_needs_neither_paddle_nor_torch(root):
    text = (root / "plsc_mae/weights/dalle.py").read_text()
    assert "paddle" not in text.replace("Paddle state", "")
    assert "import torch" not in text
