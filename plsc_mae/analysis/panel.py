"""Labeled rows of pictures as one image for people to look at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

GAP = 8
MIN_SIDE = 224  # smaller pictures are enlarged to this, pixel by pixel, so that labels fit and patches show


def compose(pictures: Mapping[str, npt.NDArray[np.uint8]]) -> Image.Image:
    """Draw one row per image and one labeled column per picture of it.

    Args:
        pictures: {label: uint8 [B, H, W, 3]}, all of one size.
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
