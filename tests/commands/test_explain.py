"""Panels of what an encoder attends to."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.commands import explain

pytestmark = pytest.mark.compat


@pytest.fixture
def draw(trained, images, tmp_path, capfd):
    """Run the command into `panels`; gives the exit code, stdout and stderr."""

    def run(flags: str = "", img_path=None) -> tuple[int, str, str]:
        model = trained() / "checkpoint-1.pd"
        line = f"explain --model_path {model} --img_path {img_path or images} --save_path {tmp_path}/panels {flags}"
        code = main(line.split())
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def panels(monkeypatch) -> list[dict]:
    """Every panel that is drawn, {label: pictures}."""
    seen: list[dict] = []
    compose = explain.compose
    monkeypatch.setattr(explain, "compose", lambda pictures: seen.append(pictures) or compose(pictures))
    return seen


def test_a_folder_gives_a_panel_per_image_and_a_sheet(draw, panels, tmp_path):
    code, out, err = draw("--max_images 4")
    assert (code, err) == (0, "")
    names = sorted(path.name for path in (tmp_path / "panels").iterdir())
    assert len(names) == 5
    assert names[0] == "arrow_00000.png"
    assert out.splitlines()[-1] == f"{tmp_path}/panels/sheet.png"
    assert list(panels[0]) == ["image", "rollout (max of heads, discard 0.9)", "last layer, mean of heads"]
    assert len(panels[-1]["image"]) == 4
    with Image.open(tmp_path / "panels/sheet.png") as sheet:
        assert sheet.height > 4 * 224
        assert np.asarray(sheet).std() > 10


def test_options_change_the_picture(draw, images, panels):
    image = next((images / "val/ring").iterdir())
    drawn = []
    for flags in (
        "",
        "--head_fusion min",
        "--head_fusion mean",
        "--discard_ratio 0.5",
        "--pool mean",
        "--random_weights --seed 1",
        "--literal --head_fusion mean --discard_ratio 0.5",
        "--head_fusion mean --discard_ratio 0.5",
    ):
        assert draw(flags, image)[0] == 0
        drawn.append(list(panels[-1].values())[1].tobytes())
    assert [drawn.index(panel) for panel in drawn] == list(range(len(drawn)))
    assert draw("--layer_index -1 --heads", image)[0] == 0
    assert list(panels[-1])[1:] == [
        "rollout (max of heads, discard 0.9, layer -1)",
        "last layer, mean of heads",
        "last layer, head 0",
        "last layer, head 1",
    ]


def test_a_cae(trained_cae, images, tmp_path, capfd):
    image, model = next((images / "val/ring").iterdir()), trained_cae()
    capfd.readouterr()
    line = f"explain --model_path {model} --img_path {image} --save_path {tmp_path}/panels --pool mean"
    assert main(line.split()) == 0
    assert capfd.readouterr().err == ""
    assert [path.name for path in (tmp_path / "panels").iterdir()] == [f"{image.stem}.png"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--img_path PLACE/none", "none does not exist; expected an image or a folder of images"),
        ("--layer_index 1", "--layer_index 1: the encoder has 1 layers; expected 0 to 0"),
        ("--discard_ratio 1", "--discard_ratio must lie in [0, 1), got 1.0"),
        ("--head_fusion sum", "expected one of mean, max, min"),
        ("--save_path PLACE/file/panels", "choose another --save_path"),
    ],
)
def test_mistakes_are_sentences(draw, tmp_path, flags, told):
    (tmp_path / "file").touch()
    code, _, err = draw(flags.replace("PLACE", str(tmp_path)))
    assert code == 2
    assert err.startswith("plsc-mae: error: ")
    assert told in err
    assert err.count("\n") == 1
