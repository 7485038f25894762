"""Pictures for visual inspection: maps laid over images, and labeled panels of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from plsc_mae.analysis.fonts import Lettering
from plsc_mae.data.opencv import load_opencv

GAP = 8  # pixels between the pictures of a panel
MIN_SIDE = 224  # smaller pictures are enlarged by a whole factor, so that labels fit and patches are visible
LABEL_SIZE = 13  # of the font, in pixels
MAX_COLORS = 64
_BACKGROUND = ((255, 255, 255), (120, 120, 120))  # colors of a map's background and of its unlabeled images
_LIGHTNESS = (0.35, 0.88)  # limits of the lightness in Oklab; lighter colors would be hard to see on white
_TO_CONES = np.array(
    (
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    )
)
_TO_OKLAB = np.array(
    (
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    )
)
TILE_LABEL_SHARE = 0.11  # size of the font in a tiled panel, as a share of a picture's width


def resize_map(relevance: npt.NDArray[np.floating[Any]], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resize a map [h, w] to `size` = (H, W) with bilinear interpolation.

    Raises:
        ImportError: OpenCV cannot be imported.
    """
    cv2 = load_opencv()
    return cv2.resize(relevance.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def overlay(image: npt.NDArray[np.uint8], relevance: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Overlay an image with a map in JET colors, as in BUPT-PRIV/MAE-priv tools/vit_explain.py.

    Args:
        image: RGB image [H, W, 3].
        relevance: map [h, w] in [0, 1]; 0 is blue and 1 is red.

    Returns:
        RGB image uint8 [H, W, 3], scaled to a maximum of 255.

    Raises:
        ImportError: OpenCV cannot be imported.
    """
    cv2 = load_opencv()
    levels = (255 * resize_map(relevance, image.shape[:2])).astype(np.uint8)
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_JET)[:, :, ::-1]  # BGR to RGB
    total = colors.astype(np.float32) / 255 + image.astype(np.float32) / 255
    return (255 * (total / total.max())).astype(np.uint8)


def highlight(image: npt.NDArray[np.uint8], relevance: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Darken an image [H, W, 3] where a map [h, w] in [0, 1] is low; this needs no OpenCV, in contrast to `overlay`."""
    levels = Image.fromarray((relevance * 255).astype(np.uint8))
    light = np.asarray(levels.resize(image.shape[1::-1], Image.Resampling.BILINEAR), np.float32)[..., None] / 255
    return (image * (0.15 + 0.85 * light)).astype(np.uint8)


def principal_colors(features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return the first three principal components of features [..., D] as colors, uint8 [..., 3].

    Each component is scaled so that its 1 % and 99 % quantiles become 0 and 255. Its sign is arbitrary; the sign with a
    positive third moment is taken, so that colors change little from one epoch to the next. Components beyond the rank
    of the features are mid-gray.
    """
    rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    colors = np.full((len(rows), 3), 0.5)
    for i, value in enumerate(values[::-1][:3]):
        if value > values[-1] * 1e-10:
            component = rows @ vectors[:, -1 - i]
            component *= -1 if (component**3).sum() < 0 else 1
            low, high = np.quantile(component, (0.01, 0.99))
            colors[:, i] = np.clip((component - low) / max(high - low, 1e-12), 0, 1)
    return (colors * 255).round().astype(np.uint8).reshape(*features.shape[:-1], 3)


def enlarge(grid: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Enlarge a picture [h, w, 3] to `size` = (H, W) pixels, with sharp edges between its pixels."""
    return np.asarray(Image.fromarray(grid).resize(size[::-1], Image.Resampling.NEAREST))


def tile(pictures: Mapping[str, npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Return a panel of labeled pictures, two per row, as uint8 [H, W, 3].

    Args:
        pictures: {label: uint8 [H, W, 3]}, all of the same size.
    """
    items = [(label, picture[None]) for label, picture in pictures.items()]
    height, width = items[0][1].shape[1:3]
    size = round(TILE_LABEL_SHARE * width * _enlargement(height, width))  # boards show panels at about half size
    rows = [np.asarray(compose(dict(items[i : i + 2]), size)) for i in range(0, len(items), 2)]
    whole = max(row.shape[1] for row in rows)
    padding = [((0, 0), (0, whole - row.shape[1]), (0, 0)) for row in rows]
    return np.concatenate([np.pad(row, pad, constant_values=255) for row, pad in zip(rows, padding, strict=True)])


def compose(
    pictures: Mapping[str, npt.NDArray[np.uint8]], label_size: int = LABEL_SIZE, *, captions: Sequence[str] = ()
) -> Image.Image:
    """Draw a panel with one row per image and one labeled column per kind of picture.

    Args:
        pictures: {label: uint8 [B, H, W, 3]}, all of the same size.
        label_size: size of the labels' font in pixels.
        captions: one line of text above each row, shortened in the middle to fit; empty for rows without text.
    """
    stacks = list(pictures.values())
    rows, height, width = stacks[0].shape[:3]
    factor = _enlargement(height, width)
    cell_h, cell_w = height * factor, width * factor
    lettering = Lettering(label_size)
    labels = [_wrap(label, lettering, cell_w) for label in pictures]
    head = GAP + (label_size + 3) * max(label.count("\n") + 1 for label in labels)
    pitch, strip = cell_h + GAP, label_size + 3 if captions else 0
    canvas = Image.new("RGB", (GAP + len(stacks) * (cell_w + GAP), head + GAP + rows * (strip + pitch)), "white")
    draw = ImageDraw.Draw(canvas)
    for row, caption in enumerate(captions):
        place = (GAP, head + GAP + row * (strip + pitch) - GAP // 2)
        lettering.draw(draw, place, lettering.fitted(caption, canvas.width - 2 * GAP))
    for column, (label, stack) in enumerate(zip(labels, stacks, strict=True)):
        x = GAP + column * (cell_w + GAP)
        lettering.draw(draw, (x, GAP // 2), label)
        for row in range(rows):
            cell = Image.fromarray(stack[row]).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            canvas.paste(cell, (x, head + GAP + strip + row * (strip + pitch)))
    return canvas


def _enlargement(height: int, width: int) -> int:
    """Return the whole factor by which a panel enlarges a picture."""
    return max(1, -(-MIN_SIDE // min(height, width)))


def _wrap(label: str, lettering: Lettering, width: int) -> str:
    """Break a label into lines of at most `width` pixels, at spaces and within words that are longer than a line."""
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and lettering.width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
        while len(lines[-1]) > 1 and lettering.width(lines[-1]) > width:
            last = lines.pop()
            fitting = [n for n in range(1, len(last)) if lettering.width(last[:n]) <= width]
            cut = fitting[-1] if fitting else 1
            lines += [last[:cut], last[cut:]]
    return "\n".join(lines)


def class_colors(number: int) -> npt.NDArray[np.uint8]:
    """Return the RGB colors [number, 3] of class indices in PASCAL VOC's palette, which repeats after 256 classes.

    The bits of an index, three at a time from the lowest, become the bits of red, green and blue from the highest.
    """
    indices = np.arange(number)[:, None] % 256
    colors = np.zeros((number, 3), np.int64)
    for level in range(8):
        colors |= ((indices >> (3 * level + np.arange(3))) & 1) << (7 - level)
    return colors.astype(np.uint8)


def distinct_colors(number: int) -> npt.NDArray[np.uint8]:
    """Return RGB colors [number, 3], each as far as possible from the earlier ones, from white and from gray.

    They come from a grid of 9 levels per channel, without very dark and very light colors. Distances are those of Oklab
    (Ottosson 2020). Colors repeat after MAX_COLORS.
    """
    levels = np.linspace(0, 255, 9).round()
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    places = _oklab(grid)
    fitting = (places[:, 0] > _LIGHTNESS[0]) & (places[:, 0] < _LIGHTNESS[1])
    grid, places = grid[fitting], places[fitting]
    distances = np.full(len(grid), np.inf)
    chosen: list[int] = []
    for place in _oklab(np.array(_BACKGROUND, np.float64)):
        distances = np.minimum(distances, np.linalg.norm(places - place, axis=1))
    for _ in range(min(number, MAX_COLORS)):
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return grid[np.resize(np.array(chosen, np.int64), number)].astype(np.uint8)


def _oklab(colors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return sRGB colors [n, 3] from 0 to 255 in Oklab (https://bottosson.github.io/posts/oklab/)."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_OKLAB.T


def add_legend(panel: Image.Image, entries: Mapping[str, npt.NDArray[np.uint8]]) -> Image.Image:
    """Return `panel` with a legend below it, in which each of `entries`, {name: RGB color [3]}, has a swatch."""
    lettering = Lettering(LABEL_SIZE)
    places: list[tuple[float, int]] = []
    x, line = float(GAP), 0
    for name in entries:
        width = 20 + lettering.width(name) + 2 * GAP
        if x > GAP and x + width > panel.width:
            x, line = GAP, line + 1
        places.append((x, line))
        x += width
    canvas = Image.new("RGB", (panel.width, panel.height + 20 * (line + 1) + GAP), "white")
    canvas.paste(panel)
    draw = ImageDraw.Draw(canvas)
    for (name, color), (left, row) in zip(entries.items(), places, strict=True):
        top = panel.height + 20 * row
        draw.rectangle((left, top, left + 14, top + 14), fill=tuple(color.tolist()), outline="black")
        lettering.draw(draw, (left + 20, top - 1), name)
    return canvas
