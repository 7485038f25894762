"""The file example.py of an export: it loads the network and runs it on images, without plsc_mae."""

from __future__ import annotations

import textwrap

from plsc_mae.data.pixels import PixelFormat
from plsc_mae.export.content import Content
from plsc_mae.export.targets.base import Target
from plsc_mae.methods.label_kinds import LabelKind

NAME = "example.py"
_TEMPLATE = '''\
"""{title}: python {name} IMAGE [IMAGE ...]"""

import sys
from pathlib import Path

if __name__ == "__main__":  # before the imports below, which take seconds
    if {{"-h", "--help"}} & set(sys.argv):
        print("usage: python {name} IMAGE [IMAGE ...]")
        sys.exit()
    if len(sys.argv) < 2:
        sys.exit("usage: python {name} IMAGE [IMAGE ...]")
    for image in sys.argv[1:]:
        if not Path(image).is_file():
            sys.exit(f"cannot read {{image}}: there is no such file")

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


def read_tiff(path, reason):
    """Return the values of a TIFF file that Pillow cannot read for `reason`, by the package tifffile."""
    try:
        import tifffile
    except ImportError:
        line = f"import numpy, tifffile; numpy.save({{path + '.npy'!r}}, tifffile.imread({{path!r}}))"
        remedy = f'install tifffile here, or run python -c "{{line}}" where it is installed, and give the .npy file'
        raise ValueError(f"{{reason}}; {{remedy}}") from None
    return tifffile.imread(path)


def read_values(path):
    """Return the values of a file: [height, width], [height, width, bands] or [bands, height, width]."""
    if path.lower().endswith(".npy"):
        return np.load(path, allow_pickle=False)
    try:
        image = Image.open(path)
        deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
{convert}
        return np.asarray(image)
    except Exception as error:
        if not path.lower().endswith((".tif", ".tiff")) or not Path(path).exists():
            raise
        return read_tiff(path, error)


def read(path):
    """Return the pixels [height, width, {channels}] of a file, from 0 to 255."""
    path = str(path)
    try:
        values = read_values(path)
        if values.ndim == 3 and values.shape[0] < values.shape[2]:
            values = values.transpose(1, 2, 0)
        if values.ndim == 2:
            values = values[:, :, None]
        if values.ndim != 3 or {wrong}:
            raise ValueError(f"it has values of shape {{list(values.shape)}}")
{scaled}
    except Exception as error:
        sys.exit(f"cannot read {{path}}: {{error}}; expected an image of {expected}, as .npy, TIFF or a Pillow format")


def preprocess(path):
    """Return a batch with one normalized image."""
{read}
{resize}
    left, top = round((width - WIDTH) / 2), round((height - HEIGHT) / 2)
{crop}
    return ((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)[None].copy()


if __name__ == "__main__":
    model = load()
    for image in sys.argv[1:]:
        outputs = run(model, preprocess(image){drawn})
        print(image)
        for name, value in outputs.items():
            print(" ", name, value.shape)
{classes}'''
_QUIET = """\
import warnings

warnings.filterwarnings("ignore", message="No ccache found")  # Paddle's advice to builders of C++ extensions
"""
_SQUARE = """\
scale = {shorter_side} / min(image.size)
width, height = (max({shorter_side}, int(side * {shorter_side} / min(image.size))) for side in image.size)"""
_RECTANGLE = """\
factor = max({height} / image.height, {width} / image.width)
width, height = max(round(image.width * factor), WIDTH), max(round(image.height * factor), HEIGHT)"""
_READ_RGB = "image = Image.fromarray(read(path))"
_CROP_RGB = """\
image = image.resize((width, height), Image.Resampling.{filter})
pixels = np.asarray(image.crop((left, top, left + WIDTH, top + HEIGHT)), "float32") / 255"""
# Images that are not RGB are arrays; Pillow resizes them channel by channel.
_READ_BANDS = """\
planes = [Image.fromarray(plane) for plane in read(path).transpose(2, 0, 1).copy()]
image = planes[0]"""
_CROP_BANDS = """\
box = (left, top, left + WIDTH, top + HEIGHT)
planes = [plane.resize((width, height), Image.Resampling.{filter}).crop(box) for plane in planes]
pixels = np.clip(np.stack(planes, axis=-1).astype("float32"), 0, 255) / 255"""
_TO_RGB = """\
if not deep:
    image = image.convert("RGB")"""
_TO_GRAY = """\
if not deep:
    image = image.convert("RGB").convert("L")"""
_TO_BANDS = """\
if not deep and image.mode not in ("L", "LA", "RGB", "RGBA"):
    image = image.convert("RGB")"""
_REFUSE_REDUCED = """\
if not deep and ";16" in str(image.tile):
    raise ValueError("Pillow reads 8 of its 16 bits per band")
"""
_BYTES = """\
if values.dtype != np.uint8:
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values are of type {{values.dtype}}, whose range is not known")
    values = (values >> 8).astype("uint8")
return values"""
_SCALE = """\
if values.dtype != np.uint8:  # values from {low:g} to {high:g}
    values = np.nan_to_num(np.clip((values.astype("float32") - {low}) * (255 / {span}), 0, 255))
return {result}"""
_CLASSES = """\
        classes = (FOLDER / "classes.txt").read_text(encoding="utf-8").splitlines()
        logits = outputs["logits"][0]
        {activation}
        for index in {order}:
            print(f"  {text}  {{classes[index]}}")
"""


def example_text(target: Target, content: Content) -> str:
    """Return the source of an example that loads the exported network and runs it on images."""
    code = target.code(content)
    view, (images, *others) = content.view, content.inputs
    if view.size[0] == view.size[1]:
        resize = _SQUARE.format(shorter_side=view.shorter_side).partition("\n")[2]
    else:
        scale = view.shorter_side / max(view.size)
        resize = _RECTANGLE.format(height=view.size[0] * scale, width=view.size[1] * scale)
    rgb = content.pixel_format.is_rgb
    read, crop = (_READ_RGB, _CROP_RGB) if rgb else (_READ_BANDS, _CROP_BANDS)
    drawn, second = "", ""
    for each in others:
        noise = f"np.random.rand(1, {each.shape[0]}).astype('float32')"
        hidden = f"np.random.rand(1, {each.shape[0]}).argsort(axis=1) < {content.num_hidden}"
        drawn += f", {noise if each.dtype == 'float32' else hidden}"
        second += f" and {each.name} [B, {each.shape[0]}]"
    return _TEMPLATE.format(
        title=f"Run the {content.part} in {target.title}",
        name=NAME,
        imports=(_QUIET if "paddle" in code.imports else "") + code.imports,
        size=tuple(view.size),
        pixels="red, green and blue" if rgb else "the channels",
        read=_indented(read),
        **_reading(content.pixel_format),
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


def _reading(pixel_format: PixelFormat) -> dict[str, str]:
    """Return the parts of the template that read a file by the rules of `plsc_mae.data.pixels`."""
    count, bands, limits = pixel_format.channels, pixel_format.bands, pixel_format.range
    if pixel_format.is_rgb:
        convert, wrong, expected = _TO_RGB, "values.shape[2] not in (1, 3, 4)", "1, 3 or 4 bands"
        choose = "values = values.repeat(3, axis=2) if values.shape[2] == 1 else values[:, :, :3]"
    elif bands:
        convert, wrong, expected = _TO_BANDS, f"values.shape[2] < {max(bands)}", f"{max(bands)} or more bands"
        choose = f"values = values[:, :, {[band - 1 for band in bands]}]"
    else:
        convert = _TO_GRAY if count == 1 else _TO_BANDS
        wrong, expected, choose = f"values.shape[2] != {count}", f"{count} band{'s' * (count > 1)}", ""
    if limits is None:
        scale = _BYTES.format()
    else:
        convert = _REFUSE_REDUCED + convert
        result = 'np.rint(values).astype("uint8")' if pixel_format.is_rgb else 'values.astype("float32")'
        scale = _SCALE.format(low=limits.low, high=limits.high, span=limits.high - limits.low, result=result)
    scaled = textwrap.indent(f"{choose}\n{scale}".strip(), " " * 8)
    return {"convert": textwrap.indent(convert, " " * 8), "wrong": wrong, "expected": expected, "scaled": scaled}


def _class_lines(kind: LabelKind) -> str:
    ranked = kind.values == "probabilities"
    return _CLASSES.format(
        activation=kind.activation,
        order="values.argsort()[::-1][:5]" if ranked else "range(len(values))",
        text="{100 * values[index]:6.2f} %" if ranked else "{values[index]:10.4g}",
    )


def _indented(code: str) -> str:
    return textwrap.indent(code, "    ")
