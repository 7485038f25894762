"""Panels of what a pre-trained network redraws, from our checkpoints and facebookresearch/mae's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae import weights
from plsc_mae.cli import main
from plsc_mae.commands import reconstruct
from plsc_mae.methods import load_method

pytestmark = pytest.mark.compat

COLUMNS = 4  # original, masked, reconstruction, reconstruction + visible


@pytest.fixture
def draw(tmp_path, capfd):
    """Run the command into `panels`; gives the exit code, stdout and stderr."""

    def run(model_path, img_path, flags: str = "") -> tuple[int, str, str]:
        words = f"reconstruct --model_path {model_path} --img_path {img_path} --save_path {tmp_path}/panels {flags}"
        code = main(words.split())
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def labels(monkeypatch) -> list[list[str]]:
    """The labels of every panel that is drawn."""
    seen: list[list[str]] = []
    compose = reconstruct.compose
    monkeypatch.setattr(reconstruct, "compose", lambda pictures: seen.append(list(pictures)) or compose(pictures))
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


def test_one_image(trained, images, draw, tmp_path):
    image = next((images / "val/ring").iterdir())
    code, out, _ = draw(trained() / "checkpoint-1.pd", image)
    assert code == 0
    assert [path.name for path in (tmp_path / "panels").iterdir()] == [f"{image.stem}.png"]
    assert out.splitlines()[-1] == str(tmp_path / "panels" / f"{image.stem}.png")


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


def test_labels_of_norm_pix_models_say_where_the_statistics_come_from(trained, images, draw, labels):
    model = trained("--norm_pix_loss") / "checkpoint-1.pd"
    image = next((images / "val/ring").iterdir())
    for flags, source in (
        ("", "the original"),
        ("--patch_stats original", "the original"),
        ("--patch_stats visible", "visible neighbours"),
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
    assert "fb_released_encoder.pth holds an encoder only; redrawing needs the decoder too" in err
    assert err.count("\n") == 1


def test_a_foreign_autoencoder_needs_its_numbers_of_heads(facebook, images, draw, tmp_path):
    model = facebook / "fb_released_full.pth"
    code, _, err = draw(model, images)
    assert code == 2
    assert err == f"plsc-mae: error: {model} does not tell its number of heads; give it with --num_heads\n"
    code, out, _ = draw(model, images, "--num_heads 2 --decoder_num_heads 2 --norm_pix_loss --max_images 3")
    assert code == 0
    assert "50 tensors matched (facebook)" in out
    assert len(list((tmp_path / "panels").iterdir())) == 4


def test_the_foreign_autoencoder_is_the_originals(facebook, golden):
    """The network that the command builds predicts what the original predicted: rtol 1e-4, atol 2e-5 as recorded
    with the file, whose float32 noise is below 1e-6; other numbers of heads are off by more than 0.5."""
    case = golden("mae/checkpoints/fb_released_full")
    config = reconstruct.ReconstructConfig(
        model_path=str(facebook / "fb_released_full.pth"),
        img_path="unused",
        num_heads=2,
        decoder_num_heads=2,
        norm_pix_loss=True,
    )
    stored = weights.read(config.model_path)
    options = reconstruct._training_config(stored, config)
    model = load_method(options.method).build_task(options).model
    assert not weights.load(model, stored).missing
    out = model(paddle.to_tensor(case["input/images"]), paddle.to_tensor(case["input/noise"]))
    np.testing.assert_allclose(out.pred.numpy(), case["output/pred"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(float(out.loss), case["output/loss"], rtol=1e-5)


def test_mistakes_are_sentences(trained, images, draw, tmp_path):
    model = trained() / "checkpoint-1.pd"
    notes = tmp_path / "notes.jpg"
    notes.write_text("not a picture\n")
    for model_path, img_path, flags, told in (
        (tmp_path / "none.pth", images, "", "none.pth cannot be opened"),
        (notes, images, "", "notes.jpg is not a weight file"),
        (model, tmp_path / "none", "", f"--img_path {tmp_path}/none does not exist"),
        (model, notes, "", f"cannot read image {notes}: it is not an image of a known format"),
        (model, images, f"--save_path {notes}/panels", f"cannot write {notes}/panels"),
        (model, images, "--input_size 33", "input_size 33 is not a multiple of patch_size 8"),
    ):
        code, _, err = draw(model_path, img_path, flags)
        assert code == 2
        assert err.startswith("plsc-mae: error: ")
        assert told in err
        assert err.count("\n") == 1
        assert "bad_image" not in err  # an option of training
