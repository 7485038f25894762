"""Pictures of geometric shapes behind mosaics: the demo set whose features are measured.

A picture shows up to four copies of one shape at random positions, with the same size and rotation, light on dark or
dark on light, behind a mosaic of random colors. Positions and colors are independent of the class, so raw pixels and
random features classify poorly. A masked part of one copy can be predicted from the other copies, but a masked part of
the mosaic cannot be predicted at all. So a network that learns to reconstruct masked patches learns the shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SUPERSAMPLING = 4  # shapes are drawn at 4 times the size and downscaled, for smooth edges
RADIUS_RANGE = (0.156, 0.234)  # of a shape, as a fraction of the image side
MAX_COPIES = 4  # fewer are drawn if they do not fit
MAX_ATTEMPTS = 100  # random positions that are tried for the copies
SPACING = 2.05  # minimum distance between the centers of two copies, in radii
DARK_AND_LIGHT = (70.0, 190.0)  # brightness (0..255) of shape and background, in random order
TILE_SIDE = 5 / 64  # of the mosaic, as a fraction of the image side
COLOR_RANGE = 130.0  # tile colors are uniform in -130..130 of 255, before their brightness is subtracted
LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in brightness (ITU-R BT.601)
NOISE_STD = 1.5  # of 255


class Layer(NamedTuple):
    """Polygon [N, 2] around (0, 0), in radii of the shape; it is added to the shape or, as a hole, cut out of it."""

    points: NDArray[np.float64]
    hole: bool = False


def _disc(radius: float = 1.0, center_x: float = 0.0) -> NDArray[np.float64]:
    return np.add(_spokes([radius] * 96), (center_x, 0.0), dtype=np.float64)


def _spokes(radii: list[float]) -> NDArray[np.float64]:
    """Return one corner per radius, at equal angles around the origin, the first one at the top."""
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    corners: NDArray[np.float64] = np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.array(radii)[:, None]
    return corners


def _bar(top: float, bottom: float, half_width: float) -> NDArray[np.float64]:
    return np.array([(-half_width, top), (half_width, top), (half_width, bottom), (-half_width, bottom)])


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0.0, 2 * np.pi, 96, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 17.0  # the curve is 29 high; 2.5 centers it


_ARROW = np.array([(0, -1), (0.75, -0.1), (0.28, -0.1), (0.28, 0.95), (-0.28, 0.95), (-0.28, -0.1), (-0.75, -0.1)])

SHAPES: dict[str, tuple[Layer, ...]] = {
    "arrow": (Layer(_ARROW),),
    "circle": (Layer(_disc()),),
    "crescent": (Layer(_disc()), Layer(_disc(0.8, center_x=0.45), hole=True)),
    "cross": (Layer(_bar(-0.95, 0.95, 0.28)), Layer(_bar(-0.28, 0.28, 0.95))),
    "heart": (Layer(_heart()),),
    "ring": (Layer(_disc()), Layer(_disc(0.58), hole=True)),
    "square": (Layer(_spokes([1.0] * 4)),),
    "star": (Layer(_spokes([1.0, 0.42] * 5)),),
    "stripes": tuple(Layer(_bar(y - 0.16, y + 0.16, 0.75)) for y in (-0.6, 0.0, 0.6)),
    "triangle": (Layer(_spokes([1.0] * 3)),),
}


def draw_shapes(class_name: str, image_size: int, rng: np.random.Generator) -> Image.Image:
    """Draw a picture: RGB, `image_size` x `image_size` pixels.

    Raises:
        KeyError: unknown class.
    """
    shape, background = _draw_levels(rng)
    coverage = _draw_coverage(SHAPES[class_name], image_size, rng)[..., None]  # [S, S, 1]
    pixels = coverage * shape + (1.0 - coverage) * background + _draw_mosaic(image_size, rng)  # [S, S, 3]
    pixels += rng.normal(0.0, NOISE_STD, pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def cover_shapes(class_name: str, image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the fraction of each pixel that the shapes cover, [S, S] in 0..1.

    With a generator in the same state, `draw_shapes` draws these shapes.

    Raises:
        KeyError: unknown class.
    """
    _draw_levels(rng)  # they come before the shape
    return _draw_coverage(SHAPES[class_name], image_size, rng)


def _draw_levels(rng: np.random.Generator) -> tuple[float, ...]:
    """Draw the brightness of the shape and of the background."""
    return DARK_AND_LIGHT[:: rng.choice((-1, 1))]


def _draw_coverage(shape: tuple[Layer, ...], image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw copies of the shape with a random size, angle and positions; return each pixel's coverage [S, S] in 0..1."""
    radius = rng.uniform(*RADIUS_RANGE)
    angle = rng.uniform(0.0, 2 * np.pi)
    rotation = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    canvas = Image.new("L", (image_size * SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    for center in _draw_centers(radius, rng):
        for points, hole in shape:
            corners = (center + radius * points @ rotation) * canvas.width
            pen.polygon([tuple(corner) for corner in corners.tolist()], fill=0 if hole else 255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float64) / 255.0


def _draw_centers(radius: float, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Draw up to `MAX_COPIES` centers (x, y) at least `SPACING` radii apart, as fractions of the image side."""
    centers: list[NDArray[np.float64]] = []
    for center in rng.uniform(0.0, 1.0, (MAX_ATTEMPTS, 2)):
        if len(centers) < MAX_COPIES and all(np.hypot(*(center - other)) > SPACING * radius for other in centers):
            centers.append(center)
    return centers


def _draw_mosaic(image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a mosaic [S, S, 3] of random colors with zero brightness; the offset of its grid is random."""
    tile = max(1, round(TILE_SIDE * image_size))
    tiles = rng.uniform(-COLOR_RANGE, COLOR_RANGE, (image_size // tile + 2,) * 2 + (3,))
    tiles -= (tiles @ LUMA)[..., None]
    top, left = rng.integers(0, tile, 2)
    return tiles.repeat(tile, axis=0).repeat(tile, axis=1)[top : top + image_size, left : left + image_size]
