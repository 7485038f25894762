"""Pictures for visual inspection: maps laid over images, and labeled panels of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from plsc_mae.data.opencv import load_opencv

GAP = 8  # pixels between the pictures of a panel
MIN_SIDE = 224  # smaller pictures are enlarged by a whole factor, so that labels fit and patches are visible


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


def compose(pictures: Mapping[str, npt.NDArray[np.uint8]]) -> Image.Image:
    """Draw a panel with one row per image and one labeled column per kind of picture.

    Args:
        pictures: {label: uint8 [B, H, W, 3]}, all of the same size.
    """
    stacks = list(pictures.values())
    rows, height, width = stacks[0].shape[:3]
    factor = max(1, -(-MIN_SIDE // min(height, width)))
    cell_h, cell_w = height * factor, width * factor
    font = ImageFont.load_default(size=13)
    labels = [_wrap(label, font, cell_w) for label in pictures]
    head = GAP + 16 * max(label.count("\n") + 1 for label in labels)
    canvas = Image.new("RGB", (GAP + len(stacks) * (cell_w + GAP), head + GAP + rows * (cell_h + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (label, stack) in enumerate(zip(labels, stacks, strict=True)):
        x = GAP + column * (cell_w + GAP)
        draw.multiline_text((x, GAP // 2), label, fill="black", font=font, spacing=2)
        for row in range(rows):
            cell = Image.fromarray(stack[row]).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            canvas.paste(cell, (x, head + GAP + row * (cell_h + GAP)))
    return canvas


def _wrap(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
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


def add_legend(panel: Image.Image, entries: Mapping[str, npt.NDArray[np.uint8]]) -> Image.Image:
    """Return a panel with lines of named color swatches below, {name: RGB color [3]}."""
    font = ImageFont.load_default(size=13)
    places: list[tuple[float, int]] = []
    x, line = float(GAP), 0
    for name in entries:
        width = 20 + font.getlength(name) + 2 * GAP
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
        draw.text((left + 20, top - 1), name, fill="black", font=font)
    return canvas
