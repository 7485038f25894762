"""A map of numbers laid over a picture in colors."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt


def resize_map(relevance: npt.NDArray[np.floating[Any]], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Enlarge a map [h, w] to `size` = (H, W), bilinear."""
    return cv2.resize(relevance.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def overlay(image: npt.NDArray[np.uint8], relevance: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Add a map in the JET colors, blue 0 and red 1, to a picture (BUPT-PRIV/MAE-priv tools/vit_explain.py).

    Args:
        image: RGB [H, W, 3].
        relevance: [h, w] in [0, 1].

    Returns:
        RGB [H, W, 3], the brightest value 255.
    """
    levels = (255 * resize_map(relevance, image.shape[:2])).astype(np.uint8)
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_JET)[:, :, ::-1]  # OpenCV's are BGR
    total = colors.astype(np.float32) / 255 + image.astype(np.float32) / 255
    return (255 * (total / total.max())).astype(np.uint8)
