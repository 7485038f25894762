"""Panels of what an encoder attends to."""

from __future__ import annotations

import json
import logging
import sys

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae.analysis.attention import category_attention, gradient_rollout, literal_gradients, patch_relevance
from plsc_mae.analysis.pictures import overlay
from plsc_mae.cli import main
from plsc_mae.commands import explain
from plsc_mae.data.opencv import load_opencv
from plsc_mae.errors import ConfigError
from plsc_mae.loading.classifier import load_classifier

pytestmark = pytest.mark.compat


@pytest.fixture
def draw(trained, images, tmp_path, capfd):
    """Run the command into `panels`; gives the exit code, stdout and stderr."""

    def run(flags: str = "", img_path=None, model=None) -> tuple[int, str, str]:
        model = model or trained() / "checkpoint-1.pd"
        capfd.readouterr()  # of the training
        line = f"explain --model_path {model} --img_path {img_path or images} --save_path {tmp_path}/panels {flags}"
        code = main(line.split())
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def panels(monkeypatch) -> list[dict]:
    """Every panel that is drawn, {label: pictures}."""
    seen: list[dict] = []
    compose = explain.compose
    monkeypatch.setattr(
        explain, "compose", lambda pictures, **captions: seen.append(pictures) or compose(pictures, **captions)
    )
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


@pytest.mark.once
def test_the_sheet_of_another_command_is_kept(draw, images, trained, tmp_path):
    model = trained() / "checkpoint-1.pd"
    line = f"reconstruct --model_path {model} --img_path {images} --save_path {tmp_path}/panels --max_images 2"
    assert main(line.split()) == 0
    theirs = (tmp_path / "panels/sheet.png").read_bytes()
    for _ in range(2):
        code, out, err = draw("--max_images 2")
        assert code == 0, err
        assert out.splitlines()[-1] == f"{tmp_path}/panels/sheet-explain.png"
    assert (tmp_path / "panels/sheet.png").read_bytes() == theirs
    assert len(list((tmp_path / "panels").iterdir())) == 6


@pytest.mark.once
def test_a_warning_names_the_weights_whose_pictures_are_replaced(draw, images, trained, tmp_path):
    image, model = images / "val/ring/00000.jpg", trained() / "checkpoint-1.pd"
    assert [draw(flags, image)[2] for flags in ("", "--heads")] == ["", ""]
    _, _, err = draw("--random_weights", image)
    assert err.startswith(f"warning: 1 picture of {model} in {tmp_path}/panels will be replaced by those of {model}, ")
    assert err.count("\n") == 1


def test_a_link_to_the_folder_of_the_panels_is_refused(draw, tmp_path):
    (tmp_path / "panels").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "panels/0.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").symlink_to(tmp_path / "panels")
    code, _, err = draw(img_path=tmp_path / "in")
    assert code == 2
    assert "--save_path" in err
    assert [path.name for path in (tmp_path / "panels").iterdir()] == ["0.png"]


@pytest.mark.once
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


@pytest.mark.once
def test_several_head_fusions_give_a_rollout_each(draw, images, panels):
    assert draw("--head_fusion mean min", next((images / "val/ring").iterdir()))[0] == 0
    assert list(panels[-1])[1:3] == [f"rollout ({fusion} of heads, discard 0.9)" for fusion in ("mean", "min")]


def test_a_cae(trained_cae, images, tmp_path, capfd):
    image, model = next((images / "val/ring").iterdir()), trained_cae()
    capfd.readouterr()
    line = f"explain --model_path {model} --img_path {image} --save_path {tmp_path}/panels --pool mean"
    assert main(line.split()) == 0
    assert capfd.readouterr().err == ""
    assert [path.name for path in (tmp_path / "panels").iterdir()] == [f"{image.stem}.png"]


def by_hand(model, image, category, *, literal=False, layer=None, pool="mean") -> np.ndarray:
    """The gradient rollout of a category over an image of the network's size."""
    trained = load_classifier(str(model))
    with Image.open(image) as opened:
        pixels = np.asarray(opened)
    found = category_attention(trained.network, trained.normalize(paddle.to_tensor(pixels[None])), category)
    gradients = literal_gradients(found.attentions, found.gradients) if literal else found.gradients
    chosen = slice(None) if layer is None else slice(layer, layer + 1)
    options = {"discard_ratio": 0.5, "literal": literal, "residual": False}
    rolled = gradient_rollout(found.attentions[chosen], gradients[chosen], **options)
    return overlay(pixels, patch_relevance(rolled, trained.network.encoder.grid, pool))


def test_what_speaks_for_a_category(draw, panels, classifier, images):
    """By default as the classifier pools, here the mean of patches; all options change the picture."""
    image, drawn = images / "val/ring/00000.jpg", []
    for flags, options in {
        "--category_index 3": {"category": 3},
        "--category_index ring": {"category": 5},
        "--category_index 3 --layer_index 0": {"category": 3, "layer": 0},
        "--category_index 3 --pool cls": {"category": 3, "pool": "cls"},
        "--category_index 3 --literal": {"category": 3, "literal": True},
        "--category_index 3 --literal --layer_index 1": {"category": 3, "literal": True, "layer": 1},
    }.items():
        code, _, err = draw(f"{flags} --discard_ratio 0.5", image, classifier)
        assert (code, err) == (0, "")
        picture = list(panels[-1].values())[1][0]
        np.testing.assert_array_equal(picture, by_hand(classifier, image, **options), err_msg=flags)
        drawn.append(picture.tobytes())
    assert len(set(drawn)) == len(drawn)
    assert draw("--category_index 3 --model_key model_ema --discard_ratio 0.5", image, classifier)[0] == 0
    assert list(panels[-1].values())[1].tobytes() not in drawn


@pytest.mark.once
def test_labels_say_which_category(draw, panels, classifier, images, tmp_path):
    """A panel has the image's own, a sheet what holds for all its rows; the output names file and class."""
    names = [path.name for path in sorted((images / "val").iterdir())]
    code, out, _ = draw("--category_index predicted --max_images 2", None, classifier)
    assert code == 0
    *own, sheet = panels
    trained, told = load_classifier(str(classifier)), []
    for name in (names[0], names[5]):
        with Image.open(images / f"val/{name}/00000.jpg") as opened:
            found = category_attention(trained.network, trained.normalize(paddle.to_tensor(np.asarray(opened)[None])))
        told.append(f"gradient rollout of '{names[found.category]}', {100 * found.probability:.1f} % (discard 0.9)")
        answer = "right" if names[found.category] == name else f"wrong: true class '{name}'"
        assert f"{name}/00000.jpg: '{names[found.category]}', {100 * found.probability:.1f} %, {answer}\n" in out
    assert [list(panel)[1] for panel in own] == told
    assert list(sheet)[1] == "gradient rollout of the predicted class (discard 0.9)"
    assert list(sheet)[2:] == ["rollout (max of heads, discard 0.9)", "last layer, mean of heads"]
    np.testing.assert_array_equal(list(sheet.values())[1], np.concatenate([list(p.values())[1] for p in own]))
    (tmp_path / "names.txt").write_text("".join(f"a {name}\n" for name in names))
    flags = f"--category_index 1 --max_images 2 --layer_index -1 --classes {tmp_path}/names.txt"
    assert draw(flags, None, classifier)[0] == 0
    assert list(panels[-1])[1] == f"gradient rollout of 'a {names[1]}' (discard 0.9, layer -1)"


@pytest.mark.once
@pytest.mark.parametrize("category", ["predicted", "arrow"])
def test_the_true_class_is_told_where_it_is_known(draw, classifier, images, tmp_path, monkeypatch, category):
    """Marked as right or wrong if the class is a prediction; in the output, in panels and in the sheet."""
    drawn: list[list[str]] = []
    compose = explain.compose

    def draw_and_keep(pictures, captions=()):
        drawn.append(list(captions))
        return compose(pictures, captions=captions)

    monkeypatch.setattr(explain, "compose", draw_and_keep)
    names = [path.name for path in sorted((images / "val").iterdir())]
    rows = {f"../{images.name}/val/{name}/00000.jpg": number for number, name in enumerate(names)}
    folder = images.parent / tmp_path.name
    folder.mkdir()
    (folder / "list.txt").write_text("".join(f"{path} {number}\n" for path, number in rows.items()))
    (folder / "classes.txt").write_text("\n".join(names))
    (folder / "bare.txt").write_text("\n".join(rows))
    for source in (images, folder / "list.txt"):
        code, out, _ = draw(f"--category_index {category}", source, classifier)
        assert code == 0
        told = [line.split(": ", 1)[1] for line in out.splitlines() if "00000.jpg: " in line]
        *own, sheet = drawn
        assert len(told) == len(own) == len(sheet) == len(names)
        for name, line, (caption,), row in zip(names, told, own, sheet, strict=True):
            right = line.startswith(f"'{name}'")
            if category != "predicted":
                assert line.endswith(f" %, true class '{name}'")
                assert caption == line
            else:
                assert line.endswith(" %, right" if right else f" %, wrong: true class '{name}'")
                assert caption == ("\u2713 " if right else "\u2717 ") + line
            assert row == f"{caption} ({row.split('(')[1]}"
        drawn.clear()
    for source in (folder / "bare.txt", images / "val/ring"):
        _, out, _ = draw(f"--category_index {category} --max_images 1", source, classifier)
        assert ("true class" in out, "right" in out, drawn) == (False, False, [[]])
        drawn.clear()


@pytest.mark.parametrize("flags", ["", "--input_size 64"])  # whole images, and a crop of 64 / 73 of the shorter side
def test_a_classifier_explains_what_it_predicts(draw, classifier, images, tmp_path, monkeypatch, flags):
    """Wide images have the probability of `predict`, and the output says which part the network sees."""
    found: list[float] = []
    attend = explain.category_attention

    def remembering(*given):
        result = attend(*given)
        found.append(result.probability)
        return result

    monkeypatch.setattr(explain, "category_attention", remembering)
    (tmp_path / "wide").mkdir()
    for number, name in enumerate(("ring", "star")):
        with Image.open(images / f"val/{name}/00000.jpg") as opened:
            opened.resize((160, 90)).save(tmp_path / f"wide/{number}.png")
    code, out, _ = draw(f"--category_index predicted {flags}", tmp_path / "wide", classifier)
    assert code == 0
    part = "49.3 % of the width and 87.7 %" if flags else "56.2 % of the width and 100 %"
    assert f"the network sees {part} of the height of 160 x 90 (width x height)\n" in out
    line = f"predict --model_path {classifier} --img_path {tmp_path}/wide --save_path {tmp_path}/p.json {flags}"
    assert main(line.split()) == 0
    predicted = [entry["probabilities"][0] for entry in json.loads((tmp_path / "p.json").read_text())]
    assert found == pytest.approx(predicted, abs=1e-6)


def test_an_unknown_category_is_answered_with_names():
    with pytest.raises(ConfigError, match=r"--category_index owl: .*'0', '1', '2', '3', '4' and 5 more"):
        explain.find_category("owl", [str(number) for number in range(10)])


def test_a_classifier_without_a_class_token(draw, root, images):
    model = root / "tests/golden/mae/checkpoints/priv_finetune_ema.pth"
    assert draw("--category_index predicted --num_heads 2 --max_images 1", None, model)[0] == 0
    code, _, err = draw("--category_index predicted --num_heads 2 --pool cls", None, model)
    assert (code, err.count("\n")) == (2, 1)
    assert "the network has no class token" in err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--category_index 10", "--category_index 10: the classifier has no such class; expected a number from 0 to 9"),
        ("--category_index rign", "has no such class; did you mean 'ring'?; expected"),
        ("--category_index 1 --random_weights", "--category_index needs a trained classifier; leave --random_weights"),
        ("--category_index 1 --layer_index 2", "--layer_index 2: the encoder has 2 layers; expected 0 to 1"),
        ("--no_global_pool", "--global_pool has no effect without --category_index"),
    ],
)
def test_mistakes_about_categories(draw, classifier, flags, told):
    code, _, err = draw(flags, None, classifier)
    assert (code, err.count("\n")) == (2, 1)
    assert told in err


def test_a_number_that_is_also_a_name(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    names = ["0", "1", "10", "2"]
    assert explain.find_category("1", names) == 1
    assert not caplog.records
    assert explain.find_category("2", names) == 2
    assert "class number 2, '10'" in caplog.text
    assert explain.find_category("10", names) == 2


def test_an_autoencoder_knows_no_category(draw):
    code, _, err = draw("--category_index 1")
    assert code == 2
    assert "checkpoint-1.pd holds no classifier: it has no head; expected a checkpoint of `plsc-mae finetune`" in err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            "--img_path PLACE/none",
            "none does not exist; expected an image, a folder",
        ),
        ("--layer_index 1", "--layer_index 1: the encoder has 1 layer; expected 0"),
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


def test_a_missing_opencv_is_a_sentence(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    load_opencv.cache_clear()
    code, _, err = draw()
    assert code == 2
    assert "explain" in err
    assert "pip install opencv-python-headless" in err


def test_unreadable_images_have_no_panel(draw, images, tmp_path):
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sorted(images.glob("val/*/*.jpg"))[:3]):
        (tmp_path / f"in/{number}.jpg").write_bytes(b"no image" if number == 0 else path.read_bytes())
    code, out, err = draw(img_path=tmp_path / "in")
    assert code == 1
    assert sorted(path.name for path in (tmp_path / "panels").iterdir()) == ["1.png", "2.png", "sheet.png"]
    assert f"{tmp_path}/in/0.jpg: " in err
    assert "1 of 3 images" in err
    assert out.splitlines()[-1] == f"{tmp_path}/panels/sheet.png"
