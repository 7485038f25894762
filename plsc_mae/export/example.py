"""The file example.py of an export: preprocessing, loading and running, with no import of plsc_mae."""

from __future__ import annotations

import textwrap

from plsc_mae.export.content import Content
from plsc_mae.export.targets.base import Target
from plsc_mae.methods.label_kinds import LabelKind

NAME = "example.py"
_TEMPLATE = '''\
"""{title}: python {name} IMAGE"""

import sys
from pathlib import Path

import numpy as np
{imports}
from PIL import Image

FOLDER = Path(__file__).resolve().parent
HEIGHT, WIDTH = {size}
MEAN, STD = {mean}, {std}  # of red, green and blue from 0 to 1


def load():
    """Return the network."""
{load}


def run(model, {inputs}):
    """Return the outputs, {{name: array}}, for normalized images [B, {channels}, {height}, {width}]{second}."""
{run}


def preprocess(path):
    """Return a batch with one normalized image."""
    image = Image.open(path).convert("RGB")
{resize}
    image = image.resize((width, height), Image.Resampling.{filter})
    left, top = round((width - WIDTH) / 2), round((height - HEIGHT) / 2)
    pixels = np.asarray(image.crop((left, top, left + WIDTH, top + HEIGHT)), "float32") / 255
    return ((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)[None].copy()


if __name__ == "__main__":
    outputs = run(load(), preprocess(sys.argv[1]){drawn})
    for name, value in outputs.items():
        print(name, value.shape)
{classes}'''
_SQUARE = """\
scale = {shorter_side} / min(image.size)
width, height = (max({shorter_side}, int(side * {shorter_side} / min(image.size))) for side in image.size)"""
_RECTANGLE = """\
factor = max({height} / image.height, {width} / image.width)
width, height = max(round(image.width * factor), WIDTH), max(round(image.height * factor), HEIGHT)"""
_CLASSES = """\
    classes = (FOLDER / "classes.txt").read_text(encoding="utf-8").splitlines()
    logits = outputs["logits"][0]
    {activation}
    for index in {order}:
        print(f"{text}  {{classes[index]}}")
"""


def example_text(target: Target, content: Content) -> str:
    """Return the source of an example that loads the exported network and runs it on an image."""
    code = target.code(content)
    view, (images, *others) = content.view, content.inputs
    if view.size[0] == view.size[1]:
        resize = _SQUARE.format(shorter_side=view.shorter_side).partition("\n")[2]
    else:
        scale = view.shorter_side / max(view.size)
        resize = _RECTANGLE.format(height=view.size[0] * scale, width=view.size[1] * scale)
    drawn, second = "", ""
    for each in others:
        noise = f"np.random.rand(1, {each.shape[0]}).astype('float32')"
        hidden = f"np.random.rand(1, {each.shape[0]}).argsort(axis=1) < {content.num_hidden}"
        drawn += f", {noise if each.dtype == 'float32' else hidden}"
        second += f" and {each.name} [B, {each.shape[0]}]"
    return _TEMPLATE.format(
        title=f"Run the {content.part} in {target.title}",
        name=NAME,
        imports=code.imports,
        size=tuple(view.size),
        mean=content.mean,
        std=content.std,
        load=_indented(code.load),
        inputs=", ".join(each.name for each in content.inputs),
        channels=images.shape[0],
        height=images.shape[1],
        width=images.shape[2],
        second=second,
        run=_indented(code.run),
        resize=_indented(resize),
        filter=view.interpolation.upper(),
        drawn=drawn,
        classes=_class_lines(content.kind) if content.part == "classifier" else "",
    )


def _class_lines(kind: LabelKind) -> str:
    """Return the lines that print the predictions of a classifier."""
    ranked = kind.values == "probabilities"
    return _CLASSES.format(
        activation=kind.activation,
        order="values.argsort()[::-1][:5]" if ranked else "range(len(values))",
        text="{100 * values[index]:6.2f} %" if ranked else "{values[index]:10.4g}",
    )


def _indented(code: str) -> str:
    return textwrap.indent(code, "    ")
