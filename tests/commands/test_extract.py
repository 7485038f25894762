"""Files of features: which tokens of which layers, in which order."""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from plsc_mae.cli import main
from plsc_mae.data.decode import open_image
from plsc_mae.data.imagefolder import find_images
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.seeding import sample_rng
from plsc_mae.data.transforms import ResizeCenterCrop
from plsc_mae.loading.encoder import load_encoder

pytestmark = pytest.mark.compat


@pytest.fixture
def extract(trained, images, tmp_path, capfd):
    """Run the command on the validation images; gives the exit code, stdout and stderr."""

    model = trained() / "checkpoint-1.pd"
    capfd.readouterr()

    def run(flags: str) -> tuple[int, str, str]:
        line = f"extract --model_path {model} --data_path {images} --num_workers 0 --batch_size 4 {flags}"
        code = main(line.replace("PLACE", str(tmp_path)).split())
        return code, *capfd.readouterr()

    return run


def test_the_file_has_what_the_encoder_gives(trained, images, extract, tmp_path):
    code, out, err = extract("--save_path PLACE/x.npz --tokens cls mean patch")
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == [
        "layer1/cls [10, 32]",
        "layer1/mean [10, 32]",
        "layer1/patch [10, 16, 32]",
        f"{tmp_path}/x.npz",
    ]
    found = find_images(images, "val")
    view = ResizeCenterCrop((32, 32), 36, "bicubic")  # 36 = int(32 / 0.875)
    pixels = np.stack([view(open_image(found.path(i)), sample_rng(0, 0, i))["image"] for i in range(len(found))])
    encoder = load_encoder(str(trained() / "checkpoint-1.pd")).network
    with paddle.no_grad():
        tokens = encoder.forward_features(Normalize()(paddle.to_tensor(pixels))).numpy()
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        # 1e-5: batches of another size are multiplied in another order
        np.testing.assert_allclose(file["layer1/cls"], tokens[:, 0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(file["layer1/patch"], tokens[:, 1:], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(file["layer1/mean"], tokens[:, 1:].mean(axis=1), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(file["labels"], np.arange(10))
        assert list(file["paths"]) == [found.paths[i] for i in range(10)]
        assert list(file["classes"]) == list(found.classes)


def test_layers_of_a_split_as_safetensors(extract, tmp_path):
    code, _, err = extract("--save_path PLACE/x.safetensors --layers 0 -1 1 --tokens mean --split train --no_norm")
    assert (code, err) == (0, "")
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        assert sorted(file.keys()) == ["labels", "layer0/mean", "layer1/mean"]
        assert file.get_tensor("layer1/mean").shape == (30, 32)
        assert len(json.loads(file.metadata()["paths"])) == 30


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("", "--save_path is required"),
        ("--save_path PLACE/x.pt", "x.pt: expected a file that ends in .npz, .safetensors or .parquet"),
        ("--save_path PLACE/x.npz --layers 2", "--layers 2: the encoder has 1 block; expected 0 to 1, or -1"),
        ("--save_path PLACE/x.npz --tokens all", "expected one of cls, mean, patch"),
    ],
)
def test_mistakes_are_sentences(extract, tmp_path, flags, told):
    code, _, err = extract(flags)
    assert code == 2
    assert err.startswith("plsc-mae: error: ")
    assert told in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_results_are_replaced_and_files_of_the_user_are_not(extract, tmp_path, suffix):
    for _ in range(2):
        assert extract(f"--save_path PLACE/x.{suffix}")[0] == 0
    mine = tmp_path / f"photo.{suffix}"
    if suffix == "npz":
        np.savez(mine, features=np.zeros(3), labels=np.zeros(3))
    else:
        save_file({"layer1/cls": np.zeros(3)}, mine, {"paths": "[]"})
    before = mine.read_bytes()
    code, _, err = extract(f"--save_path PLACE/photo.{suffix}")
    assert code == 2
    assert f"{mine}: it exists" in err
    assert mine.read_bytes() == before


def test_unreadable_images_have_no_features(trained, images, tmp_path, capfd):
    names = []
    for number, path in enumerate(sorted(images.glob("val/*/*.jpg"))[:4]):
        names.append(f"{path.parent.name}/x.jpg")
        (tmp_path / "in" / names[-1]).parent.mkdir(parents=True)
        (tmp_path / "in" / names[-1]).write_bytes(b"no image" if number in (0, 2) else path.read_bytes())
    line = f"extract --model_path {trained()}/checkpoint-1.pd --data_path {tmp_path}/in --save_path {tmp_path}/x.npz"
    assert main(f"{line} --num_workers 0 --batch_size 3".split()) == 1
    err = capfd.readouterr().err
    assert all(f"{tmp_path}/in/{names[i]}: " in err for i in (0, 2))
    assert "2 of 4 images" in err
    with np.load(tmp_path / "x.npz") as file:
        assert file["paths"].tolist() == [names[1], names[3]]
        assert file["labels"].tolist() == [1, 3]
        assert file["layer1/mean"].shape == (2, 32)


KILLED = """
import os, signal, sys
from plsc_mae.analysis import feature_store
from plsc_mae.cli import main

feature_store.COMMIT_SECONDS = 0
add = feature_store.FeatureStore.add

def add_and_die(store, *added):
    add(store, *added)
    if store.images == 8:
        os.kill(os.getpid(), signal.SIGKILL)

feature_store.FeatureStore.add = add_and_die
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_command_is_continued_bit_for_bit(trained, images, fork_server, tmp_path, capfd, workers):
    model = trained() / "checkpoint-1.pd"
    line = f"extract --model_path {model} --data_path {images} --batch_size 4 --num_workers {workers} --save_path"
    assert main([*line.split(), str(tmp_path / "whole.npz")]) == 0
    (tmp_path / "killed.py").write_text(KILLED)
    done = fork_server.run([str(tmp_path / "killed.py"), *line.split(), str(tmp_path / "x.npz")], cwd=tmp_path)
    assert done.returncode == -9
    assert not (tmp_path / "x.npz").exists()
    capfd.readouterr()
    assert main([*line.split(), str(tmp_path / "x.npz")]) == 0
    assert f"continuing after 8 images, whose features are in {tmp_path}/x.partial" in capfd.readouterr().out
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.py", "whole.npz", "x.npz"]


def test_pictures_and_parquet(extract, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    code, out, err = extract("--save_path PLACE/x.parquet --dtype float16 --num_pictures 3 --map pca --map_images 8")
    assert (code, err) == (0, "")
    assert out.splitlines()[-3:] == [f"{tmp_path}/{name}" for name in ("x.parquet", "x-neighbors.png", "x-pca.png")]
    table = pq.read_table(tmp_path / "x.parquet")
    assert str(table.schema.field("layer1/mean").type) == "fixed_size_list<element: halffloat>[32]"
    assert len(set(table["class"].to_pylist())) == 10
    with Image.open(tmp_path / "x-neighbors.png") as picture:
        assert picture.size[0] > 10 * 96  # a query and the nine others
    (tmp_path / "x-pca.png").write_text("mine")
    code, _, err = extract("--save_path PLACE/x.npz --map pca")
    assert code == 2
    assert "x-pca.png: it exists" in err
    assert not (tmp_path / "x.npz").exists()


def test_images_without_labels_have_neighbors_and_a_map(trained, images, tmp_path, capfd):
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sorted(images.glob("train/*/*.jpg"))[:5]):
        (tmp_path / f"in/{number}.jpg").write_bytes(path.read_bytes())
    line = f"extract --model_path {trained()}/checkpoint-1.pd --data_path {tmp_path}/in --save_path {tmp_path}/x.npz"
    assert main(f"{line} --num_workers 0 --num_pictures 2 --map pca".split()) == 0
    assert (tmp_path / "x-neighbors.png").exists()
    assert (tmp_path / "x-pca.png").exists()


@pytest.mark.parametrize(
    ("module", "flags", "named"),
    [
        ("pyarrow", "--save_path PLACE/x.parquet", "pip install 'plsc_mae[parquet]'"),
        ("sklearn", "--save_path PLACE/x.npz --map tsne", "pip install 'plsc_mae[maps]'"),
        ("umap", "--save_path PLACE/x.npz --map pca umap", "pip install 'plsc_mae[maps]'"),
        ("", "--save_path PLACE/x.npz --tokens patch --map pca", "--map needs one vector per image"),
    ],
)
def test_missing_packages_are_named_before_the_work(extract, tmp_path, monkeypatch, module, flags, named):
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))] if module else []:
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = extract(flags)
    assert code == 2
    assert named in err
    assert not list(tmp_path.iterdir())
