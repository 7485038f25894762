"""Names of any script in pictures; a tiny font with one character of a private area stands for those of the world."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw, ImageFont

from plsc_mae.analysis.fonts import VARIABLE, Lettering, drawable_names, text_style, undrawable_names
from plsc_mae.analysis.pictures import add_legend, compose

SQUARE = "\U000f1234"  # no font of a system has it
SIZE = 16


@pytest.fixture(scope="module")
def font(tmp_path_factory) -> Path:
    """A font whose only character is a black square as high as the size of the font."""
    pen = TTGlyphPen(None)
    for move, place in enumerate([(0, 0), (0, 1000), (1000, 1000), (1000, 0)]):
        (pen.lineTo if move else pen.moveTo)(place)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(SQUARE): "square"})
    builder.setupGlyf({".notdef": empty, "square": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path_factory.mktemp("font") / "squares.ttf"
    builder.save(path)
    return path


def drawn(text: str) -> np.ndarray:
    """Return where a text is black, in an image that holds it."""
    image = Image.new("L", (160, 60), 255)
    Lettering(SIZE).draw(ImageDraw.Draw(image), (4, 4), text)
    return np.asarray(image) < 128


def test_a_long_line_loses_its_middle():
    lettering, text = Lettering(SIZE), "a folder with a long name/00012.jpg"
    assert lettering.fitted(text, lettering.width(text)) == text
    shown = lettering.fitted(text, 200)
    start, end = shown.split("...")
    assert text.startswith(start)
    assert text.endswith(end)
    assert abs(len(start) - len(end)) <= 1
    assert lettering.width(shown) <= 200 < lettering.width(f"{start}{text[len(start)]}...{end}")
    assert lettering.fitted(text, 1) == "..."


def test_a_font_of_the_environment_is_used(font, monkeypatch, caplog):
    monkeypatch.setenv(VARIABLE, str(font))
    assert drawable_names(["cat", SQUARE]) == ("cat", SQUARE)
    assert not caplog.records
    assert drawn(SQUARE).sum() == SIZE * SIZE
    assert Lettering(SIZE).width(f"a {SQUARE}") > SIZE
    mixed = drawn(f"a{SQUARE}")
    assert mixed[:, :14].any()
    assert mixed.sum() > SIZE * SIZE


@pytest.mark.parametrize("named", [None, "missing.ttf", __file__])
def test_names_without_a_font_become_numbers(named, monkeypatch, caplog):
    monkeypatch.delenv(VARIABLE, raising=False)
    if named:
        monkeypatch.setenv(VARIABLE, named)
    name = f"{SQUARE}{named}"
    with caplog.at_level(logging.WARNING, "plsc_mae"):
        assert drawable_names(["cat", name, name], [7, 3, 3]) == ("cat", "#3", "#3")
        assert drawable_names(["cat", name, name], [7, 3, 3])[1] == "#3"
    texts = [record.getMessage() for record in caplog.records]
    (replaced,) = [text for text in texts if "#3" in text]
    assert replaced.count(name) == 1
    assert VARIABLE in replaced
    assert [text for text in texts if text != replaced] == [text for text in texts if f"{VARIABLE}={named}" in text]


def test_a_sentence_about_names_without_a_font(monkeypatch, caplog):
    monkeypatch.delenv(VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING, "plsc_mae"):
        assert undrawable_names(["cat", "кошка"]) == ""
        assert f"'{SQUARE}?' as #1; " in undrawable_names(["cat", f"{SQUARE}?"])
    assert not caplog.records


def test_accents_and_other_alphabets_need_no_font_of_the_system():
    names = ["cafe\u0301", "кошка", "γάτα"]
    assert drawable_names(names) == ("café", *names[1:])
    assert drawn("кошка").any()


def test_ascii_looks_as_pillow_draws_it():
    image = Image.new("L", (160, 60), 255)
    own = ImageFont.load_default(size=SIZE)
    ImageDraw.Draw(image).multiline_text((4, 4), "two lines\n0.9987 (g)", fill="black", font=own, spacing=2)
    np.testing.assert_array_equal(drawn("two lines\n0.9987 (g)"), np.asarray(image) < 128)


def test_legends_are_as_wide_as_their_names(font, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(font))
    red = np.array((255, 0, 0), np.uint8)
    legend = add_legend(Image.new("RGB", (200, 20), "white"), {SQUARE * 20: red, "b": red})
    assert legend.height > add_legend(Image.new("RGB", (200, 20), "white"), {"a": red, "b": red}).height


def test_labels_that_are_longer_than_a_column_are_broken():
    gray = np.full((1, 224, 224, 3), 128, np.uint8)
    panel = np.asarray(compose({"x" * 100: gray, "b": gray}))
    assert (panel[:, 8 + 224 : 8 + 224 + 8] == 255).all()  # the gap between the columns
    assert panel.shape[0] > np.asarray(compose({"x": gray, "b": gray})).shape[0]


def test_matplotlib_finds_every_character(font, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    monkeypatch.setenv(VARIABLE, str(font))
    names = drawable_names([f"a{SQUARE}", "$5$ and $", "_b"])
    style = text_style(names)
    assert "Squares" in style["fontfamily"]
    figure, axes = plt.subplots()
    axes.set_yticks(range(3), names, **style)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    assert [label.get_text() for label in axes.get_yticklabels()] == list(names)
    plt.close(figure)
