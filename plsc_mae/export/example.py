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
MEAN, STD = {mean}, {std}  # of {pixels} from 0 to 1


def load():
    """Return the network."""
{load}


def run(model, {inputs}):
    """Return the outputs, {{name: array}}, for normalized images [B, {channels}, {height}, {width}]{second}."""
{run}


def preprocess(path):
    """Return a batch with one normalized image."""
{read}
{resize}
    left, top = round((width - WIDTH) / 2), round((height - HEIGHT) / 2)
{crop}
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
_READ_RGB = 'image = Image.open(path).convert("RGB")'
_CROP_RGB = """\
image = image.resize((width, height), Image.Resampling.{filter})
pixels = np.asarray(image.crop((left, top, left + WIDTH, top + HEIGHT)), "float32") / 255"""
# Images of other channels are arrays; Pillow resizes them channel by channel.
_READ_BANDS = """\
values = np.load(path)[..., {bands}]  # an array [height, width, bands] with the values of your files
{scale}
planes = [Image.fromarray(plane) for plane in values.transpose(2, 0, 1).copy()]
image = planes[0]"""
_BYTES = 'values = values.astype("uint8")'
_SCALE = 'values = np.nan_to_num(np.clip((values.astype("float32") - {low}) * (255 / {span}), 0, 255))'
_CROP_BANDS = """\
box = (left, top, left + WIDTH, top + HEIGHT)
planes = [plane.resize((width, height), Image.Resampling.{filter}).crop(box) for plane in planes]
pixels = np.clip(np.stack(planes, axis=-1).astype("float32"), 0, 255) / 255"""
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
    read, crop = _reading(content)
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
        pixels="red, green and blue" if content.pixel_format.is_rgb else "the channels",
        read=_indented(read),
        crop=_indented(crop.format(filter=view.interpolation.upper())),
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
        drawn=drawn,
        classes=_class_lines(content.kind) if content.part == "classifier" else "",
    )


def _reading(content: Content) -> tuple[str, str]:
    """Return the lines that read an image, and a template with the field `filter` of those that resize and crop it."""
    pixels = content.pixel_format
    if pixels.is_rgb:
        return _READ_RGB, _CROP_RGB
    bands = [band - 1 for band in pixels.bands] or list(range(pixels.channels))
    scale = _BYTES
    if pixels.range is not None:
        scale = _SCALE.format(low=pixels.range.low, span=pixels.range.high - pixels.range.low)
    return _READ_BANDS.format(bands=bands, scale=scale), _CROP_BANDS


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
