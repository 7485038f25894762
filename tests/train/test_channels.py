"""Images of 13 bands and of 16 bits through the whole suite, on files as they come."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.train.checkpoint.file import find_newest, load

TINY = "--input_size 32 --patch_size 8 --embed_dim 32 --depth 2 --num_heads 4 --batch_size 8 --num_workers 0"
MAE = f"--model mae_vit_tiny_patch16 {TINY} --decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 4"
PRETRAIN = f"{MAE} --norm_pix_loss --vis_freq 0 --epochs 4 --warmup_epochs 1 --print_freq 1"
CLASSIFIER = f"--model vit_base_patch16 {TINY} --epochs 1 --warmup_epochs 0 --drop_path 0"
COUNTS = {"train": 16, "val": 4}  # of each class
BANDS = 13


def scene(label: int, index: int, bands: int) -> np.ndarray:
    """A smooth uint16 image of 12 bits, [40, 48, bands]; the class decides the brightness."""
    rng = np.random.default_rng([label, index])
    coarse = rng.random((4, 5, bands)).astype(np.float32) * 1000 + 2500 * label
    planes = [
        np.asarray(Image.fromarray(coarse[..., c]).resize((48, 40), Image.Resampling.BICUBIC)) for c in range(bands)
    ]
    return np.clip(np.stack(planes, axis=-1), 0, 4095).astype(np.uint16)


def write(kind: str, path, values: np.ndarray) -> None:
    if kind == "tiff":
        import tifffile

        tifffile.imwrite(path.with_suffix(".tif"), values, photometric="minisblack", compression="zlib")
    elif kind == "npy":
        np.save(path.with_suffix(".npy"), np.moveaxis(values, -1, 0))
    else:
        Image.fromarray(values[..., 0]).save(path.with_suffix(".png"))


@pytest.fixture
def folder_of(tmp_path):
    """Make a labeled set of one kind of files and return its folder."""

    def make(kind: str):
        for split, count in COUNTS.items():
            for label, name in enumerate(("field", "water")):
                folder = tmp_path / kind / split / name
                folder.mkdir(parents=True)
                for index in range(count):
                    offset = 100 * (split == "val")
                    write(kind, folder / f"{index}", scene(label, offset + index, 1 if kind == "png" else BANDS))
        return tmp_path / kind

    return make


def run(line: str) -> None:
    assert main(line.split()) == 0


def options(path) -> dict:
    return load(find_newest(str(path), "")).meta["args"]


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("npy", f"--in_chans {BANDS}"),
        ("png", "--in_chans 1"),
        pytest.param("npy", "--bands 4 3 2", marks=pytest.mark.slow),
    ],
)
def test_pre_training_and_fine_tuning(kind, flags, folder_of, tmp_path, capsys):
    data = folder_of(kind)
    run(f"stats {data} {flags} --save_path {tmp_path}/stats.json --num_workers 0")
    run(
        f"pretrain {PRETRAIN} --data_path {data} --output_dir {tmp_path}/mae --stats {tmp_path}/stats.json "
        "--max_train_step 3"
    )
    channels = len(flags.split()) - 1 if "bands" in flags else int(flags.split()[1])
    stored = options(tmp_path / "mae")
    assert (stored["in_chans"] or 3, list(stored["pixel_range"])) == (channels, ["0", "4095"])
    assert len(stored["mean"]) == len(stored["std"]) == channels
    newest = find_newest(str(tmp_path / "mae"), "")
    run(f"reconstruct --model_path {newest} --img_path {data} --save_path {tmp_path}/drawn --max_images 2")
    assert np.asarray(Image.open(tmp_path / "drawn/sheet.png")).std() > 10
    run(f"finetune {CLASSIFIER} --finetune {newest} --data_path {data} --output_dir {tmp_path}/tuned --reprob 0.5")
    assert options(tmp_path / "tuned")["mean"] == stored["mean"]
    assert "geometric" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--in_chans 4 --bands 1 2", ["--in_chans 4", "2 --bands"]),
        ("--mean 0.5", ["--mean", "--std"]),
        ("--in_chans 13 --mean 1354 --std 245", ["--mean", "1354", "from 0 to 1", "stats"]),
        ("--in_chans 13 --mean 0.5 0.5 --std 0.2 0.2", ["--mean", "2 values", "13"]),
        ("--in_chans 4", ["13 bands", "4 channels", "--in_chans 13", "--bands"]),
        ("--in_chans 13 --picture_bands 1 2", ["--picture_bands", "one or three"]),
    ],
)
def test_refusals(flags, words, folder_of, tmp_path, capsys):
    line = f"pretrain {PRETRAIN} --data_path {folder_of('npy')} --output_dir {tmp_path}/mae {flags}"
    assert main(line.split()) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


def test_features_of_an_archive_are_those_of_its_folder(folder_of, tmp_path):
    """Statistics of features in a run, features with pictures of neighbors, and few labels, on a tar file of arrays."""
    data, drawn = folder_of("npy"), "--num_workers 0 --num_pictures 2 --picture_bands 4 3 2"
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(data, "data")
    run(
        f"pretrain {PRETRAIN} --data_path {tmp_path}/all.tar --output_dir {tmp_path}/mae --in_chans {BANDS} "
        "--feature_freq 1 --knn_freq 1 --knn_k 3 --epochs 1 --warmup_epochs 0"
    )
    newest = find_newest(str(tmp_path / "mae"), "")
    for name, path in (("folder", data), ("tar", tmp_path / "all.tar")):
        run(f"extract --model_path {newest} --data_path {path} --save_path {tmp_path}/{name}.npz {drawn}")
        run(f"knn --model_path {newest} --data_path {path} --nb_knn 3 --save_path {tmp_path}/{name} {drawn}")
    with np.load(tmp_path / "folder.npz") as ours, np.load(tmp_path / "tar.npz") as theirs:
        np.testing.assert_array_equal(ours["layer2/mean"], theirs["layer2/mean"])
    for picture in ("{}-neighbors.png", "{}/neighbors.png"):
        ours, theirs = (np.asarray(Image.open(tmp_path / picture.format(name))) for name in ("folder", "tar"))
        np.testing.assert_array_equal(ours, theirs)
        assert np.ptp(ours, axis=-1).max() > 50  # three bands in color
    run(f"fewshot --model_path {newest} --data_path {data} --shots 2 --label_seeds 0 1 --num_workers 0")
    run(f"compare --model_path {newest} --data_path {data} --nb_knn 3 --num_workers 0 --pixels 8")


def test_a_tokenizer_reads_rgb(folder_of, tmp_path, capsys):
    line = (
        f"pretrain --model cae_tiny_patch16_224_8k_vocab {TINY} --decoder_embed_dim 24 --decoder_num_heads 4 "
        f"--regressor_depth 1 --num_decoder_self_attention 1 --num_mask_patches 8 --min_mask_patches_per_block 2 "
        f"--in_chans 13 --data_path {folder_of('npy')} --output_dir {tmp_path}/cae --no_auto_resume --epochs 2 "
        "--warmup_epochs 1 --vis_freq 0"
    )
    assert main(f"{line} --discrete_vae_type random_init".split()) == 2
    assert "--target_mode rgb" in capsys.readouterr().err
    run(f"{line} --target_mode rgb --max_train_step 1")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "channels"), [("tiff", BANDS), ("png", 1)])
def test_everything(kind, channels, folder_of, new_runs, pretrained, tmp_path, capsys):
    """Pre-training, a SIGKILL and its resumption bit for bit, pictures, k-NN, fine-tuning and evaluation."""
    data = folder_of(kind)
    run(f"stats {data} --in_chans {channels} --save_path {tmp_path}/stats.json")
    flags = f"--in_chans {channels} --stats {tmp_path}/stats.json --batch_size 8 --num_workers 2 --knn_freq 2 --knn_k 3"
    runs = new_runs("mae", flags, data, tmp_path)
    whole = runs.here("whole", "--epochs 6 --max_train_step 20")
    process = runs.start("cut", "--epochs 6 --save_ckpt_steps 3")
    runs.kill_at(process, "cut", 10)
    rest = runs.here("cut", "--epochs 6 --max_train_step 20 --save_ckpt_steps 3 --auto_resume")
    assert [record["loss"] for record in rest] == [record["loss"] for record in whole]
    ours, theirs = (load(find_newest(str(tmp_path / name), "")).tensors for name in ("whole", "cut"))
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], name)
    newest = find_newest(str(tmp_path / "cut"), "")
    run(f"reconstruct --model_path {newest} --img_path {data} --save_path {tmp_path}/drawn")
    run(f"knn --model_path {newest} --data_path {data} --nb_knn 3")
    run(f"explain --model_path {newest} --img_path {data} --save_path {tmp_path}/explained --max_images 2")
    run(f"extract --model_path {newest} --data_path {data} --save_path {tmp_path}/features.npz")
    run(f"finetune {CLASSIFIER} --finetune {newest} --data_path {data} --output_dir {tmp_path}/tuned --blr 1e-2")
    tuned = find_newest(str(tmp_path / "tuned"), "")
    run(f"finetune {CLASSIFIER} --eval --resume {tuned} --data_path {data}")
    run(f"predict --model_path {tuned} --img_path {data}")
    run(f"doctor --data_path {data} --in_chans {channels}")
    assert "water" in capsys.readouterr().out
