"""Panels of what a pre-trained network redraws, from our checkpoints and facebookresearch/mae's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae import weights
from plsc_mae.cli import main
from plsc_mae.commands import reconstruct
from plsc_mae.config import PRETRAIN
from plsc_mae.config.resolve import from_mapping
from plsc_mae.data import depth
from plsc_mae.loading.training_config import training_config
from plsc_mae.methods import load_method
from plsc_mae.methods.mae import MAETask

pytestmark = pytest.mark.compat

COLUMNS = 4  # original, masked, reconstruction, reconstruction + visible


@pytest.fixture
def draw(tmp_path, capfd):
    """Run the command into `panels`; gives the exit code, stdout and stderr."""

    def run(model_path, img_path, flags: str = "") -> tuple[int, str, str]:
        words = f"reconstruct --model_path {model_path} --img_path {img_path} --save_path {tmp_path}/panels {flags}"
        capfd.readouterr()  # of the training
        code = main(words.split())
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def labels(monkeypatch) -> list[list[str]]:
    """The labels of every panel that is drawn."""
    seen: list[list[str]] = []
    compose = reconstruct.compose
    monkeypatch.setattr(
        reconstruct,
        "compose",
        lambda pictures, **captions: seen.append(list(pictures)) or compose(pictures, **captions),
    )
    return seen


@pytest.fixture
def facebook(root) -> Path:
    """The folder of checkpoints as facebookresearch/mae writes them."""
    return root / "tests" / "golden" / "mae" / "checkpoints"


def test_a_folder_gives_a_panel_per_image_and_a_sheet(trained, images, draw, tmp_path, labels):
    model = trained() / "checkpoint-1.pd"
    code, out, err = draw(model, images)
    assert (code, err) == (0, "")
    names = sorted(path.name for path in (tmp_path / "panels").iterdir())
    assert len(names) == 11  # the validation images and the sheet
    assert names[0] == "arrow_00000.png"
    assert "sheet.png" in names
    assert f"{model}: " in out
    assert labels[0] == ["original", "masked", "reconstruction", "reconstruction + visible"]
    with Image.open(tmp_path / "panels/arrow_00000.png") as panel, Image.open(tmp_path / "panels/sheet.png") as sheet:
        assert panel.width == sheet.width > COLUMNS * 224
        assert sheet.height > 10 * 224
        assert np.asarray(panel).std() > 10


@pytest.mark.once
def test_a_list_elsewhere_gives_visible_files(trained, images, draw, tmp_path):
    assert main(["split", str(images / "train"), str(tmp_path / "sets/lists")]) == 0
    listed = (tmp_path / "sets/lists/val.txt").read_text().split("\n")[:-1]
    code, _, _ = draw(trained() / "checkpoint-1.pd", tmp_path / "sets/lists/val.txt")
    assert code == 0
    names = [path.name for path in (tmp_path / "panels").iterdir()]
    assert len(names) == len(listed) + 1
    assert all(line.startswith("../") for line in listed)
    assert not [name for name in names if name.startswith((".", "_"))]


@pytest.mark.once
def test_the_sheet_has_images_of_all_classes_with_their_names(trained, images, draw, tmp_path, monkeypatch):
    """20 images of ten folders: a row for each folder."""
    named: list[str] = []
    compose = reconstruct.compose
    monkeypatch.setattr(
        reconstruct,
        "compose",
        lambda pictures, captions=(): named.extend(captions) or compose(pictures, captions=captions),
    )
    for folder in sorted((images / "val").iterdir()):
        (source,) = folder.iterdir()
        (tmp_path / "in" / folder.name).mkdir(parents=True)
        for number in range(2):
            shutil.copy(source, tmp_path / f"in/{folder.name}/{number}.jpg")
    code, out, _ = draw(trained() / "checkpoint-1.pd", tmp_path / "in")
    assert code == 0
    assert named == [f"{folder.name}/0.jpg" for folder in sorted((images / "val").iterdir())]
    assert "10 of these 20 images" in out


@pytest.mark.once
def test_several_checkpoints_share_a_panel(trained, images, draw, labels):
    folder = trained("--save_ckpt_freq 1")
    model, other = folder / "checkpoint-0.pd", folder / "checkpoint-1.pd"
    image = next((images / "val/ring").iterdir())
    code, out, _ = draw(model, image, f"--other_models {other}")
    assert code == 0
    names = [f"{folder.name}/checkpoint-{epoch}" for epoch in (0, 1)]
    assert labels[-1] == ["original", "masked", *names]
    psnr = out.splitlines()[-1]
    assert all(f"{name} " in psnr for name in names)
    assert psnr.count(" dB") == 5  # both networks and three trivial predictors


@pytest.mark.slow  # trains twice
def test_checkpoints_that_hide_other_patches_are_refused(trained, images, draw):
    image, model = next((images / "val/ring").iterdir()), trained() / "checkpoint-1.pd"
    other = trained("--mask_ratio 0.5") / "checkpoint-1.pd"
    code, _, err = draw(model, image, f"--other_models {other}")
    assert code == 2
    assert "--other_models" in err
    assert "--mask_ratio" in err
    assert draw(model, image, f"--other_models {other} --mask_ratio 0.5")[0] == 0
    other = trained("--input_size 48") / "checkpoint-1.pd"
    code, _, err = draw(model, image, f"--other_models {other} --mask_ratio 0.5")
    assert code == 2
    assert f"--other_models {other}" in err


def test_one_image(trained, images, draw, tmp_path):
    image = next((images / "val/ring").iterdir())
    code, out, _ = draw(trained() / "checkpoint-1.pd", image)
    assert code == 0
    assert [path.name for path in (tmp_path / "panels").iterdir()] == [f"{image.stem}.png"]
    panel, psnr = out.splitlines()[-2:]
    assert panel == str(tmp_path / "panels" / f"{image.stem}.png")
    assert psnr.startswith("PSNR on the hidden patches of 1 image: reconstruction ")
    assert psnr.count(" dB") == 4  # the network and three trivial predictors


@pytest.mark.once
def test_images_are_spread_over_the_folder_and_seeds_draw_masks(trained, images, draw, tmp_path):
    model = trained() / "checkpoint-1.pd"
    panel = tmp_path / "panels/heart_00000.png"
    assert draw(model, images, "--max_images 2 --seed 1")[0] == 0
    assert sorted(path.name for path in (tmp_path / "panels").iterdir()) == [
        "arrow_00000.png",
        "ring_00000.png",
        "sheet.png",
    ]
    drawn = []
    for flags in ("--seed 1", "--seed 1", "--seed 2", "--seed 1 --mask_ratio 0.5"):
        assert draw(model, images, flags)[0] == 0
        drawn.append(panel.read_bytes())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.once
def test_labels_of_norm_pix_models_say_where_the_statistics_come_from(trained, images, draw, labels):
    model = trained("--norm_pix_loss") / "checkpoint-1.pd"
    image = next((images / "val/ring").iterdir())
    for flags, source in (
        ("", "the original"),
        ("--patch_stats original", "the original"),
        ("--patch_stats visible", "visible neighbors"),
    ):
        assert draw(model, image, flags)[0] == 0
        assert labels[-1][2] == f"reconstruction (patch mean and std from {source})"


def test_patch_stats_are_refused_where_there_are_none(trained, images, draw, tmp_path):
    code, _, err = draw(trained() / "checkpoint-1.pd", images, "--patch_stats visible")
    assert code == 2
    assert err == (
        "plsc-mae: error: --patch_stats is for models trained with norm_pix_loss; this one predicts pixels\n"
    )
    assert not (tmp_path / "panels").exists()


def test_an_encoder_alone_cannot_redraw(facebook, images, draw):
    code, _, err = draw(facebook / "fb_released_encoder.pth", images)
    assert code == 2
    assert err.startswith("plsc-mae: error: ")
    assert "fb_released_encoder.pth holds an encoder only; expected the decoder too" in err
    assert err.count("\n") == 1


def test_a_foreign_autoencoder_needs_its_numbers_of_heads(facebook, images, draw, tmp_path):
    model = facebook / "fb_released_full.pth"
    code, _, err = draw(model, images)
    assert code == 2
    assert err == f"plsc-mae: error: {model} does not store its number of heads; give it with --num_heads\n"
    code, out, _ = draw(model, images, "--num_heads 2 --decoder_num_heads 2 --norm_pix_loss --max_images 3")
    assert code == 0
    assert "50 tensors matched (facebook)" in out
    assert len(list((tmp_path / "panels").iterdir())) == 4


def test_the_foreign_autoencoder_is_the_originals(facebook, golden):
    """The network that the command builds predicts what the original predicted: rtol 1e-4, atol 2e-5 as recorded
    with the file, whose float32 noise is below 1e-6; other numbers of heads are off by more than 0.5."""
    case = golden("mae/checkpoints/fb_released_full")
    stored = weights.read(facebook / "fb_released_full.pth")
    options = training_config(stored, {"num_heads": 2, "decoder_num_heads": 2}, norm_pix_loss=True)
    model = load_method(options.method).build_task(options).model
    assert not weights.load(model, stored).missing
    out = model(paddle.to_tensor(case["input/images"]), paddle.to_tensor(case["input/noise"]))
    np.testing.assert_allclose(out.pred.numpy(), case["output/pred"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(float(out.loss), case["output/loss"], rtol=1e-5)


@pytest.mark.once
def test_mistakes_are_sentences(trained, images, draw, tmp_path):
    model = trained() / "checkpoint-1.pd"
    notes = tmp_path / "notes.jpg"
    notes.write_text("not a picture\n")
    for model_path, img_path, flags, told in (
        (tmp_path / "none.pth", images, "", "none.pth cannot be opened"),
        (notes, images, "", "notes.jpg is not a weight file"),
        (model, tmp_path / "none", "", f"--img_path {tmp_path}/none does not exist"),
        (model, notes, "", f"--img_path {notes} is a text file; expected an image"),
        (model, images, f"--save_path {notes}/panels", f"cannot write {notes}/panels"),
        (
            model.parent,
            images,
            "",
            f"{model.parent} is the folder of a run; give one of its checkpoints, the newest is",
        ),
        (model, images, "--input_size 33", "input_size 33 is not a multiple of patch_size 8"),
    ):
        code, _, err = draw(model_path, img_path, flags)
        assert code == 2
        assert err.startswith("plsc-mae: error: ")
        assert told in err
        assert err.count("\n") == 1


def test_unreadable_images_have_no_panel(trained, images, draw, tmp_path):
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sorted(images.glob("val/*/*.jpg"))[:4]):
        (tmp_path / f"in/{number}.jpg").write_bytes(b"no image" if number in (0, 2) else path.read_bytes())
    code, _, err = draw(trained() / "checkpoint-1.pd", tmp_path / "in")
    assert code == 1
    assert sorted(path.name for path in (tmp_path / "panels").iterdir()) == ["1.png", "3.png", "sheet.png"]
    assert all(f"{tmp_path}/in/{number}.jpg: " in err for number in (0, 2))
    assert "2 of 4 images" in err
    code, _, err = draw(trained() / "checkpoint-1.pd", tmp_path / "in", "--bad_image error")
    assert code == 2
    assert f"{tmp_path}/in/0.jpg: " in err
    assert "--bad_image skip" in err

    for number in range(4):
        (tmp_path / f"in/{number}.jpg").write_bytes(b"\0no image")
    code, _, err = draw(trained() / "checkpoint-1.pd", tmp_path / "in")
    assert code == 2
    assert "none of 4 images" in err


@pytest.mark.once
def test_the_range_of_training_is_used(trained, draw, tmp_path, monkeypatch, capfd):
    """Of 12-bit images; another range is a warning."""
    (tmp_path / "in").mkdir()
    values = np.linspace(0, 4095, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "in/a.png")
    drawn = []
    compose = reconstruct.compose
    monkeypatch.setattr(
        reconstruct,
        "compose",
        lambda pictures, **captions: drawn.append(pictures["original"]) or compose(pictures, **captions),
    )
    plain, ranged = trained(), trained("--pixel_range 0 4095")
    capfd.readouterr()
    for model, flags, largest, warnings in (
        (plain, "", 15, 1),  # values divided by 256 are named
        (plain, "--pixel_range auto", 255, 0),
        (ranged, "", 255, 0),
        (ranged, "--pixel_range 0 8190", 128, 1),
    ):
        monkeypatch.setattr(depth, "_logged", bytearray(len(depth._KINDS)))
        code, _, err = draw(model / "checkpoint-1.pd", tmp_path / "in", f"{flags} --save_path {tmp_path}/{model.name}")
        assert code == 0
        assert err.count("\n") == warnings
        assert abs(int(drawn[-1].max()) - largest) <= 1


@pytest.mark.once
def test_the_psnr_is_that_of_the_pixels_not_of_the_stretched_picture(trained, draw, tmp_path):
    """Of a 12-bit image of little contrast, in all channels, also in those that no picture shows."""
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(0).integers(1000, 1100, (32, 32, 3)).astype(np.uint16)
    values[..., 2] *= 3
    np.save(tmp_path / "in/a.npy", values)
    model = trained("--pixel_range 0 4095") / "checkpoint-1.pd"
    lines = [draw(model, tmp_path / "in", flags)[1].splitlines()[-1] for flags in ("", "--picture_bands 1")]
    assert lines[0] == lines[1]
    mean = float(re.search(r"mean of the image's visible pixels ([\d.]+) dB", lines[0])[1])
    spread = (values / 4095).var(axis=(0, 1)).mean()
    assert mean == pytest.approx(-10 * np.log10(spread), abs=0.5)


TOKENS, PREDICTED = "its tokens, {}", "hidden tokens predicted, {}"
DECODED, MEAN_PATCH = "decoded by the dVAE", "each as its mean patch in these images"


@pytest.mark.once
@pytest.mark.long
def test_cae_draws_tokens(trained_cae, tokenizer, images, draw, tmp_path, labels):
    """By the decoder beside the tokenizer; a random tokenizer has none."""
    for how, model in ((MEAN_PATCH, trained_cae()), (DECODED, trained_cae(tokenizer))):
        code, out, err = draw(model, images, "--max_images 3")
        assert code == 0, err
        assert f"{model}: " in out
        assert labels[-1] == ["original", "masked", TOKENS.format(how), PREDICTED.format(how)]
        with Image.open(tmp_path / "panels/sheet.png") as sheet:
            assert sheet.width > COLUMNS * 224
    assert len(list((tmp_path / "panels").iterdir())) == 4


def test_a_random_tokenizer_is_told_again(trained_cae, images, draw):
    _, _, err = draw(trained_cae(), images, "--max_images 1")
    assert err.startswith("warning: the tokenizer is RANDOM")


def test_cae_hides_as_many_patches_as_asked(trained_cae, images, draw, monkeypatch):
    drawn, masks = [], []
    compose = reconstruct.compose
    monkeypatch.setattr(
        reconstruct, "compose", lambda pictures, **captions: drawn.append(pictures) or compose(pictures, **captions)
    )
    for flags, hidden in (("", 8), ("--num_mask_patches 5", 5), ("--num_mask_patches 5 --seed 1", 5)):
        assert draw(trained_cae(), images, f"--max_images 4 {flags}")[0] == 0
        masks.append((drawn[-1]["masked"] == 128).all(axis=-1))  # the sheet comes last; hidden patches are gray
        assert masks[-1].mean() == pytest.approx(hidden / 16, abs=0.005)
    assert (masks[1] != masks[2]).any()


@pytest.fixture
def large_cae(trained_cae, tokenizer) -> Path:
    """A checkpoint of 8x8 patches whose masks are what foreign files do not tell: blocks of at least 16 patches."""
    masks = "--num_mask_patches 24 --min_mask_patches_per_block 16"
    return trained_cae(tokenizer, f"--input_size 64 --imagenet_default_mean_and_std {masks}")


@pytest.fixture
def exported(large_cae, tmp_path):
    """The network of that checkpoint as an .npz file of another code base, and its number of tensors."""

    def write(dialect: str) -> tuple[Path, int]:
        stored, file = weights.read(large_cae), tmp_path / f"{dialect}.npz"
        model = load_method("cae").build_task(from_mapping(stored.meta["args"], PRETRAIN, "args")).model
        weights.load(model, stored)
        tensors = weights.export(model, dialect)
        np.savez(file, **tensors)
        return file, sum(not name.startswith("alignment_encoder.") for name in tensors)

    return write


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize("dialect", ["cae", "plsc_cae"])
def test_foreign_files_draw_what_ours_draw(exported, large_cae, tokenizer, images, draw, tmp_path, dialect):
    """From the same weights, the same images and the same masks: the same panels."""
    assert draw(large_cae, images, "--max_images 3")[0] == 0
    ours = pixels(tmp_path / "panels/sheet.png")
    file, count = exported(dialect)
    flags = f"--num_heads 4 --decoder_num_heads 4 --discrete_vae_weight_path {tokenizer} --max_images 3"
    code, out, err = draw(file, images, f"{flags} --num_mask_patches 24")
    assert code == 0, err
    assert f"{count} tensors matched ({dialect})" in out
    np.testing.assert_array_equal(pixels(tmp_path / "panels/sheet.png"), ours)
    assert draw(file, images, f"{flags} --num_mask_patches 30")[0] == 0
    assert (pixels(tmp_path / "panels/sheet.png") != ours).any()


@pytest.mark.once
def test_what_a_foreign_cae_needs(exported, images, draw, tokenizer):
    file, _ = exported("cae")
    heads = "--num_heads 4 --decoder_num_heads 4"
    for flags, told in (
        ("", f"{file} does not store its number of heads; give it with --num_heads"),
        ("--num_heads 4", f"{file} does not store its number of heads; give it with --decoder_num_heads"),
        (f"{heads} --num_mask_patches 24", "--discrete_vae_weight_path is required: the folder with DALL-E's encoder"),
        (f"{heads} --discrete_vae_weight_path {tokenizer} --num_mask_patches 64", "--num_mask_patches 64 hides 64 of"),
    ):
        code, _, err = draw(file, images, flags)
        assert code == 2
        assert err.startswith(f"plsc-mae: error: {told}")
        assert err.count("\n") == 1


def test_options_of_the_other_method_are_refused(trained, trained_cae, images, draw):
    ours, theirs = trained() / "checkpoint-1.pd", trained_cae()
    for model, method, flags in (
        (ours, "mae", "--num_mask_patches 8"),
        (ours, "mae", "--discrete_vae_weight_path x"),
        (theirs, "cae", "--mask_ratio 0.5"),
        (theirs, "cae", "--norm_pix_loss"),
    ):
        code, _, err = draw(model, images, flags)
        assert code == 2
        option = flags.split()[0]
        assert err == (
            f"plsc-mae: error: {option} is no option of method '{method}', which trained {model}; leave it out\n"
        )
    code, _, err = draw(theirs, images, "--patch_stats visible")
    assert code == 2
    assert all(part in err.splitlines()[-1] for part in ("--patch_stats", "CAE"))


@pytest.mark.once
def test_a_model_folder_states_the_statistics_of_its_images(trained, images, draw, tmp_path, monkeypatch):
    folder, seen = tmp_path / "hf", []
    assert (
        main(["weights", "convert", str(trained() / "checkpoint-1.pd"), str(folder), "--dialect", "huggingface"]) == 0
    )
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.25, 0.5, 0.75], "image_std": [0.5, 0.25, 1.0]}')
    drawn = MAETask.draw

    def recorded(task, *arguments):
        seen.append((task.normalize.mean.flatten().tolist(), task.normalize.std.flatten().tolist()))
        return drawn(task, *arguments)

    monkeypatch.setattr(MAETask, "draw", recorded)
    assert draw(folder, images)[0] == 0
    assert seen[0] == ([0.25, 0.5, 0.75], [0.5, 0.25, 1.0])
